"""Lightning's precisions on the CPU: those supported have exact figures and resume exactly; others are errors."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import Result
from testing import of_peer
from torch import nn

from lightning_modules import load_run
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.models.metrics import Mean, PreciseMetricCollection
from lightning_modules.models.optimizers import build_optimizer, partition_parameters

RUNS = Path("runs/char_lm")
DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16, "bf16-mixed": torch.float32}


def torch_has(precision: str, lstm: bool = False) -> bool:
    """Whether torch's own layers are trained in this precision on this CPU."""
    dtype = DTYPES[precision] if precision.endswith("-true") else None
    embedding, layer, linear = nn.Embedding(3, 4), nn.LSTM(4, 4), nn.Linear(4, 4)

    def train() -> bool:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
            output = embedding.to(dtype)(torch.tensor([[0, 1], [1, 2]]))
            if lstm:
                output, _ = layer.to(dtype)(output)
            linear.to(dtype)(output).float().logsumexp(-1).sum().backward()
        return True

    return of_peer(train) is True


@pytest.mark.parametrize(
    "precision",
    ["64-true", "bf16-true", *(pytest.param(name, marks=pytest.mark.slow) for name in ("16-true", "bf16-mixed"))],
)
def test_a_precision_through_every_command(
    command: Callable[..., Result], small_fit: Callable[..., Result], precision: str
) -> None:
    options = (f"--trainer.precision={precision}", "--model.lr_schedule=constant")
    result = small_fit(*options)
    if not torch_has(precision):
        assert f"trainer.precision '{precision}' does not run on this CPU" in result.error
        assert not RUNS.exists()
        return
    assert result.code == 0, result.err
    whole = RUNS / "version_0"
    summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    weights = load_checkpoint(whole / "checkpoints" / "best.ckpt")["state_dict"]
    assert {value.dtype for value in weights.values()} == {DTYPES[precision]}

    # What the run says of itself is true to four digits, which half precision does not have: a mean of its own
    # predictions by a run in float64, and of float32 where the layers compute in half precision by themselves.
    loaded = load_run(whole)
    logits = []
    state = None
    data = loaded.data
    data.setup("test")
    if precision.endswith("-true"):
        loaded.task.to(DTYPES[precision])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        for tokens, targets in data.test_dataloader():
            scores, state = loaded.task(tokens, state)
            logits.append(scores.double().log_softmax(-1).gather(-1, targets[..., None]).flatten())
    assert summary["test"]["test_loss"] == pytest.approx(-float(torch.cat(logits).mean()), rel=1e-4)
    assert summary["test"]["test_loss"] < 2.9  # log(18 characters)

    assert small_fit(*options, "--trainer.max_epochs=1").code == 0
    resumed = command("fit", "-c", RUNS / "version_1", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert resumed.code == 0, resumed.err
    last = [load_checkpoint(RUNS / f"version_{k}" / "checkpoints" / "last.ckpt")["state_dict"] for k in (0, 2)]
    for name, value in last[0].items():
        assert value.equal(last[1][name]), name

    test = command("test", "-c", whole, "--ckpt_path=best")
    assert f"{summary['test']['test_loss']:.12f}"[:6] in test.out
    predict = command("predict", "-c", whole, "--ckpt_path=best")
    assert predict.code == 0, predict.err
    perplexity = float(predict.out.partition("perplexity ")[2].partition(",")[0])
    assert math.log(perplexity) == pytest.approx(summary["test"]["test_loss"], rel=0.05)  # one column instead of four
    assert len(command("sample", whole, "--length=20", "--seed=1").out) == 21
    # Going on in another precision is allowed.
    other = command("fit", "-c", whole, "--ckpt_path=last", "--trainer.max_epochs=3", "--trainer.precision=32-true")
    assert other.code == 0, other.err


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-true", "bf16-true"])
def test_a_layer_that_this_cpu_cannot_run_is_told_before_anything_is_made(
    small_fit: Callable[..., Result], precision: str
) -> None:
    result = small_fit("--model.recurrent=torch", f"--trainer.precision={precision}", "--trainer.max_epochs=1")
    if torch_has(precision, lstm=True):
        assert result.code == 0, result.err
    else:
        assert result.error.startswith(f"trainer.precision '{precision}' does not run on this CPU (")
        assert result.error.endswith("'32-true' does")
        assert not RUNS.exists()


def test_sums_of_metrics_stay_exact_in_half_precision() -> None:
    module = nn.Module()
    module.metrics = PreciseMetricCollection({"loss": Mean()})
    module.to(dtype=torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)  # as it is inside a step
    try:
        module.metrics["loss"].to("cpu")  # as Lightning does there
        for _ in range(1000):
            module.metrics.update(torch.tensor(1.2345, dtype=torch.float32), weight=999)
        module.metrics.update(torch.tensor(5.0), weight=999)
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(module.metrics.compute()["loss"]) == pytest.approx((1.2345 * 1000 + 5) / 1001, rel=1e-5)
    module.metrics.reset()
    assert module.metrics["loss"].mean_value.dtype == torch.float32
    module.to(dtype=torch.float64)
    assert module.metrics["loss"].mean_value.dtype == torch.float64


def test_an_eps_that_half_precision_rounds_to_zero_is_another() -> None:
    def optimizer(dtype: torch.dtype, **arguments: float) -> torch.optim.Optimizer:
        spec = {"class_path": "AdamW", "init_args": arguments}
        partition = partition_parameters(nn.Linear(2, 2).to(dtype))
        return build_optimizer(partition, spec, lr=0.1, weight_decay=0.0)

    assert optimizer(torch.float16).defaults["eps"] == 1e-4
    assert optimizer(torch.float16, eps=1e-3).defaults["eps"] == 1e-3
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert optimizer(dtype).defaults["eps"] == 1e-8
    with pytest.raises(ValueError, match=r"optimizer.eps must be above 0 in torch.float16, got 1e-09"):
        optimizer(torch.float16, eps=1e-9)
