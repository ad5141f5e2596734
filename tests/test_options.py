"""The modules' options that nn.LSTM lacks, and its projection: parameters and calls; the ops are tested alone."""

import warnings

import pytest
import torch
from testing import assert_close, assert_same_bits, random
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_fused import FusedLSTM, FusedLSTMCell, reference

T, B, I, H, P = 6, 4, 3, 7, 5  # noqa: E741

# Constructor arguments, and what they are to the specification.
OPTIONS = {
    "carry": ({"layer_norm": "carry"}, {}),
    "candidate": (
        {"recurrent_dropout": 0.4, "recurrent_dropout_on": "candidate"},
        {"candidate_dropout": 0.4},
    ),
    "weight_dropout": ({"weight_dropout": 0.3}, {"weight_dropout": 0.3}),
    "peephole": ({"peephole": True}, {}),
    "open_gates": ({"open_gates": "io"}, {"open_gates": 5}),
    "projection": ({"proj_size": P}, {}),
    "all": (
        {
            "layer_norm": "carry",
            "recurrent_dropout": 0.4,
            "recurrent_dropout_on": "candidate",
            "weight_dropout": 0.3,
            "zoneout": (0.0, 0.2),
            "peephole": True,
            "forget_bias": 1.0,
            "open_gates": ["f"],
            "proj_size": P,
        },
        {"candidate_dropout": 0.4, "weight_dropout": 0.3, "zoneout_c": 0.2, "open_gates": 2},
    ),
}
# Of the specification's arguments, in its order.
NAMES = (
    "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c",
    "bias_ln_ih", "bias_ln_hh", "weight_hr", "weight_ci", "weight_cf", "weight_co",
)  # fmt: skip


def make(options, **more):
    """A layer whose parameters, those that start as 0 or 1 too, are random."""
    lstm = FusedLSTM(I, H, dtype=torch.float64, **options, **more)
    with torch.no_grad():
        for k, parameter in enumerate(lstm.parameters()):
            parameter.add_(random(*parameter.shape, seed=k, scale=0.3))
    return lstm


def specification(lstm, options, x, reset=None, lengths=None, seed=3):
    P = lstm.proj_size or H
    weights = (getattr(lstm, f"{name}_l0", None) for name in NAMES)
    zeros = x.new_zeros(x.shape[1], P), x.new_zeros(x.shape[1], H)
    return reference.lstm_layer(
        x, *zeros, *weights, lengths, reset, torch.tensor(seed), **options, training=lstm.training
    )


def unpacked(results):
    output, (h_n, c_n) = results
    return output, h_n[0], c_n[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_specification(name, training):
    arguments, options = OPTIONS[name]
    lstm = make(arguments).train(training)
    x = random(T, B, I, seed=1).requires_grad_()
    reset = torch.rand(T, B, generator=torch.Generator().manual_seed(2)) < 0.3
    leaves = [x, *lstm.parameters()]
    results = [unpacked(lstm(x, reset=reset, seed=3)), specification(lstm, options, x, reset)]
    losses = [sum((r * random(*r.shape, seed=9 + k)).sum() for k, r in enumerate(result)) for result in results]
    gradients = [torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True) for loss in losses]
    assert_close(results[0], results[1])
    assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("projection", "all")])
def test_a_loop_of_cells_equals_the_layer(name):
    lstm = make(OPTIONS[name][0])
    cell = FusedLSTMCell(I, H, dtype=torch.float64, **OPTIONS[name][0])
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in lstm.state_dict().items()})
    x, reset = random(T, B, I, seed=1), torch.arange(T * B).reshape(T, B) % 5 == 0
    state, outputs = None, []
    for t in range(T):
        state = cell(x[t], state, reset=reset[t], seed=3, step=t)
        outputs.append(state[0])
    assert_close((torch.stack(outputs), *state), unpacked(lstm(x, reset=reset, seed=3)))
    one = cell(x[0, 0], (state[0][0], state[1][0]), reset=torch.tensor(True), seed=3)
    assert_close(one, tuple(r[0] for r in cell(x[0, :1], seed=3)))


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
    assert repr(FusedLSTM(3, 7, **OPTIONS["all"][0])) == (
        "FusedLSTM(3, 7, proj_size=5, layer_norm='carry', recurrent_dropout=0.4, recurrent_dropout_on='candidate', "
        "zoneout=(0.0, 0.2), weight_dropout=0.3, peephole=True, forget_bias=1.0, open_gates=('f',))"
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
    lstm = make({})
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
    batch_first = make({}, batch_first=True)
    batch_first.load_state_dict(lstm.state_dict())
    assert_close(batch_first(x.transpose(0, 1), reset=reset.T)[0], output.transpose(0, 1))
    lengths = torch.tensor([6, 2, 5, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    assert_close(pad_packed_sequence(lstm(packed, reset=reset)[0])[0], lstm(x, lengths=lengths, reset=reset)[0])


def test_weight_dropout_leaves_the_parameter_alone():
    lstm = make({"weight_dropout": 0.5})
    before = lstm.weight_hh_l0.detach().clone()
    x = random(T, B, I, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = lstm(x)[0], lstm(x)[0]
    assert not torch.equal(first, second)
    first.sum().backward()
    assert_same_bits([lstm.weight_hh_l0.detach()], [before])
    assert (lstm.weight_hh_l0.grad == 0).double().mean() > 0.3  # those of the dropped weights
    plain = make({})
    plain.load_state_dict(lstm.state_dict())
    assert_close(lstm.eval()(x)[0], plain(x)[0])
