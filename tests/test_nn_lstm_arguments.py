"""What nn.LSTM and nn.LSTMCell accept, ours accept, with the same result: in the constructor and in the call."""

import operator
from collections import namedtuple
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from testing import assert_close, assert_same_bits, of_peer, random
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence, unpack_sequence
from torch.utils._pytree import tree_leaves

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell, LSTMCell

T, B, I, H = 4, 3, 6, 5  # noqa: E741
Pair = namedtuple("Pair", "h c")
X = random(T, B, I, seed=1).float()


class Index:
    """An integer of somebody else's."""

    def __index__(self):
        return 2


# Integers, wherever one is expected.
INTEGERS = {
    "an int": 2,
    "numpy.int64": np.int64(2),
    "numpy.uint8": np.uint8(2),
    "a product of NumPy's": np.prod((2, 1)),
    "a 0-dim array": np.array(2),
    "a tensor": torch.tensor(2),
    "__index__": Index(),
    "True": True,
}
SIZES = {"input_size": I, "hidden_size": H}
PLAIN_SIZES = (*SIZES, "proj_size")
LAYER = {f"{name} {kind}": {name: n} for name in (*PLAIN_SIZES, "num_layers") for kind, n in INTEGERS.items()}
LAYER |= {
    "booleans": {"bias": False, "batch_first": True, "bidirectional": True},
    **{f"dropout {value!r}": {"num_layers": 2, "dropout": value} for value in (
        0, 1, 1.0, 0.0, np.float32(0.5), np.float16(0.25), np.float64(1), np.int64(0), Decimal("0.5"), Fraction(1, 2),
    )},
    **{f"device {device!r}": {"device": device} for device in ("cpu", "cpu:0", torch.device("cpu"), None)},
    **{f"dtype {dtype!r}": {"dtype": dtype} for dtype in (
        None, float, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128,
    )},
    "complex in two layers": {"dtype": torch.complex64, "num_layers": 2, "bidirectional": True, "proj_size": 2},
}  # fmt: skip
CELL = {f"{name} {kind}": {name: n} for name in SIZES for kind, n in INTEGERS.items()}
CELL |= {name: case for name, case in LAYER.items() if name.startswith(("device", "dtype"))}
CELL |= {
    f"bias {value!r}": {"bias": value}
    for value in (1, 0, 2.5, None, "yes", "", np.True_, np.False_, torch.tensor(0), (), [False])
}
BY_POSITION = [(I, H, 2), (I, H, 2, False, True, 0.5, True, 3, "cpu", torch.float64)]
BY_POSITION_CELL = [(I, H), (I, H, 1), (np.prod((2, 3)), np.int64(H), 0), (I, H, True, "cpu", torch.float64)]


def plain(options):
    """The same arguments in Python's own numbers, which torch's class takes in every release."""
    integers = {name: operator.index(value) for name, value in options.items() if name in ("num_layers", *PLAIN_SIZES)}
    return options | integers | ({"bias": bool(options["bias"])} if "bias" in options else {})


def built(kind, *arguments, **options):
    torch.manual_seed(1)
    return kind(*arguments, **options).eval()


def tensors(results):
    return [x for x in tree_leaves(results) if isinstance(x, torch.Tensor)]


def as_real(values):
    return [torch.view_as_real(x) if x.is_complex() else x for x in values]


