"""torch.jit.trace on the modules."""

import io
import warnings

import pytest
import torch
from testing import MODULE_SETS, assert_close, random, small_lstm

from lstm_fused import FusedLSTMCell


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", MODULE_SETS.values(), ids=MODULE_SETS)
def test_jit_trace(options, training, device):
    """Traced, saved and read again: any sizes, new masks in every call, gradients; torch's own check finds no fault."""
    module, x = small_lstm(device, **options)
    module.train(training)
    random_masks = training and options != {}  # with which no two runs are the same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and our checks look at sizes
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(module, x, check_trace=not random_masks), file)
        file.seek(0)
        traced = torch.jit.load(file)
    other = random(9, 2, 3, seed=2).float().to(device)
    results = []
    for call in (traced, module):
        torch.manual_seed(1)
        output, (h_n, _) = call(other)
        results.append([output, h_n, *torch.autograd.grad(output.square().sum(), list(call.parameters()))])
    assert_close(*results)


@pytest.mark.parametrize("kind", ["layer", "cell"])
def test_jit_trace_without_gradients(kind, device):
    """What was traced so can be trained all the same."""
    if kind == "layer":
        module, x = small_lstm(device)
        arguments = (x,)
    else:
        module = FusedLSTMCell(3, 5, device=device)
        arguments = (random(4, 3, seed=1).float().to(device), (torch.zeros(4, 5, device=device),) * 2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, arguments)
    weight = next(module.parameters())
    assert_close(*([torch.autograd.grad(call(*arguments)[0].sum(), weight)[0]] for call in (traced, module)))
