"""FusedLSTMCell against nn.LSTMCell, and a loop of it against the layer."""

import pytest
import torch
from testing import CELL_MODULE_OPTIONS, assert_close, assert_same_bits, module_options, random
from torch import nn
from torch.autograd import forward_ad

from lstm_fused import FusedLSTM, FusedLSTMCell

B, I, H = 4, 3, 5  # noqa: E741
OPTIONS = {"default": {}} | {name: module_options(name) for name in CELL_MODULE_OPTIONS}
OPTIONS["all"] = module_options(
    "layer_norm",
    "recurrent_dropout",
    "weight_dropout",
    "zoneout_h",
    "zoneout_c",
    "peephole",
    "open_gates",
    "activation",
)
OPTIONS["all"] |= {"forget_bias": 1.0, "eps": 1e-3}


def gradients(results, leaves):
    loss = sum((x * random(*x.shape, seed=9 + k).to(x)).sum() for k, x in enumerate(results))
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(B,), ()])
def test_equals_nn_lstm_cell(batch, bias, device):
    torch.manual_seed(5)
    theirs = nn.LSTMCell(I, H, bias, device, torch.float64)
    torch.manual_seed(5)
    ours = FusedLSTMCell(I, H, bias, device, torch.float64)
    assert_same_bits(ours.state_dict(), theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = random(*batch, I, seed=1).to(device).requires_grad_()
    hx = tuple(random(*batch, H, seed=2 + k).to(device).requires_grad_() for k in range(2))
    assert_close(ours(x), theirs(x))
    actual, expected = ours(x, hx), theirs(x, hx)
    assert_close(actual, expected)
    assert_close(
        gradients(actual, [x, *hx, *ours.parameters()]),
        gradients(expected, [x, *hx, *theirs.parameters()]),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_loop_equals_the_layer(options, training, device):
    T = 5
    layer = FusedLSTM(I, H, **options, dtype=torch.float64, device=device).train(training)
    cell = FusedLSTMCell(I, H, **options, dtype=torch.float64, device=device).train(training)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    x = random(T, B, I, seed=1).to(device).requires_grad_()
    hx = tuple(random(B, H, seed=2 + k).to(device).requires_grad_() for k in range(2))

    output, (h_n, c_n) = layer(x, (hx[0].unsqueeze(0), hx[1].unsqueeze(0)), seed=33)
    outputs, (h, c) = [], hx
    for t in range(T):
        h, c = cell(x[t], (h, c), seed=33, step=t)
        outputs.append(h)
    actual, expected = (torch.stack(outputs), h, c), (output, h_n[0], c_n[0])
    assert_close(actual, expected)
    assert_close(
        gradients(actual, [x, *hx, *cell.parameters()]),
        gradients(expected, [x, *hx, *layer.parameters()]),
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_loop_with_resets_equals_the_layer(options):
    """The parameters random, those too that start as 0 or 1; and a step of one sequence without a batch."""
    T = 6
    layer, cell = FusedLSTM(I, H, **options, dtype=torch.float64), FusedLSTMCell(I, H, **options, dtype=torch.float64)
    with torch.no_grad():
        for k, parameter in enumerate(layer.parameters()):
            parameter.add_(random(*parameter.shape, seed=k, scale=0.3))
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    x, reset = random(T, B, I, seed=1), torch.arange(T * B).reshape(T, B) % 5 == 0
    state, outputs = None, []
    for t in range(T):
        state = cell(x[t], state, reset=reset[t], seed=3, step=t)
        outputs.append(state[0])
    output, (h_n, c_n) = layer(x, reset=reset, seed=3)
    assert_close((torch.stack(outputs), *state), (output, h_n[0], c_n[0]))
    one = cell(x[0, 0], (state[0][0], state[1][0]), reset=torch.tensor(True), seed=3)
    assert_close(one, tuple(r[0] for r in cell(x[0, :1], seed=3)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_without_gradients(options, device):
    """The same numbers, for a state in a tuple and in a list."""
    cell = FusedLSTMCell(I, H, **options, device=device).eval()
    x, h, c = (random(B, size, seed=size + k).float().to(device) for k, size in enumerate((I, H, H)))
    expected = [result.detach() for result in cell(x, (h, c))]
    for inference in (torch.no_grad(), torch.inference_mode()):
        with inference:
            assert_same_bits(cell(x, (h, c)), expected)
            assert_same_bits(cell(x, [h, c]), expected)


def test_autocast_and_tangents_without_gradients(device):
    """More than the op has to run, although autograd is off."""
    cell = FusedLSTMCell(I, H, device=device)
    x, h, c = (random(B, size, seed=size).float().to(device) for size in (I, H, H))
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        halves = cell.bfloat16()(x.bfloat16(), (h.bfloat16(), c.bfloat16()))
        assert [result.dtype for result in halves] == [torch.float32] * 2
    with torch.no_grad(), forward_ad.dual_level():
        results = cell.float()(forward_ad.make_dual(x, x), (h, c))
        assert all(forward_ad.unpack_dual(result).tangent is not None for result in results)


def test_seeds(device):
    cell = FusedLSTMCell(I, H, zoneout=0.5, device=device)
    x = random(B, I, seed=1).float().to(device)
    hx = (torch.full((B, H), 9.0, device=device),) * 2
    torch.manual_seed(3)
    first, second = cell(x, hx)[0], cell(x, hx)[0]
    torch.manual_seed(3)
    assert_same_bits([cell(x, hx)[0]], [first])
    assert not torch.equal(first, second)
    assert_same_bits(cell(x, hx, seed=4), cell(x, hx, seed=torch.tensor(4, device=device)))
    assert not torch.equal(cell(x, hx, seed=4)[0], cell(x, hx, seed=4, step=1)[0])
    cell.eval()
    before = torch.get_rng_state()
    assert_same_bits(cell(x, hx), cell(x, hx, seed=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_new_parameters_and_repr(device):
    cell = FusedLSTMCell(I, H, layer_norm=True, forget_bias=2.0, device=device)
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c"]
    assert sorted(cell.state_dict()) == sorted(names)
    assert ((cell.bias_ih + cell.bias_hh)[H : 2 * H] == 2).all()
    assert cell.weight_ln_hh.shape == (4 * H,)
    assert cell.bias_ln_c.shape == (H,)
    assert repr(cell) == "FusedLSTMCell(3, 5, layer_norm='ba2016', forget_bias=2.0)"
    assert repr(FusedLSTMCell(3, 5, bias=False)) == "FusedLSTMCell(3, 5, bias=False)"