def compare(theirs, ours, *given):
    """The same weights, results and gradients, and attributes of Python's own types."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_bits(*(as_real(module.state_dict().values()) for module in (ours, theirs)))

    def results(module):
        values = tensors(module(*given))
        return as_real(values + list(torch.autograd.grad(sum(x.abs().sum() for x in values), module.parameters())))

    got, expected = results(ours), of_peer(lambda: results(theirs))
    if expected is not None:  # on every CPU in all but half precision
        assert_close(got, expected)
    for name in ("input_size", "hidden_size", "num_layers", "proj_size"):
        assert type(getattr(ours, name, 0)) is int
    for name in ("bias", "batch_first", "bidirectional"):
        assert type(getattr(ours, name, True)) is bool


def example(module, shape):
    return random(*shape[:-1], module.input_size, seed=2).to(next(module.parameters()).dtype)


@pytest.mark.parametrize("kind", [FusedLSTM, LSTM])
@pytest.mark.parametrize("options", LAYER.values(), ids=LAYER)
def test_constructor(options, kind):
    options = SIZES | options
    ours = built(kind, **options)
    compare(built(nn.LSTM, **plain(options)), ours, example(ours, X.shape))


@pytest.mark.parametrize("kind", [FusedLSTMCell, LSTMCell])
@pytest.mark.parametrize("options", CELL.values(), ids=CELL)
def test_constructor_of_the_cell(options, kind):
    options = SIZES | options
    ours = built(kind, **options)
    compare(built(nn.LSTMCell, **plain(options)), ours, example(ours, (B, I)))


@pytest.mark.parametrize("arguments", BY_POSITION, ids=str)
def test_arguments_by_position(arguments):
    for kind in (FusedLSTM, LSTM):
        theirs, ours = built(nn.LSTM, *arguments), built(kind, *arguments)
        compare(theirs, ours, example(ours, X.shape))


@pytest.mark.parametrize("arguments", BY_POSITION_CELL, ids=str)
def test_arguments_by_position_of_the_cell(arguments):
    for kind in (FusedLSTMCell, LSTMCell):
        theirs, ours = built(nn.LSTMCell, *arguments), built(kind, *arguments)
        compare(theirs, ours, example(ours, (B, I)))


def state(rows, *batch, seed=3):
    return tuple(random(*rows, *batch, H, seed=seed + k).float() for k in range(2))


CALLS = {
    "hx a list": lambda m: m(X, list(state((1,), B))),
    "hx a tuple": lambda m: m(X, state((1,), B)),
    "hx a named tuple": lambda m: m(X, Pair(*state((1,), B))),
    "hx None": lambda m: m(X, None),
    "names": lambda m: m(input=X, hx=state((1,), B)),
    "hx strided": lambda m: m(X, tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in state((1,), B))),
    "hx expanded": lambda m: m(X, tuple(x.expand(1, B, H) for x in state((1,), 1))),
    "hx of one tensor twice": lambda m: m(X, [torch.zeros(1, B, H)] * 2),
    "one sequence": lambda m: m(X[:, 0], list(state((1,)))),
    "no sequence": lambda m: m(X[:, :0]),
    "strided": lambda m: m(X.transpose(0, 2).contiguous().transpose(0, 2)),
    "expanded": lambda m: m(X[:, :1].expand(T, B, I)),
    "a parameter": lambda m: m(nn.Parameter(X)),
    "packed": lambda m: m(pack_padded_sequence(X, [4, 2, 1])),
    "packed in disorder": lambda m: m(pack_padded_sequence(X, torch.tensor([1, 4, 2]), enforce_sorted=False)),
    "packed with hx": lambda m: m(pack_sequence([X[:, 0], X[:3, 1]]), state((1,), 2)),
    "packed, moved": lambda m: m(pack_sequence([X[:, 0], X[:3, 1]]).to("cpu").double().float()),
    "unpacked": lambda m: unpack_sequence(m(pack_sequence([X[:2, 0], X[:, 1]], enforce_sorted=False))[0]),
    "padded": lambda m: pad_packed_sequence(m(pack_sequence([X[:, 0], X[:2, 1]]))[0], padding_value=-1, total_length=9),
    "padded of a list": lambda m: m(pad_sequence([X[:, 0], X[:2, 1]])),
}
STATE = state((B,))
CALLS_OF_THE_CELL = {
    "hx a list": lambda m: m(X[0], list(STATE)),
    "hx a named tuple": lambda m: m(X[0], Pair(*STATE)),
    "names": lambda m: m(input=X[0], hx=STATE),
    "hx expanded": lambda m: m(X[0], tuple(x[:1].expand(B, H) for x in STATE)),
    "strided": lambda m: m(X[0].T.contiguous().T, tuple(x.T.contiguous().T for x in STATE)),
    "one sequence": lambda m: m(X[0, 0], [x[0] for x in STATE]),
    "no sequence": lambda m: m(X[0, :0]),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call(call, grad):
    theirs = nn.LSTM(I, H)
    with torch.set_grad_enabled(grad):
        expected = tensors(call(theirs))
        for ours in (FusedLSTM.from_torch(theirs), LSTM.from_torch(theirs)):
            assert_close(tensors(call(ours)), expected)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("call", CALLS_OF_THE_CELL.values(), ids=CALLS_OF_THE_CELL)
def test_call_of_the_cell(call, grad):
    theirs = nn.LSTMCell(I, H)
    with torch.set_grad_enabled(grad):
        expected = tensors(call(theirs))
        for kind in (FusedLSTMCell, LSTMCell):
            ours = kind(I, H)
            ours.load_state_dict(theirs.state_dict())
            assert_close(tensors(call(ours)), expected)


def test_new_arguments_take_the_same_numbers():
    """Of NumPy too: lengths, seed, step and rates, which nn.LSTM has not."""
    module = FusedLSTM(I, H, recurrent_dropout=np.float32(0.5), zoneout=(Fraction(1, 4), Decimal("0.5")), eps=1e-5)
    assert (module.recurrent_dropout, module.zoneout) == (0.5, (0.25, 0.5))
    expected = tensors(module(X, lengths=[4, 2, 1], seed=3))
    of_ints = ([4, 2, 1], (np.int64(4), 2, Index()), np.array([4, 2, 1]), np.array([4, 2, 1], np.uint8))
    for lengths in (*of_ints[:1], np.array([4, 2, 1]), of_ints[3], [torch.tensor(4), np.int32(2), 1]):
        assert_same_bits(tensors(module(X, lengths=lengths, seed=np.int64(3))), expected)
    assert_same_bits(tensors(module(X, lengths=range(2, 5), seed=3)), tensors(module(X, lengths=[2, 3, 4], seed=3)))
    assert tensors(module(X, lengths=of_ints[1], seed=3))[0].shape == (T, B, H)
    cell = FusedLSTMCell(I, H, zoneout=0.5)
    assert_same_bits(cell(X[0], seed=3, step=np.int64(2)), cell(X[0], seed=3, step=2))
    assert_same_bits(cell(X[0], seed=3, step=None), cell(X[0], None, None, 3, 0))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("variational", [False, True])
def test_dropout_of_everything(variational, bidirectional, batch_first):
    """Zeros between the layers; a layer's state comes out as it is, and gradients come through that alone."""
    theirs = nn.LSTM(I, H, 3, dropout=1.0, bidirectional=bidirectional, batch_first=batch_first, dtype=torch.float64)
    ours = FusedLSTM.from_torch(theirs, variational=variational)
    x = random(T, B, I, seed=1)
    for training in (True, False):
        results = []
        for module in (theirs, ours):
            leaf = x.clone().requires_grad_()
            output, (h_n, c_n) = module.train(training)(leaf)
            loss = output.square().sum() + h_n.sum() + c_n.sum()
            results.append([output, h_n, c_n, *torch.autograd.grad(loss, [leaf, *module.parameters()])])
        assert_close(results[1], results[0])
    ours.train().dropout = 0.5  # later changed, as an attribute
    ours.dropout = 1.0
    assert_close(ours(x), theirs.train()(x))
    assert_close(ours.trace(x).output, theirs(x)[0].detach())


def test_complex_numbers_have_no_norm():
    module = FusedLSTM(I, H, layer_norm=True, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"input must be real where layer norm is on, got torch\.complex64"):
        module(X.to(torch.complex64))
