"""torch.autocast and gradient scaling."""

import copy

import pytest
import torch
from testing import MODULE_SETS, TOLERANCE, assert_close, assert_same_bits, of_peer, random
from torch import nn
from torch.utils._pytree import tree_leaves

from lstm_fused import FusedLSTM, FusedLSTMCell


@pytest.mark.parametrize("options", MODULE_SETS.values(), ids=MODULE_SETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(options, dtype):
    """What a layer in autocast's dtype gives, to weights and inputs of whatever dtype; a cell's step is in float32."""
    lstm = FusedLSTM(5, 7, num_layers=2, **options).eval()
    half, step = copy.deepcopy(lstm).to(dtype), FusedLSTMCell(5, 7)
    x = random(4, 3, 5, seed=1).float()
    for given in (x, x.to(dtype), x.to(torch.bfloat16)):
        given = given.requires_grad_()
        lstm.zero_grad()
        half.zero_grad()
        with torch.autocast("cpu", dtype):
            got, state = lstm(given)
            cell = step(given[0])
            primal, _ = torch.func.jvp(step, (given.detach()[0],), (given.detach()[0],))
        want, _ = half(given.to(dtype))
        assert_same_bits(cell, step(given[0].float()))
        torch.testing.assert_close(primal, cell, rtol=1e-6, atol=1e-6)
        assert {y.dtype for y in (got, *state)} == {dtype}
        assert {y.dtype for y in cell} == {torch.float32}
        assert_same_bits([got], [want])
        got.sum().backward()
        want.sum().backward()
        for mine, theirs in zip(lstm.parameters(), half.parameters(), strict=True):
            assert mine.grad.dtype == torch.float32
            assert_same_bits([mine.grad.to(dtype)], [theirs.grad])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs"), [(FusedLSTM, nn.LSTM), (FusedLSTMCell, nn.LSTMCell)], ids=["layer", "cell"]
)
def test_autocast_is_that_of_nn_lstm(ours, theirs, dtype):
    """The dtypes of the results; their numbers, of both, are those of float64. nn.LSTM's where it has autocast."""
    x = random(4, 3, 5, seed=1)
    x, kept = (x, dtype) if ours is FusedLSTM else (x[0], torch.float32)
    exact = theirs(5, 7, dtype=torch.float64)
    expected = [y.detach() for y in tree_leaves(exact(x))]

    def results(kind):
        module = kind(5, 7)
        module.load_state_dict(exact.state_dict())
        with torch.autocast("cpu", dtype):
            return tree_leaves(module(x.float()))

    mine, peer = results(ours), of_peer(lambda: results(theirs))
    assert [y.dtype for y in mine] == [kept] * len(mine)
    assert_close([y.detach().double() for y in mine], expected, TOLERANCE[dtype])
    if peer is None:
        pytest.skip(f"ours is right; {theirs.__name__} has no autocast to {dtype} on this CPU to compare it with")
    assert [y.dtype for y in mine] == [y.dtype for y in peer]
    assert_close([y.detach().double() for y in peer], expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_with_a_gradient_scaler(dtype):
    """Around the LSTM nothing but sums and products of elements, which torch has in half precision on every CPU."""
    lstm, head = FusedLSTM(3, 5, 2, layer_norm=True), torch.nn.Parameter(torch.ones(5))
    parameters = [*lstm.parameters(), head]
    optimizer, scaler = torch.optim.SGD(parameters, lr=0.1), torch.amp.GradScaler("cpu")
    x, losses = random(6, 4, 3, seed=1).float(), []
    for _ in range(40):  # the first few only lower the scale
        with torch.autocast("cpu", dtype):
            loss = ((lstm(x)[0] * head).float().sum(-1) - x.cumsum(0)[..., 0]).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
