"""Analytic against numerical derivatives in float64, of every option and every pair."""

import pytest
import torch
from testing import EVERYTHING, TOLERANCE, assert_close, cell_case, label, layer_case, option_sets, positional

from lstm_fused import ops


@pytest.mark.parametrize("on", option_sets(), ids=label)
def test_layer(on, device):
    function, values = positional(ops.lstm_layer, *layer_case(on, T=3, B=2, I=2, H=3, device=device))
    assert torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("on", option_sets(of_a_cell=True), ids=label)
def test_cell(on, device):
    function, values = positional(ops.lstm_cell, *cell_case(on, B=2, I=3, H=3, device=device))
    assert torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 4, 1, 5), (4, 1, 3, 2)], ids=str)
def test_layer_with_everything(sizes, device):
    case = layer_case(EVERYTHING, **dict(zip("TBIH", sizes, strict=True)), device=device)
    function, values = positional(ops.lstm_layer, *case)
    assert torch.autograd.gradcheck(function, values)


def test_other_seeds(device):
    for seed in (2, 3):
        function, values = positional(
            ops.lstm_layer, *layer_case(EVERYTHING, T=3, B=2, I=2, H=3, seed=seed, device=device)
        )
        assert torch.autograd.gradcheck(function, values, fast_mode=True)


@pytest.mark.parametrize("on", [*option_sets()[:1], EVERYTHING], ids=label)
def test_second_derivatives(on, device):
    function, values = positional(ops.lstm_layer, *layer_case(on, T=2, B=2, I=2, H=2, device=device))
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


def test_second_derivatives_of_the_cell(device):
    function, values = positional(ops.lstm_cell, *cell_case((), B=2, I=2, H=2, device=device))
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


@pytest.mark.parametrize("autocast", [False, True])
def test_first_derivatives_to_be_differentiated_again(autocast):
    """``create_graph=True`` computes the same numbers in another way, also if one input depends on another."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if autocast else torch.float64

    def random(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    x, h, weights = random(3, 2, 4), random(2, 4), [random(16, 4), random(16, 4), random(16), random(16)]

    def gradients(create_graph):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output, *_ = ops.lstm_layer(x, h, h, *weights)  # one tensor in two places
            state = (output[-1], output[-1] * 2)
            for _ in range(3):  # each step feeds the next
                state = ops.lstm_cell(state[0], *state, *weights)
            return torch.autograd.grad(state[0].square().sum(), [x, h, *weights], create_graph=create_graph)

    # Under autocast the layer, and so its reference, is one of bfloat16.
    assert_close(gradients(True), gradients(False), TOLERANCE[torch.bfloat16] if autocast else None)
