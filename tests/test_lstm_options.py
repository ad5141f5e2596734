"""The modules' options that nn.LSTM lacks, and its projection: parameters and calls; the ops are tested alone."""

import warnings

import pytest
import torch
from testing import MODULE_OPTIONS, OPTIONS, assert_close, assert_same_bits, module_options, random
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_fused import FusedLSTM, reference
from lstm_fused._schema import LAYER_TENSORS, WEIGHTS

T, B, I, H, P = 6, 4, 3, 7, 5  # noqa: E741

# As many options together as a module can have; of one layer, so without the dropout that acts between layers.
TOGETHER = (
    "carry", "candidate_dropout", "weight_dropout", "zoneout_c", "peephole", "open_gates", "activation",
    "recurrent_activation", "projection",
)  # fmt: skip
CASES = pytest.mark.parametrize(
    "on", [*((name,) for name in MODULE_OPTIONS if "dropout" not in OPTIONS[name]), TOGETHER], ids="+".join
)


def make(*on, **more):
    """A layer whose parameters, those that start as 0 or 1 too, are random."""
    lstm = FusedLSTM(I, H, dtype=torch.float64, **module_options(*on), **more)
    with torch.no_grad():
        for k, parameter in enumerate(lstm.parameters()):
            parameter.add_(random(*parameter.shape, seed=k, scale=0.3))
    return lstm


def specification(lstm, on, x, reset):
    """The reference with the parameters of ``lstm`` and the options ``on`` of the op."""
    options = {k: v for name in on for k, v in OPTIONS[name].items()}
    weights = {name: getattr(lstm, f"{name}_l0", None) for name in LAYER_TENSORS[WEIGHTS]}
    zeros = x.new_zeros(x.shape[1], lstm.proj_size or H), x.new_zeros(x.shape[1], H)
    return reference.lstm_layer(
        x, *zeros, **weights, reset=reset, seed=torch.tensor(3), **options, training=lstm.training
    )


def unpacked(results):
    output, (h_n, c_n) = results
    return output, h_n[0], c_n[0]


@pytest.mark.parametrize("training", [True, False])
@CASES
def test_equals_the_specification(on, training):
    lstm = make(*on).train(training)
    x = random(T, B, I, seed=1).requires_grad_()
    reset = torch.rand(T, B, generator=torch.Generator().manual_seed(2)) < 0.3
    leaves = [x, *lstm.parameters()]
    results = [unpacked(lstm(x, reset=reset, seed=3)), specification(lstm, on, x, reset)]
    losses = [sum((r * random(*r.shape, seed=9 + k)).sum() for k, r in enumerate(result)) for result in results]
    gradients = [torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True) for loss in losses]
    assert_close(results[0], results[1])
    assert_close(gradients[0], gradients[1])


def test_parameters():
    lstm = FusedLSTM(I, H, 2, layer_norm="carry", peephole=True, proj_size=P, bidirectional=True)
    shapes = {
        "weight_ih": (4 * H, I), "weight_hh": (4 * H, P), "weight_hr": (P, H), "weight_ln_ih": (4 * H,),
        "weight_ln_hh": (4 * H,), "bias_ln_ih": (4 * H,), "bias_ln_hh": (4 * H,), "weight_ln_c": (H,),
        "bias_ln_c": (H,), "weight_ci": (H,), "weight_cf": (H,), "weight_co": (H,),
    }  # fmt: skip
    state = lstm.state_dict()
    assert {name: tuple(state[f"{name}_l0_reverse"].shape) for name in shapes} == shapes
    assert state["weight_ih_l1"].shape == (4 * H, 2 * P)
    assert len(state) == 4 * len(shapes)  # no bias_ih and bias_hh beside those of the norms
    forget = FusedLSTM(I, H, layer_norm="carry", forget_bias=2.0)
    assert ((forget.bias_ln_ih_l0 + forget.bias_ln_hh_l0)[H : 2 * H] == 2).all()
    assert not (forget.bias_ln_ih_l0 + forget.bias_ln_hh_l0)[:H].any()
    assert repr(FusedLSTM(3, 7, forget_bias=1.0, **module_options(*TOGETHER))) == (
        "FusedLSTM(3, 7, proj_size=3, layer_norm='carry', recurrent_dropout=0.3, recurrent_dropout_on='candidate', "
        "zoneout=(0.0, 0.45), weight_dropout=0.4, peephole=True, forget_bias=1.0, open_gates=('i',), "
        "activation='relu', recurrent_activation='hard_sigmoid')"
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projection_is_that_of_nn_lstm(layers, bidirectional, bias):
    """The same initial weights, outputs and gradients; state dicts go both ways, also in float32."""
    sizes = {"num_layers": layers, "bidirectional": bidirectional, "proj_size": P, "bias": bias}
    torch.manual_seed(5)
    theirs = nn.LSTM(I, H, **sizes, dtype=torch.float64)
    torch.manual_seed(5)
    ours = FusedLSTM(I, H, **sizes, dtype=torch.float64)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_bits(ours.state_dict(), theirs.state_dict())
    x = random(T, B, I, seed=1).requires_grad_()
    D = layers * (2 if bidirectional else 1)
    hx = (random(D, B, P, seed=2), random(D, B, H, seed=3))
    results = []
    for module in (ours, theirs):
        output, (h_n, c_n) = module(x, hx)
        loss = (output * random(*output.shape, seed=7)).sum() + h_n.square().sum() + c_n.sum()
        results.append((output, h_n, c_n, torch.autograd.grad(loss, [x, *module.parameters()])))
    assert_close(results[0], results[1])
    theirs, ours = theirs.float(), FusedLSTM.from_torch(theirs.float())
    assert_close(ours(x.float())[0], theirs(x.float())[0], 1e-5)
    theirs.load_state_dict(ours.state_dict())


def test_reset_starts_a_sequence_anew():
    """Two documents in one row give what each gives alone; however the input is laid out."""
    lstm = make()
    x = random(T, B, I, seed=1)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2] = True
    output, (h_n, c_n) = lstm(x, reset=reset)
    first, _ = lstm(x[:2])
    second, state = lstm(x[2:])
    assert_close((output, h_n, c_n), (torch.cat((first, second)), *state))

    reset = torch.arange(T * B).reshape(T, B) % 3 == 0
    output, (h_n, c_n) = lstm(x, reset=reset)
    alone, (h_1, c_1) = lstm(x[:, 1], reset=reset[:, 1])
    assert_close((alone, h_1, c_1), (output[:, 1], h_n[:, 1], c_n[:, 1]))
    batch_first = make(batch_first=True)
    batch_first.load_state_dict(lstm.state_dict())
    assert_close(batch_first(x.transpose(0, 1), reset=reset.T)[0], output.transpose(0, 1))
    lengths = torch.tensor([6, 2, 5, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    assert_close(pad_packed_sequence(lstm(packed, reset=reset)[0])[0], lstm(x, lengths=lengths, reset=reset)[0])


def test_weight_dropout_leaves_the_parameter_alone():
    lstm = make("weight_dropout")
    before = lstm.weight_hh_l0.detach().clone()
    x = random(T, B, I, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = lstm(x)[0], lstm(x)[0]
    assert not torch.equal(first, second)
    first.sum().backward()
    assert_same_bits([lstm.weight_hh_l0.detach()], [before])
    assert (lstm.weight_hh_l0.grad == 0).double().mean() > 0.25  # those of the dropped weights
    plain = make()
    plain.load_state_dict(lstm.state_dict())
    assert_close(lstm.eval()(x)[0], plain(x)[0])
