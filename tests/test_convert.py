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


def hard_sigmoid(x):
    """Keras's before version 3."""
    return np.clip(0.2 * x + 0.5, 0, 1)


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "recurrent_activation": "hard_sigmoid"}], ids=str)
@pytest.mark.parametrize("use_bias", [True, False])
def test_keras(use_bias, options):
    """z = x kernel + h recurrent_kernel + bias in the order i, f, c, o; batches first."""
    activation = (lambda x: np.maximum(x, 0)) if "activation" in options else np.tanh
    gate = hard_sigmoid if "recurrent_activation" in options else sigmoid
    x, kernel, recurrent_kernel, bias = arrays((T, B, I), (I, 4 * H), (H, 4 * H), (4 * H,))

    def step(x, h, c):
        i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias * use_bias, 4, axis=-1)
        c = gate(f) * c + gate(i) * activation(g)
        return gate(o) * activation(c), c

    module = convert.from_keras([kernel, recurrent_kernel, bias][: 2 + use_bias], **options)
    output, h_n, c_n = loop(x, step)
    assert_close(results(module, x.swapaxes(0, 1)), (output.transpose(0, 1), h_n, c_n))


def carry_step(weight_ih, weight_hh, gains, biases, eps, bias=0.0):
    """The normalized cell is carried on, and the hidden state sees it. Rows of [4H, in], in the order i, f, g, o."""

    def norm(x, k):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * gains[k] + biases[k]

    def step(x, h, c):
        z = norm(x @ weight_ih.T, 0) + norm(h @ weight_hh.T, 1) + bias
        i, f, g, o = np.split(z, 4, axis=-1)
        c = norm(sigmoid(f) * c + sigmoid(i) * np.tanh(g), 2)
        return sigmoid(o) * np.tanh(c), c

    return step


@pytest.mark.parametrize("use_bias", [True, False])
def test_tensorflow_addons(use_bias):
    """Its eps is 1e-3; batches first."""
    x, kernel, recurrent_kernel, bias, *norms = arrays(
        (T, B, I), (I, 4 * H), (H, 4 * H), (4 * H,), *[(4 * H,)] * 4, (H,), (H,)
    )
    weights = [kernel, recurrent_kernel, *[bias][:use_bias], *norms]
    module = convert.from_tensorflow_addons(weights)
    step = carry_step(kernel.T, recurrent_kernel.T, norms[::2], norms[1::2], 1e-3, bias * use_bias)
    output, h_n, c_n = loop(x, step)
    assert_close(results(module, x.swapaxes(0, 1)), (output.transpose(0, 1), h_n, c_n))


def scripted_state_dict(layers, directions, norm):
    """As custom_lstms.py names it: what is in a ModuleList of layers, in one of directions when there are two."""
    state = {}
    for layer in range(layers):
        for direction in range(directions):
            prefix = f"layers.{layer}." + (f"directions.{direction}." if directions == 2 else "") + "cell."
            inputs = I if layer == 0 else directions * H
            shapes = {"weight_ih": (4 * H, inputs), "weight_hh": (4 * H, H)}
            sizes = {"layernorm_i": 4 * H, "layernorm_h": 4 * H, "layernorm_c": H}
            shapes |= {f"{name}.{kind}": (n,) for name, n in sizes.items() for kind in ("weight", "bias") if norm}
            shapes |= {name: (4 * H,) for name in ("bias_ih", "bias_hh") if not norm}
            seeds = range(100 * layer + 50 * direction, 1000)
            state |= {
                prefix + n: random(*s, seed=k, scale=0.6) for (n, s), k in zip(shapes.items(), seeds, strict=False)
            }
    return state


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (3, 1), (2, 2)])
def test_torchscript(layers, directions, norm):
    state = scripted_state_dict(layers, directions, norm)
    (x,) = arrays((T, B, I))
    output, h_n, c_n = x, [], []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            prefix = f"layers.{layer}." + (f"directions.{direction}." if directions == 2 else "") + "cell."
            w = {name.removeprefix(prefix): value.numpy() for name, value in state.items() if name.startswith(prefix)}
            if norm:
                gains, biases = ([w[f"layernorm_{k}.{kind}"] for k in "ihc"] for kind in ("weight", "bias"))
                step = carry_step(w["weight_ih"], w["weight_hh"], gains, biases, 1e-5)
            else:  # haste's equations, in the other order of gates
                i, f, g, o = range(0, 4 * H, H)
                rows = np.concatenate([np.arange(k, k + H) for k in (i, g, f, o)])
                bias = (w["bias_ih"] + w["bias_hh"])[rows]
                step = haste_step(w["weight_ih"][rows].T, w["weight_hh"][rows].T, bias)
            y, h, c = loop(output[::-1] if direction else output, step)
            outputs.append(y.numpy()[::-1] if direction else y.numpy())
            h_n.append(h)
            c_n.append(c)
        output = np.concatenate(outputs, -1)
    module = convert.from_torchscript(state)
    assert_close(results(module, x), (torch.from_numpy(output), torch.cat(h_n), torch.cat(c_n)))
    if (layers, directions) == (1, 1):  # its layer and its cell alone
        for prefix in ("layers.0.", "layers.0.cell."):
            alone = convert.from_torchscript({name.removeprefix(prefix): x for name, x in state.items()})
            assert_same_bits(alone.state_dict(), module.state_dict())


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
    with pytest.raises(ValueError, match="a gamma and a beta of three norms, got 3 of them"):
        convert.from_tensorflow_addons([x, r, b])
    with pytest.raises(ValueError, match=r"beta of kernel_norm must have shape \[24\], got \[6\]"):
        convert.from_tensorflow_addons([x, r, b, b, np.zeros(H), b, b, np.zeros(H), np.zeros(H)])
    with pytest.raises(ValueError, match=r"names of custom_lstms\.py, .*got 'layers.0.cell.weight_ch'"):
        convert.from_torchscript({"layers.0.cell.weight_ch": torch.ones(3)})
    with pytest.raises(ValueError, match="weight_ih and weight_hh of its first layer, got"):
        convert.from_torchscript({"layers.1.cell.weight_ih": torch.ones(3)})
