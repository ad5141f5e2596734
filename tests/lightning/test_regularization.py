"""The regularizers as functions: against torch, against Lightning, and against finite differences."""

import random
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.nn import functional as F

from lightning_modules.regularization import (
    EarlyStoppingMonitor,
    dropout,
    dropout_backward,
    l2_gradient,
    l2_penalty,
    layer_norm,
    layer_norm_backward,
    toy_sequences,
)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.75])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    x = torch.randn(300, 400, dtype=torch.float64) + 3
    output, mask = dropout(x, rate, seed=1)
    deviation = (rate * (1 - rate) / x.numel()) ** 0.5
    assert abs((output == 0).double().mean() - rate) < 4 * deviation
    assert abs(output.mean() - x.mean()) < 4 * (x.square().mean() * rate / (1 - rate) / x.numel()) ** 0.5
    torch.testing.assert_close(output, torch.where(mask, x / (1 - rate), torch.zeros_like(x)))
    assert mask.equal(dropout(x, rate, seed=1).mask)
    assert not mask.equal(dropout(x, rate, seed=2).mask)


def test_dropout_is_the_identity_in_eval_and_at_rate_zero() -> None:
    x = torch.randn(4, 5)
    assert dropout(x, 0.5, training=False).output is x
    assert dropout(x, 0.0).output is x
    assert dropout_backward(x, None, 0.0) is x
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
            dropout(x, rate)


def test_the_gradient_of_dropout_passes_where_the_mask_does() -> None:
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    output, mask = dropout(x, 0.4, seed=3)
    d_output = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, x, d_output)
    torch.testing.assert_close(dropout_backward(d_output, mask, 0.4), expected)
    assert expected[~mask].eq(0).all()
    assert torch.autograd.gradcheck(lambda x: dropout(x, 0.4, seed=3).output, x)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (4, 1)])
def test_layer_norm_is_that_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (5 * torch.randn(shape, dtype=torch.float64) + 2).requires_grad_()
    gain, bias = (torch.randn(shape[-1], dtype=torch.float64, requires_grad=True) for _ in range(2))
    output, normalized, rstd = layer_norm(x, gain, bias)
    expected = F.layer_norm(x, shape[-1:], gain, bias, 1e-5)
    torch.testing.assert_close(output, expected)
    if shape[-1] > 1:
        torch.testing.assert_close(normalized.mean(-1), torch.zeros(shape[:-1], dtype=torch.float64))
        torch.testing.assert_close(normalized.var(-1, correction=0), torch.ones(shape[:-1]).double(), atol=1e-4, rtol=0)
    d_output = torch.randn_like(output)
    gradients = torch.autograd.grad(expected, (x, gain, bias), d_output)
    rows = (d_output.reshape(-1, shape[-1]), normalized.reshape(-1, shape[-1]), rstd.reshape(-1, 1))
    d_x, d_gain, d_bias = layer_norm_backward(*rows, gain)
    for ours, theirs in zip((d_x.reshape(shape), d_gain, d_bias), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_layer_norm_numerically_and_over_features_alone() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    gain, bias = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *given: layer_norm(*given).output, (x, gain, bias))
    together = layer_norm(x, gain, bias).output
    alone = torch.stack([layer_norm(row, gain, bias).output for row in x])
    torch.testing.assert_close(together, alone)


def test_the_l2_penalty_is_proportional_and_its_gradient_is_lambda_w() -> None:
    weights = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    penalty = l2_penalty(weights, 0.3)
    torch.testing.assert_close(penalty, 0.15 * sum(w.square().sum() for w in weights))
    torch.testing.assert_close(l2_penalty(weights, 0.6), 2 * penalty)
    assert float(l2_penalty(weights, 0.0)) == float(l2_penalty([], 1.0)) == 0
    for weight, gradient in zip(weights, torch.autograd.grad(penalty, weights), strict=True):
        torch.testing.assert_close(gradient, l2_gradient(weight, 0.3))
    assert torch.autograd.gradcheck(lambda *w: l2_penalty(w, 0.3), weights)


def test_early_stopping_by_hand() -> None:
    monitor = EarlyStoppingMonitor(patience=3)
    state = {"w": torch.zeros(1)}
    improved = []
    for loss in (2.51, 2.10, 1.80, 1.70, 1.75, 1.85, 2.00, 2.15):
        state["w"].fill_(loss)
        improved.append(monitor.step(loss, state))
        if monitor.should_stop:
            break
    assert improved == [True] * 4 + [False] * 3
    assert (monitor.epochs - 1, monitor.best_epoch, monitor.best) == (6, 3, 1.70)
    assert float(monitor.best_state["w"]) == pytest.approx(1.70)  # a copy, not the state that went on
    assert "no improvement for 3 epochs since epoch 3: 1.7" in monitor.reason


def test_a_tie_does_not_improve_and_the_counter_is_reset() -> None:
    monitor = EarlyStoppingMonitor(patience=2, mode="max", min_delta=0.1)
    assert [monitor.step(value) for value in (1.0, 1.0, 1.2, 1.25)] == [True, False, True, False]
    assert (monitor.waited, monitor.should_stop) == (1, False)
    monitor.step(1.29)
    assert monitor.should_stop


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patience": 0}, "patience"), ({"min_delta": -1.0}, "min_delta"), ({"mode": "up"}, "mode must be")],
)
def test_bad_arguments_of_the_monitor_are_told(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStoppingMonitor(**options)


@pytest.mark.parametrize("seed", range(30))
def test_the_monitor_decides_as_lightning_does(seed: int) -> None:
    draw = random.Random(seed)
    options = {
        "patience": draw.randint(1, 4),
        "min_delta": draw.choice([0.0, 0.05]),
        "mode": draw.choice(["min", "max"]),
    }
    losses = [round(draw.gauss(0, 0.3), 2) for _ in range(30)]
    if seed % 5 == 0:
        losses[draw.randint(0, 29)] = float("nan")
    ours, theirs = EarlyStoppingMonitor(**options), EarlyStopping("loss", **options)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(reduce_boolean_decision=lambda stop, all: stop),
        should_stop=False, fast_dev_run=False, world_size=1, global_rank=0, current_epoch=0,
    )  # fmt: skip
    for epoch, loss in enumerate(losses):
        ours.step(loss)
        trainer.callback_metrics, trainer.current_epoch = {"loss": torch.tensor(loss, dtype=torch.float64)}, epoch
        theirs._run_early_stopping_check(trainer)
        assert ours.should_stop == trainer.should_stop, epoch
        if ours.should_stop:
            break
    assert ours.best == pytest.approx(float(theirs.best_score))


def test_the_toy_data_set() -> None:
    data = toy_sequences(12, 20, 500, seed=4)
    tokens, following = data.tensors
    assert tokens.shape == following.shape == (500, 12)
    assert tokens[:, 1:].equal(following[:, :-1])
    assert (int(tokens.min()), int(tokens.max())) == (0, 19)
    assert all(a.equal(b) for a, b in zip(data.tensors, toy_sequences(12, 20, 500, seed=4).tensors, strict=True))
    steps = (following - tokens) % 20
    assert (steps.mode(1).values <= 3).double().mean() > 0.95  # a sequence's own step
    with pytest.raises(ValueError, match="vocab_size must be at least 2, got 1"):
        toy_sequences(3, 1, 3)
