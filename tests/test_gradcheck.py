"""Analytic against numerical derivatives in float64, of every option and every pair."""

import pytest
import torch
from testing import EVERYTHING, cell_case, label, layer_case, option_sets, positional

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
