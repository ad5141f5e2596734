"""Weights of other packages against those packages' equations, written down here once more, step by step, in numpy."""

import numpy as np
import pytest
import torch
from testing import assert_close, assert_same_bits, random
from torch import nn

from lstm_fused import FusedLSTM, convert

T, B, I, H = 5, 4, 3, 6  # noqa: E741


def arrays(*shapes):
    return [random(*shape, seed=k, scale=0.6).numpy() for k, shape in enumerate(shapes)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def standardised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def loop(x, step):
    """``h, c = step(x_t, h, c)`` over x [T, B, I]: all h [T, B, H], the last h and c."""
    h = c = np.zeros((x.shape[1], H))
    hidden = []
    for x_t in x:
        h, c = step(x_t, h, c)
        hidden.append(h)
    return tuple(torch.from_numpy(a) for a in (np.stack(hidden), h[None], c[None]))


def results(module, x):
    output, (h_n, c_n) = module(torch.from_numpy(x))
    return output, h_n, c_n


def haste_step(kernel, recurrent_kernel, bias, gamma=None, gamma_h=None, beta_h=None, zoneout=0.0):
    """haste's gates lie in the order i, g, f, o; of its layer norms only that of the cell has a bias."""

    def step(x, h, c):
        a, b = x @ kernel, h @ recurrent_kernel
        if gamma is not None:
            a, b = standardised(a) * gamma[0], standardised(b) * gamma[1]
        i, g, f, o = np.split(a + b + bias, 4, axis=-1)
        new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        seen = new_c if gamma is None else standardised(new_c) * gamma_h + beta_h
        new_h = sigmoid(o) * np.tanh(seen)
        return zoneout * h + (1 - zoneout) * new_h, new_c

    return step


@pytest.mark.parametrize("zoneout", [0.0, 0.3])
@pytest.mark.parametrize("norm", [False, True])
def test_haste(norm, zoneout):
    x, kernel, recurrent_kernel, bias, gamma, gamma_h, beta_h = arrays(
        (T, B, I), (I, 4 * H), (H, 4 * H), (4 * H,), (2, 4 * H), (H,), (H,)
    )
    given = (kernel, recurrent_kernel, bias, *((gamma, gamma_h, beta_h) if norm else ()))
    module = convert.from_haste(*given, zoneout=(zoneout, 0.0)).eval()
    assert_close(results(module, x), loop(x, haste_step(*given, zoneout=zoneout)))


@pytest.mark.parametrize("use_bias", [True, False])
def test_keras(use_bias):
    """z = x kernel + h recurrent_kernel + bias in the order i, f, c, o; batches first."""
    x, kernel, recurrent_kernel, bias = arrays((T, B, I), (I, 4 * H), (H, 4 * H), (4 * H,))

    def step(x, h, c):
        i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias * use_bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    module = convert.from_keras([kernel, recurrent_kernel, bias][: 2 + use_bias])
    output, h_n, c_n = loop(x, step)
    assert_close(results(module, x.swapaxes(0, 1)), (output.transpose(0, 1), h_n, c_n))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_there_and_back(bias, bidirectional):
    """nn.LSTM -> FusedLSTM -> nn.LSTM: the same results in each, the same bits at both ends, nothing shared."""
    first = nn.LSTM(I, H, 2, bias, True, 0.25, bidirectional, dtype=torch.float64).eval()
    first.weight_hh_l1.requires_grad_(False)
    ours = FusedLSTM.from_torch(first)
    last = convert.to_torch(ours)
    assert_same_bits(last.state_dict(), first.state_dict())
    assert repr(last) == repr(first)
    assert (last.training, last.weight_hh_l1.requires_grad, last.weight_ih_l1.requires_grad) == (False, False, True)
    x = random(B, T, I, seed=1)
    assert_close(ours(x), first(x))
    assert_same_bits([last(x)[0]], [first(x)[0]])
    last.weight_ih_l0.data.zero_()
    assert ours.weight_ih_l0.all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer_norm": True}, "got layer_norm='ba2016'"),
        ({"zoneout": 0.1, "recurrent_dropout": 0.2}, r"got recurrent_dropout=0.2, zoneout=\(0.1, 0.1\)"),
        ({"variational": True, "dropout": 0.1}, "got variational=True"),
    ],
)
def test_options_do_not_convert(options, sentence):
    with pytest.raises(ValueError, match="no option that nn.LSTM lacks to become one, " + sentence):
        convert.to_torch(FusedLSTM(I, H, 2, **options))


def test_what_is_no_option_converts():
    """The forget bias is in the weights; one mask for all steps means nothing without dropout."""
    module = FusedLSTM(I, H, forget_bias=1.0, variational=True, eps=1e-3)
    assert_same_bits(convert.to_torch(module).state_dict(), module.state_dict())


def test_wrong_shapes():
    x, r, b = (np.zeros(shape) for shape in ((I, 4 * H), (H, 4 * H), (4 * H,)))
    with pytest.raises(ValueError, match=r"recurrent_kernel must have shape \[6, 24\], got \[6, 23\]"):
        convert.from_haste(x, r[:, 1:], b)
    with pytest.raises(ValueError, match=r"kernel must have shape \[any, 24\], got \[24, 3\]"):
        convert.from_keras([x.T, r, b])
    with pytest.raises(ValueError, match="gamma, gamma_h and beta_h must be given together"):
        convert.from_haste(x, r, b, np.ones((2, 4 * H)))
    with pytest.raises(ValueError, match="weights must be kernel, recurrent_kernel and perhaps bias, got 1 of them"):
        convert.from_keras([x])
