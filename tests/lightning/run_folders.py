"""What the folder of a language model's run says of it."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.checkpoints import load_checkpoint


def measured(run: Path) -> list[tuple[int, float]]:
    """Step and val_loss of every validation, as the CSV logger has written them."""
    return [(int(row["step"]) + 1, float(row["val_loss"])) for row in rows_of(run) if row.get("val_loss")]


def rows_of(run: Path) -> list[dict[str, str]]:
    """What the CSV logger has written, but for the number of the epoch."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "epoch"} for row in csv.DictReader(file)]


def figures_of(run: Path) -> dict[tuple[str, str], str]:
    """The CSV logger's figures by step and name."""
    rows = rows_of(run)
    return {(row["step"], name): value for row in rows for name, value in row.items() if value and name != "step"}


def points(run: Path) -> list[tuple[int, float]]:
    """Step and val_loss of every point of the learning curve."""
    rows = last(run)["callbacks"]["LearningCurves"]["epochs"]
    return [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]


def last(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / "last.ckpt")


def summary_of(run: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((run / "summary.json").read_text(), parse_constant=refuse)


def assert_same_weights(run: Path, other: Path) -> None:
    theirs = last(other)["state_dict"]
    for name, value in last(run)["state_dict"].items():
        assert value.equal(theirs[name]), name


def assert_is_judged_by_what_was_measured(run: Path, out: str, before: list[tuple[int, float]] = ()) -> None:
    """The best of a run is the lowest of what was measured, with its own figures, in every place that reports it."""
    summary, best = summary_of(run), load_checkpoint(run / "checkpoints" / "best.ckpt")
    step, loss = min([*before, *measured(run)], key=lambda point: point[1])
    assert summary["best"]["val_loss"] == pytest.approx(loss, abs=1e-6)
    assert (summary["best"]["step"], summary["best"]["epoch"]) == (best["global_step"], best["epoch"])
    assert summary["best"]["step"] == step
    assert summary["best_epoch"] == summary["best"]["epoch"]
    [(key, state)] = [item for item in best["callbacks"].items() if item[0].startswith("BestCheckpoint")]
    monitor = re.search(r"'monitor': '(\w+)'", key)[1]
    assert summary["best"][monitor] == float(state["best_model_score"])
    assert f"Best epoch {best['epoch']}, step {step}: " in out
    assert f"loss {summary['best']['val_loss']:.4f}" in out
    assert summary["best"]["val_ppl"] == pytest.approx(math.exp(loss), rel=1e-4)
