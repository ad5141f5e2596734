"""The folder of a plan with made-up results of its runs, to be reported on."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_modules.experiments.plan import Plan

STEPS = 10  # an epoch


def make_plan(folder: Path, figures: Mapping[str, Mapping[int, Mapping[str, Any] | None]], **options: Any) -> Plan:
    """A plan with the figures of the best weights by variant and seed; ``None`` for a run that was stopped."""
    seeds = max(seed for runs in figures.values() for seed in runs)
    variants = {name: [f"--model.{name}=1"] for name in figures}
    plan = Plan(folder, "ablate", ("-c", "sentiment"), {}, variants, tuple(variants), seeds)
    plan = Plan(**vars(plan) | options)
    plan.write()
    for variant, runs in figures.items():
        for seed, best in runs.items():
            write_run(folder / variant / f"seed_{seed}" / "version_0", best)
    return plan


def write_run(folder: Path, best: Mapping[str, Any] | None, epochs: int = 4) -> None:
    """The summary and the curves of a run whose loss falls to that of its second epoch, and rises then."""
    folder.mkdir(parents=True)
    if best is None:
        (folder / "summary.json").write_text(json.dumps({"stop_reason": "interrupted", "finished": False}))
        return
    best = {"epoch": 1, "step": 2 * STEPS, "val_loss": 0.5, "val_loss_on_train": 0.4, **best}
    summary = {
        "monitor": "val_accuracy",
        "mode": "max",
        "loss_unit": "nats an example",
        "parameters": {"decayed": {"a": 100}, "spared": {"b": 10}},
        "epochs": epochs,
        "steps": epochs * STEPS,
        "seconds": 12.5,
        "ms_a_step": 3.25,
        "stop_reason": f"the limit of {epochs} epochs",
        "best": best,
        "test": {"test_accuracy": best.pop("test_accuracy", best.get("val_accuracy"))},
        "finished": True,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("trainer:\n  logger: null\n")
    rows = []
    for epoch in range(epochs):
        away = abs(epoch - 1) * 0.1
        on_train = best["val_loss_on_train"] - 0.1 * (epoch - 1)
        rows.append((epoch, (epoch + 1) * STEPS, on_train + 0.1, best["val_loss"] + away, on_train))
    with open(folder / "epochs.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("epoch", "step", "train_loss", "val_loss", "val_loss_on_train"), *rows])
