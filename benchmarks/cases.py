"""The cases: what is compared on which shape. Each candidate is one call; the first peer is plain ``nn.LSTM``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_fused import FusedLSTM, FusedLSTMCell, ops, reference

from .peers import LayerNormLSTM

# T, B, I = H: language models, wide and narrow batches, long sequences.
GRID = [
    (35, 20, 192),
    (35, 20, 640),
    (64, 32, 256),
    (128, 64, 128),
    (100, 2, 256),
    (64, 64, 512),
    (512, 8, 64),
]
RATE = 0.3

PEER = "nn.LSTM"
PLAIN = "plain"
NORM = "layer norm + recurrent dropout"
FULL = "layer norm + recurrent and output dropout"
SCRIPT = "TorchScript LN-LSTM"
EAGER = "eager LN-LSTM"


@dataclass
class Case:
    """Candidates by name, each one call; flops of the matrix products of a call."""

    group: str
    shape: str
    candidates: dict[str, Callable[[], object]]
    flops: float


class FullLayer(nn.Module):
    """FusedLSTM's only layer with output dropout too (in the module, the last layer has none)."""

    def __init__(self, lstm: FusedLSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, input: Tensor) -> tuple[Tensor, None]:
        zeros = input.new_zeros(input.shape[1], self.lstm.hidden_size)
        seed = torch.randint(2**62, ())
        weights = (getattr(self.lstm, name) for name in _parameter_names())
        return ops.lstm_layer(input, zeros, zeros, *weights, seed=seed, dropout=RATE, recurrent_dropout=RATE)[0], None


def _parameter_names() -> list[str]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")
    return [f"{name}_l0" for name in names]


def train_step(model: nn.Module, input: object, leaf: Tensor, weight: Tensor) -> Callable[[], None]:
    """Forward and backward; gradients of the input and of every parameter."""

    def step() -> None:
        leaf.grad = None
        model.zero_grad(set_to_none=True)
        output = model(input)
        output = output[0] if isinstance(output, tuple) else output
        (output if isinstance(output, Tensor) else output.data).backward(weight)

    return step


def inference(model: nn.Module, *inputs: object) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            model(*inputs)

    return run


def layer_flops(T: int, B: int, H: int, training: bool) -> float:
    """Of the matrix products of a layer with H inputs."""
    return (3 if training else 1) * 2.0 * T * B * 4 * H * (H + H)


def training_grid(slow_peers: bool) -> list[Case]:
    cases = []
    for T, B, H in GRID:
        torch.manual_seed(0)
        x, weight = torch.randn(T, B, H, requires_grad=True), torch.randn(T, B, H)
        peer = nn.LSTM(H, H)
        norm = FusedLSTM(H, H, layer_norm=True, recurrent_dropout=RATE)
        models: dict[str, nn.Module] = {
            PEER: peer,
            PLAIN: FusedLSTM.from_torch(peer),
            NORM: norm,
            FULL: FullLayer(FusedLSTM(H, H, layer_norm=True)),
        }
        if slow_peers:
            models[SCRIPT] = torch.jit.script(LayerNormLSTM(H, H, RATE, RATE))
            models[EAGER] = LayerNormLSTM(H, H, RATE, RATE)
        steps = {name: train_step(model, x, x, weight) for name, model in models.items()}
        cases.append(Case("training step", f"T={T} B={B} H={H}", steps, layer_flops(T, B, H, True)))
    return cases


def forward_grid() -> list[Case]:
    cases = []
    for T, B, H in GRID:
        torch.manual_seed(0)
        x, peer = torch.randn(T, B, H), nn.LSTM(H, H).eval()
        models = {PEER: peer, PLAIN: FusedLSTM.from_torch(peer), NORM: FusedLSTM(H, H, layer_norm=True).eval()}
        runs = {name: inference(model, x) for name, model in models.items()}
        cases.append(Case("inference", f"T={T} B={B} H={H}", runs, layer_flops(T, B, H, False)))
    return cases


