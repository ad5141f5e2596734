"""Results first: a fast wrong answer is no answer. Outputs and gradients of every kind of candidate, on two shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lstm_fused import FusedLSTM, FusedLSTMCell, reference

from .cases import Shape
from .models import DROPOUTS, RATE, RECOMPUTED, TRAINED, Layer, full, norm, plain, why_not
from .options import Packed, half_lengths
from .peers import LayerNormLSTM, onnxruntime_lstm

SHAPES = ((5, 3, 7), (35, 20, 192))  # T, B, H
SEED = 1


def validate() -> None:
    """Raises an AssertionError that says which values differ."""
    for T, B, H in SHAPES:
        x, weight = torch.randn(T, B, H), torch.randn(T, B, H)
        _against_torch(x, weight)
        _against_the_reference(x, weight)
        _peers_against_the_reference(x, weight)
        if why_not(plain, dtype=torch.bfloat16) is None:
            _bfloat16_against_the_reference(x[:5], weight[:5])
        _recomputed(x, weight)


def _against_torch(x: Tensor, weight: Tensor) -> None:
    T, B, H = x.shape
    for arguments in ({}, {"num_layers": 2}, {"bidirectional": True}):
        theirs = nn.LSTM(H, H, **arguments)
        ours = FusedLSTM.from_torch(theirs)
        weights = torch.cat([weight] * (2 if theirs.bidirectional else 1), -1)
        compare(*(results(model, x, weights) for model in (ours, theirs)))
    half = half_lengths(T, B)
    weights = weight.flatten(0, 1)[: int(half.sum())]
    theirs = nn.LSTM(H, H)
    ours = FusedLSTM.from_torch(theirs)
    compare(*(results(Packed(model), x, weights, lengths=half) for model in (ours, theirs)))
    with torch.no_grad():
        compare([ours.eval()(x)[0]], [theirs.eval()(x)[0]])
        theirs_cell, ours_cell = nn.LSTMCell(H, H), FusedLSTMCell(H, H)
        ours_cell.load_state_dict(theirs_cell.state_dict())
        state = (weight[0], weight[1])
        compare(ours_cell(x[0], state), theirs_cell(x[0], state))
        state = (weight[:1], weight[1:2])
        try:
            theirs_onnx = onnxruntime_lstm(theirs)
        except ImportError:
            return  # and it is not timed
        for given in ((x,), (x, state)):
            output, states = theirs(*given)
            compare(theirs_onnx(*given), [output, *states])


def _against_the_reference(x: Tensor, weight: Tensor) -> None:
    """Layer norm with every kind of dropout, and with lengths."""
    T, B, H = x.shape
    seed, half = torch.tensor(SEED), half_lengths(T, B)
    for options in ({}, *DROPOUTS.values(), {"recurrent_dropout": RATE, "dropout": RATE}):
        for lengths in (None, half):
            layer = Layer(H, **options)
            got = results(layer, x, weight, lengths=lengths, seed=seed)
            compare(got, _reference(layer.lstm, x, weight, lengths, **options))
    module = norm(H)
    compare(results(module, x, weight, seed=SEED), _reference(module, x, weight, recurrent_dropout=RATE))


def _peers_against_the_reference(x: Tensor, weight: Tensor) -> None:
    H = x.shape[-1]
    lstm, loop = FusedLSTM(H, H, layer_norm=True), LayerNormLSTM(H, H, 0.0, 0.0)
    loop.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.state_dict().items()})
    for peer in (loop, torch.jit.script(loop)):
        compare(results(peer, x, weight), _reference(lstm, x, weight))


def _bfloat16_against_the_reference(x: Tensor, weight: Tensor) -> None:
    """The reference computes in float32 from the same rounded numbers.

    Over a few steps: with its first weights a layer-normed recurrence amplifies whatever is rounded from step to step.
    """
    H, half = x.shape[-1], torch.bfloat16
    for layer, options in ((full(H, half), full(H).options), (plain(H, dtype=half), {})):
        got = results(layer, x.to(half), weight.to(half), seed=torch.tensor(SEED))
        exact = (layer.lstm if isinstance(layer, Layer) else layer).float()
        want = _reference(exact, x.to(half).float(), weight.to(half).float(), **options)
        compare([value.float() for value in got], want, share=0.03)


def _recomputed(x: Tensor, weight: Tensor) -> None:
    H = x.shape[-1]
    for name, make in RECOMPUTED.items():
        kept, recomputed = TRAINED[name](H), make(H)
        recomputed.load_state_dict(kept.state_dict())
        compare(*(results(model, x, weight, seed=SEED) for model in (recomputed, kept)))


def results(model: nn.Module, x: Tensor, weight: Tensor, **arguments: object) -> list[Tensor]:
    """The output, and its gradients, times `weight`, to the input and to all parameters."""
    x = x.clone().requires_grad_()
    output = model(x, **arguments)
    output = output[0] if isinstance(output, tuple) else output
    return [output, *torch.autograd.grad(output, [x, *model.parameters()], weight)]


def _reference(
    lstm: FusedLSTM, x: Tensor, weight: Tensor, lengths: Tensor | None = None, **options: object
) -> list[Tensor]:
    """The same of the specification with the parameters of `lstm`."""
    x, zeros = x.clone().requires_grad_(), x.new_zeros(x.shape[1:])
    weights = list(lstm.parameters())  # of one layer with biases and "ba2016", or none: in the order of the op
    seed = torch.tensor(SEED)
    output = reference.lstm_layer(x, zeros, zeros, *weights, lengths=lengths, seed=seed, **options)[0]
    return [output, *torch.autograd.grad(output, [x, *weights], weight)]


def compare(got: object, want: object, share: float = 1e-4) -> None:
    """Within a share of the largest value."""
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=share, atol=share * b.detach().abs().max().item())


@dataclass(frozen=True)
class Accuracy:
    error: float  # root mean square, against float64, as a share of nn.LSTM's: of the output or gradient that is worst
    same_bits: bool  # on one thread and on two


def _error(value: Tensor, exact: Tensor) -> float:
    return (value.detach().double() - exact.detach()).square().mean().sqrt().item()


def accuracy(shapes: Iterable[Shape]) -> Accuracy:
    """Of the worst shape."""
    found = [_accuracy(*shape) for shape in shapes]
    return Accuracy(max(each.error for each in found), all(each.same_bits for each in found))


def _accuracy(T: int, B: int, H: int) -> Accuracy:
    x, weight = torch.randn(T, B, H), torch.randn(T, B, H)
    theirs = nn.LSTM(H, H)
    found = [results(model, x, weight) for model in (FusedLSTM.from_torch(theirs), theirs)]
    exact = results(theirs.double(), x.double(), weight.double())
    ours, others = ([_error(a, b) for a, b in zip(values, exact, strict=True)] for values in found)

    layer, bits = full(H), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        bits.append(results(layer, x, weight, seed=torch.tensor(SEED)))
    torch.set_num_threads(1)
    return Accuracy(
        error=max(a / b for a, b in zip(ours, others, strict=True)),
        same_bits=all(torch.equal(a, b) for a, b in zip(*bits, strict=True)),
    )
