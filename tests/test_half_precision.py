"""bfloat16 and float16: inputs and results are rounded, factors may be, and sums are float32."""

import math

import pytest
import torch
from testing import (
    EVERYTHING,
    TOLERANCE,
    assert_close,
    cell_case,
    label,
    layer_case,
    of_peer,
    option_sets,
    random,
    run,
)
from torch import nn

from lstm_fused import FusedLSTM, FusedLSTMCell, ops, reference

HALVES = (torch.bfloat16, torch.float16)
ALONE = [on for on in option_sets() if len(on) != 2]
SIZES = {"T": 5, "B": 4, "I": 3, "H": 17}


def exact(function, tensors, options):
    """In float64, from the numbers that half precision holds."""
    wide = {
        name: x if x is None or not x.is_floating_point() else x.detach().double().requires_grad_(x.requires_grad)
        for name, x in tensors.items()
    }
    return run(function, wide, options)


def compare(results, wanted, dtype):
    assert {x.dtype for x in results.values()} == {dtype}
    assert_close({name: x.double() for name, x in results.items()}, wanted, TOLERANCE[dtype])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("on", ALONE, ids=label)
def test_layer(on, dtype, device):
    case = layer_case(on, **SIZES, dtype=dtype, device=device)
    compare(run(ops.lstm_layer, *case), exact(reference.lstm_layer, *case), dtype)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("on", [(), ("layer_norm", "initial_state", "zoneout_c")], ids=label)
def test_cell(on, dtype, device):
    case = cell_case(on, B=4, I=3, H=17, dtype=dtype, device=device)
    compare(run(ops.lstm_cell, *case), exact(reference.lstm_cell, *case), dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_cell_state_is_not_rounded(dtype, device):
    """Sums of 400 small steps: half precision would stop adding where a step is below half a unit in the last place."""
    T = 400
    lstm = FusedLSTM(1, 1, device=device, dtype=dtype)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        lstm.bias_ih_l0.copy_(torch.tensor([0.0, 20.0, 2.0**-6, 20.0]))  # i = 1/2, f = o = 1, g = 1/64
    x = torch.zeros(T, 1, 1, device=device, dtype=dtype)
    _, (_, c_n) = lstm(x)
    assert abs(c_n.item() - T / 2 * math.tanh(2.0**-6)) < 0.02

    # Neither is it by the reference, through which second and forward-mode derivatives go.
    (_, (_, primal)), _ = torch.func.jvp(lstm, (x,), (x,))
    assert_close(primal, c_n)
    once, twice = (torch.autograd.grad(lstm(x)[1][1], lstm.bias_ih_l0, create_graph=again)[0] for again in (0, 1))
    assert_close(twice, once)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_no_further_off_than_nn_lstm(dtype, device):
    """Every result and gradient against float64: close, and with an error of at most twice that of nn.LSTM."""
    theirs = nn.LSTM(32, 64, 2, bidirectional=True, device=device, dtype=dtype)
    ours = FusedLSTM.from_torch(theirs)
    wide = nn.LSTM(32, 64, 2, bidirectional=True, device=device, dtype=torch.float64)
    wide.load_state_dict(theirs.state_dict())
    x = random(20, 8, 32, seed=1).to(dtype)

    def results(module):
        leaf = x.to(next(module.parameters())).requires_grad_()
        output, (h_n, c_n) = module(leaf)
        loss = sum((y * random(*y.shape, seed=9).to(y)).sum() for y in (output, h_n, c_n))
        return [output, h_n, c_n, *torch.autograd.grad(loss, [leaf, *module.parameters()])]

    mine, exact, peers = results(ours), results(wide), of_peer(lambda: results(theirs))
    assert_close([y.double() for y in mine], exact, TOLERANCE[dtype])
    if peers is None:
        pytest.skip(f"ours is close; nn.LSTM cannot compute in {dtype} on this CPU to compare it with")
    logs = []
    for got, peer, want in zip(mine, peers, exact, strict=True):
        errors = [(y.double() - want).square().mean().sqrt().item() for y in (got, peer)]
        logs.append(math.log(errors[0] / errors[1]))
    assert math.exp(sum(logs) / len(logs)) < 1.5
    assert math.exp(max(logs)) < 2


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_op_is_registered_right(dtype):
    tensors, options = layer_case(EVERYTHING, **SIZES, dtype=dtype)
    schema = torch.ops.lstm_fused.lstm_layer.default._schema
    values = tuple(tensors.get(argument.name) for argument in schema.arguments if not argument.kwarg_only)
    kinds = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.lstm_fused.lstm_layer, values, options, test_utils=kinds)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_modules(dtype, device):
    """A layer and a cell moved to half precision train; a wrong dtype is named."""
    lstm = FusedLSTM(3, 5, 2, layer_norm=True, dropout=0.2, device=device).to(dtype)
    x = random(4, 2, 3, seed=1).to(device, dtype)
    output, _ = lstm(x)
    output.float().square().mean().backward()
    assert output.dtype == dtype
    assert all(p.grad.dtype == dtype and p.grad.abs().sum() > 0 for p in lstm.parameters())
    h, c = FusedLSTMCell(3, 5, device=device, dtype=dtype)(x[0])
    assert h.dtype == c.dtype == dtype
    with pytest.raises(ValueError, match="input must have the dtype of the weights"):
        lstm(x.double())