def streaming() -> list[Case]:
    """One step of one sequence: latency."""
    cases = []
    for H in (128, 256, 512, 1024):
        torch.manual_seed(0)
        x, state = torch.randn(1, 1, H), (torch.randn(1, 1, H), torch.randn(1, 1, H))
        peer, cell = nn.LSTM(H, H).eval(), nn.LSTMCell(H, H).eval()
        fused_cell = FusedLSTMCell(H, H).eval()
        fused_cell.load_state_dict(cell.state_dict())
        cell_state = (state[0][0], state[1][0])
        runs = {
            PEER: inference(peer, x, state),
            "nn.LSTMCell": inference(cell, x[0], cell_state),
            PLAIN: inference(FusedLSTM.from_torch(peer), x, state),
            "FusedLSTMCell": inference(fused_cell, x[0], cell_state),
        }
        cases.append(Case("one step, one sequence", f"H={H}", runs, layer_flops(1, 1, H, False)))
    return cases


def structures() -> list[Case]:
    """Two layers, two directions, packed sequences of mixed lengths."""
    cases = []
    T, B, H = 64, 32, 256
    for name, arguments in {"two layers": {"num_layers": 2}, "bidirectional": {"bidirectional": True}}.items():
        torch.manual_seed(0)
        peer = nn.LSTM(H, H, **arguments)
        x, weight = torch.randn(T, B, H, requires_grad=True), torch.randn(T, B, peer(torch.randn(1, 1, H))[0].shape[-1])
        norm = FusedLSTM(H, H, **arguments, layer_norm=True, recurrent_dropout=RATE)
        models = {PEER: peer, PLAIN: FusedLSTM.from_torch(peer), NORM: norm}
        steps = {key: train_step(model, x, x, weight) for key, model in models.items()}
        cases.append(Case(name, f"T={T} B={B} H={H}", steps, 2 * layer_flops(T, B, H, True)))

    torch.manual_seed(0)
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    peer, weight = nn.LSTM(H, H), torch.randn(int(lengths.sum()), H)
    x = torch.randn(T, B, H, requires_grad=True)
    norm = FusedLSTM(H, H, layer_norm=True, recurrent_dropout=RATE)

    def packed(model: nn.Module) -> Callable[[], None]:
        def step() -> None:
            x.grad = None
            model.zero_grad(set_to_none=True)
            sequence = pack_padded_sequence(x, lengths, enforce_sorted=False)
            model(sequence)[0].data.backward(weight)

        return step

    steps = {key: packed(m) for key, m in {PEER: peer, PLAIN: FusedLSTM.from_torch(peer), NORM: norm}.items()}
    flops = layer_flops(1, int(lengths.sum()), H, True)
    cases.append(Case("packed, mixed lengths", f"T={T} B={B} H={H}", steps, flops))
    return cases


def validate() -> None:
    """Results first: a fast wrong answer is no answer."""
    torch.manual_seed(0)
    for T, B, H in [(5, 3, 7), *GRID[:1]]:
        x = torch.randn(T, B, H)
        peer = nn.LSTM(H, H)
        fused = FusedLSTM.from_torch(peer)
        weight = torch.randn(T, B, H)
        results = []
        for model in (peer, fused):
            model.zero_grad()
            leaf = x.clone().requires_grad_()
            output, (h, c) = model(leaf)
            output.backward(weight)
            results.append([output, h, c, leaf.grad, *(p.grad for p in model.parameters())])
        _compare(results[1], results[0])

        norm = FusedLSTM(H, H, layer_norm=True)
        loop = LayerNormLSTM(H, H, 0.0, 0.0)
        loop.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in norm.state_dict().items()})
        weights = [getattr(norm, name) for name in _parameter_names()]
        zeros, seed = torch.zeros(B, H), torch.tensor(1)
        rates = {"dropout": RATE, "recurrent_dropout": RATE}

        def gradients(results: tuple[Tensor, ...], leaves: list[Tensor], weight: Tensor = weight) -> list[Tensor]:
            return [results[0], *torch.autograd.grad(results[0], leaves, weight)]

        leaf = x.clone().requires_grad_()
        want = gradients(reference.lstm_layer(leaf, zeros, zeros, *weights), [leaf, *weights])
        for model in (loop, torch.jit.script(loop)):
            peers = [getattr(model.cell, name.removesuffix("_l0")) for name in _parameter_names()]
            _compare(gradients((model(leaf),), [leaf, *peers]), want)
        _compare(gradients(norm(leaf), [leaf, *weights]), want)
        masked = [
            gradients(layer(leaf, zeros, zeros, *weights, seed=seed, **rates), [leaf, *weights])
            for layer in (ops.lstm_layer, reference.lstm_layer)
        ]
        _compare(*masked)


def _compare(got: list[Tensor], want: list[Tensor]) -> None:
    """Within 0.1 %, or 1e-4 of the largest value."""
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.detach().abs().max().item())
