"""torch.func on the module, against plain autograd: vmap by one call a slice, derivatives through the reference."""

import pytest
import torch
from testing import assert_close, random
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

from lstm_fused import FusedLSTM, FusedLSTMCell

N, T, B, I, H = 4, 3, 2, 3, 4  # noqa: E741
OPTIONS = {"plain": {}, "layer_norm": {"layer_norm": True, "zoneout": 0.2}}
CASES = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def example(options):
    module = FusedLSTM(I, H, 2, bidirectional=True, dtype=torch.float64, **options).eval()
    return module, random(N, T, B, I, seed=1)


def loss(module, x, parameters):
    output, (h_n, c_n) = functional_call(module, parameters, (x,))
    return output.square().sum() + h_n.sum() + (c_n**3).sum()


@CASES
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("no_grad", [False, True])
def test_vmap(options, no_grad):
    module, x = example(options)
    cell = FusedLSTMCell(I, H, dtype=torch.float64)
    with torch.set_grad_enabled(not no_grad):
        assert_close(vmap(lambda x: module(x)[0])(x), torch.stack([module(one)[0] for one in x]))
        assert_close(vmap(lambda x: cell(x)[1])(x[:, 0]), torch.stack([cell(one)[1] for one in x[:, 0]]))


@CASES
def test_gradients_of_parameters(options):
    module, x = example(options)
    parameters = dict(module.named_parameters())
    expected = torch.autograd.grad(loss(module, x[0], parameters), list(parameters.values()))
    got = grad(lambda parameters: loss(module, x[0], parameters))(parameters)
    assert_close(got, dict(zip(parameters, expected, strict=True)))


@CASES
def test_gradients_of_every_sample(options):
    """vmap of grad: what one would get from a loop over the samples."""
    module, x = example(options)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    got = vmap(grad(lambda parameters, x: loss(module, x, parameters)), (None, 0))(parameters, x)
    for k in range(N):
        alone = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        expected = torch.autograd.grad(loss(module, x[k], alone), list(alone.values()))
        assert_close({name: g[k] for name, g in got.items()}, dict(zip(alone, expected, strict=True)))


@CASES
def test_jacobians(options):
    module, x = example(options)
    expected = torch.autograd.functional.jacobian(lambda x: module(x)[0].sum((0, 1)), x[0])
    assert_close(jacrev(lambda x: module(x)[0].sum((0, 1)))(x[0]), expected)
    assert_close(jacfwd(lambda x: module(x)[0].sum((0, 1)))(x[0]), expected)


def test_products_with_jacobians():
    module, x = example({})
    v, w = random(T, B, I, seed=5), random(T, B, 2 * H, seed=6)
    _, forward = jvp(lambda x: module(x)[0], (x[0],), (v,))
    _, backward = vjp(lambda x: module(x)[0], x[0])
    assert_close((forward * w).sum(), (backward(w)[0] * v).sum())


def test_autograd_goes_on_working_outside():
    """Inside a transform the reference, outside the op again."""
    module, x = example({})
    grad(lambda x: module(x)[0].sum())(x[0])
    assert "lstm_fused" in str(module(x[0])[0].grad_fn.next_functions)
