"""torch.compile on the modules: one graph, the same results and gradients, few recompilations."""

import pytest
import torch
from testing import MODULE_SETS, assert_close, random, small_lstm
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_map_only

from lstm_fused import FusedLSTM, FusedLSTMCell

pytestmark = pytest.mark.usefixtures("nothing_compiled")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", MODULE_SETS.values(), ids=MODULE_SETS)
def test_compile_whole_graph(options, training, device):
    """One graph, no break; the same results and gradients for the same seed."""
    module, x = small_lstm(device, **options)
    module.train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = {
        "lengths": torch.tensor([6, 2, 5, 0], device=device),
        "reset": (random(6, 4, seed=2) > 0.8).to(device),
        "seed": torch.tensor(5, device=device),
    }
    results = []
    for call in (compiled, module):
        output, (h_n, c_n) = call(x, **given)
        gradients = torch.autograd.grad(output.square().sum() + h_n.sum() + c_n.sum(), list(module.parameters()))
        results.append([output, h_n, c_n, *gradients])
    assert_close(*results)
    with torch.no_grad():
        assert_close(compiled(x, **given), module(x, **given))


def test_compile_draws_seeds(device):
    """Without a seed every call of the compiled module draws one, from torch's generator."""
    module, x = small_lstm(device, recurrent_dropout=0.5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    first, second = compiled(x)[0], compiled(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert_close(compiled(x)[0], first)


def test_compile_with_dynamic_sizes(device):
    module, _ = small_lstm(device, **MODULE_SETS["ba2016"])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for T, B in [(4, 3), (7, 2), (5, 6)]:
        x = random(T, B, 3, seed=1).float().to(device)
        seed = torch.tensor(T, device=device)
        assert_close(compiled(x, seed=seed), module(x, seed=seed))


GIVEN = {
    "input": lambda T, B: {},
    "state": lambda T, B: {"hx": (random(2, B, 5, seed=2).float(), random(2, B, 5, seed=3).float())},
    "lengths": lambda T, B: {"lengths": torch.arange(B) % T + 1},
    "reset": lambda T, B: {"reset": random(T, B, seed=2) > 0.8},
    "seed": lambda T, B: {"seed": 100 * T + B},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_new_sizes_hardly_ever_compile_anew(given, training, device):
    """20 different (T, B): the first as they are, the second with dynamic sizes, which serve all others."""
    module = FusedLSTM(3, 5, num_layers=2, device=device, **MODULE_SETS["ba2016"]).train(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for k in range(20):
        T, B = 2 + k, 2 + (7 * k) % 20
        arguments = {"input": random(T, B, 3, seed=1).float()} | given(T, B)
        with torch.set_grad_enabled(training):
            output, _ = compiled(**tree_map_only(torch.Tensor, lambda x: x.to(device), arguments))
        assert output.shape == (T, B, 5)
        if training:
            output.sum().backward()
    assert counter.frame_count <= 3  # one compilation and at most two more


def test_new_steps_hardly_ever_compile_anew(device):
    cell = FusedLSTMCell(3, 5, zoneout=0.2, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cell, fullgraph=True, backend=counter)
    state = expected = None
    for step, x in enumerate(random(20, 4, 3, seed=1).float().to(device)):
        state, expected = (call(x, hx, seed=3, step=step) for call, hx in ((compiled, state), (cell, expected)))
        assert_close(state, expected)
    assert counter.frame_count <= 3  # the first has no state


@pytest.mark.slow
@pytest.mark.parametrize("options", MODULE_SETS.values(), ids=MODULE_SETS)
def test_compile_with_inductor(options, device):
    module, x = small_lstm(device, **options)
    compiled = torch.compile(module, fullgraph=True)
    seed = torch.tensor(5, device=device)
    results = []
    for call in (compiled, module):
        output, _ = call(x, seed=seed)
        results.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    assert_close(*results)


def test_compile_cell(device):
    cell = FusedLSTMCell(3, 5, layer_norm=True, zoneout=0.2, device=device)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    x, seed = random(4, 3, seed=1).float().to(device), torch.tensor(2, device=device)
    assert_close(compiled(x, seed=seed), cell(x, seed=seed))
