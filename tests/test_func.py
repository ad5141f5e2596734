"""torch.func on the modules: gradients, Jacobians and their products, against autograd and finite differences."""

import pytest
import torch
from testing import assert_close, module_options, random
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from lstm_fused import FusedLSTM

N, T, B, I, H = 4, 3, 2, 3, 4  # noqa: E741
OPTIONS = {"default": {}, "layer_norm": module_options("layer_norm", "zoneout_h", "zoneout_c")}
CASES = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def example(options):
    module = FusedLSTM(I, H, 2, bidirectional=True, dtype=torch.float64, **options).eval()
    return module, random(N, T, B, I, seed=1)


def loss(module, x, parameters):
    output, (h_n, c_n) = functional_call(module, parameters, (x,))
    return output.square().sum() + h_n.sum() + (c_n**3).sum()


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}])
def test_batched_gradients(options):
    """All rows of a Jacobian from one call of autograd."""
    module, x = example(options)
    leaf = x[0].requires_grad_()
    output = module(leaf)[0][-1, 0]
    rows = torch.eye(len(output), dtype=torch.float64)
    got = torch.autograd.grad(output, leaf, rows, is_grads_batched=True, retain_graph=True)[0]
    assert_close(got, torch.stack([torch.autograd.grad(y, leaf, retain_graph=True)[0] for y in output]))


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
def test_an_ensemble(options):
    """Models of different weights as one, which vmap cannot do with nn.LSTM; and the gradients of each."""
    models = [FusedLSTM(I, H, 2, dtype=torch.float64, **options).eval() for _ in range(N)]
    weights, _ = stack_module_state(models)
    skeleton = FusedLSTM(I, H, 2, dtype=torch.float64, device="meta", **options).eval()
    x = random(T, B, I, seed=1)
    got = vmap(lambda weights: functional_call(skeleton, weights, (x,))[0])(weights)
    assert_close(got, torch.stack([model(x)[0] for model in models]))
    slopes = vmap(grad(lambda weights: loss(skeleton, x, weights)))(weights)
    for n, model in enumerate(models):
        alone = dict(model.named_parameters())
        expected = torch.autograd.grad(loss(model, x, alone), list(alone.values()))
        assert_close({name: g[n] for name, g in slopes.items()}, dict(zip(alone, expected, strict=True)))


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


@pytest.mark.parametrize("name", ["vmap", "grad", "vmap(grad)", "jvp"])
def test_inside_of_torch_compile(name):
    """The transform is part of the compiled function, as torch demands."""
    module, x = example({})
    module.requires_grad_(False)

    def total(x):
        return module(x)[0].square().sum()

    transformed = {
        "vmap": vmap(total),
        "grad": grad(total),
        "vmap(grad)": vmap(grad(total)),
        "jvp": lambda x: jvp(total, (x,), (torch.ones_like(x),)),
    }[name]
    x = x if "vmap" in name else x[0].clone()
    torch.compiler.reset()
    assert_close(torch.compile(transformed, fullgraph=True, backend="aot_eager")(x), transformed(x))


def test_autograd_goes_on_working_outside():
    """Inside a transform the reference, outside the op again."""
    module, x = example({})
    grad(lambda x: module(x)[0].sum())(x[0])
    assert "FusedLSTM" in str(module(x[0])[0].grad_fn.next_functions)


def test_forward_mode_derivatives():
    lstm = FusedLSTM(3, 4, layer_norm=True, dtype=torch.float64)
    x, v = torch.randn(2, 5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, got = torch.func.jvp(lambda x: lstm(x)[0], (x,), (v,))
    eps = 1e-6
    want = (lstm(x + eps * v)[0] - lstm(x - eps * v)[0]) / (2 * eps)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
