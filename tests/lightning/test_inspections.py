"""The looks into a run: what they say is computed from it, and another run makes them say something else."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import SMALL, Result, make_text

from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.cli import main
from lightning_modules.inspections.diagnose import Diagnosis, diagnose, read_config, read_curves
from lightning_modules.inspections.inside import at_work, initial_weights, valid_batch
from lightning_modules.inspections.weights import AT_START, Weights, draw_dropout, findings_of, normalization
from lightning_modules.loading import load_run
from lightning_modules.runs import read_summary

OPTIONS = {
    "model": {"init_args": {"recurrent": "fused", "dropout": 0.2, "weight_decay": 1e-4, "lr": 1e-2, "hidden_size": 64}},
    "trainer": {"max_epochs": 10, "gradient_clip_val": 1.0},
    "early_stopping": {"monitor": "val_loss", "mode": "min", "patience": 20},
}


def write_run(
    folder: Path, train: list[float], valid: list[float], stop: str = "the limit of 10 epochs", **figures: Any
) -> Path:
    """A run's folder with these losses an epoch, as the CSV logger leaves them: validation first, then training."""
    folder.mkdir(parents=True)
    names = ["epoch", "step", "train_loss_step", "train_loss_epoch", "val_loss", *figures]
    with open(folder / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        for epoch, (at_train, at_valid) in enumerate(zip(train, valid, strict=True)):
            step = 10 * epoch + 9
            table.writerow({"epoch": epoch, "step": step, "train_loss_step": at_train})
            others = {name: values[epoch] for name, values in figures.items()}
            table.writerow({"epoch": epoch, "step": step, "val_loss": at_valid} | others)
            table.writerow({"epoch": epoch, "step": step, "train_loss_epoch": at_train})
    (folder / "config.yaml").write_text(yaml.safe_dump(OPTIONS), encoding="utf-8")
    summary = {"stop_reason": stop, "epochs": len(train), "seconds": 60.0, "loss_unit": "nats a token"}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def judge(folder: Path) -> Diagnosis:
    return diagnose(read_curves(folder), read_config(folder), read_summary(folder))


def good(n: int = 10) -> tuple[list[float], list[float]]:
    valid = [1.0 + 2.0 * math.exp(-0.9 * k) for k in range(n)]
    return [value - 0.05 for value in valid], valid


# diagnose -------------------------------------------------------------------------------------------------------------


def test_a_good_run_is_fine(tmp_path: Path) -> None:
    found = judge(write_run(tmp_path / "run", *good()))
    assert (found.verdict, found.since, found.advice) == ("fine", None, [])
    assert "0.0" in found.table()
    assert "5%" in found.findings[-1]  # the gap


def test_an_overfitted_run_is_told_with_its_epoch(tmp_path: Path) -> None:
    train = [3.0, 2.0, 1.5, 1.1, 0.8, 0.5, 0.3, 0.2]
    valid = [3.0, 2.1, 1.7, 1.5, 1.6, 1.8, 2.1, 2.5]
    found = judge(write_run(tmp_path / "run", train, valid))
    assert (found.verdict, found.since) == ("overfitted", 4)
    assert "From epoch 4 on the validation loss rose: from 1.5 to 2.5 (+67%)" in found.text()
    assert "dropout 0.2" in found.text()  # measured with it, so that the gap is wider
    assert "--model.dropout 0.4 (it is 0.2)" in found.text()
    assert "--model.weight_decay 0.001 (it is 0.0001)" in found.text()
    assert "The last 4 of 8 validations improved nothing, 30 of 60 s." in found.text()
    assert "--early_stopping.patience 2 (it is 20)" in found.text()


def test_a_wide_gap_alone_is_overfitting(tmp_path: Path) -> None:
    valid = [3.0, 2.0, 1.6, 1.5, 1.49, 1.485]
    found = judge(write_run(tmp_path / "run", [2.9, 1.8, 1.3, 1.0, 0.8, 0.6], valid))
    assert (found.verdict, found.since) == ("overfitted", 3)


def test_next_to_no_loss_is_no_overfitting(tmp_path: Path) -> None:
    """Twice as much of next to nothing is next to nothing."""
    found = judge(write_run(tmp_path / "run", [2.0, 0.1, 0.001, 0.0005], [1.0, 0.05, 0.002, 0.002]))
    assert found.verdict == "fine"


def test_a_run_that_learned_little_is_underfitted(tmp_path: Path) -> None:
    found = judge(write_run(tmp_path / "run", [2.31, 2.29, 2.28, 2.28], [2.3, 2.29, 2.285, 2.284]))
    assert (found.verdict, found.since) == ("underfitted", 0)
    assert "--model.dropout 0.1 (it is 0.2)" in found.text()
    assert "--model.hidden_size 128 (it is 64)" in found.text()


def test_a_run_that_ended_too_soon_is_underfitted(tmp_path: Path) -> None:
    valid = [3.0 - 0.2 * k for k in range(8)]
    found = judge(write_run(tmp_path / "run", valid, valid, stop="the limit of 8 epochs"))
    assert (found.verdict, found.since) == ("underfitted", 7)
    assert "still falling when the run ended at the limit of 8 epochs" in found.text()
    assert "--trainer.max_epochs 20 (it was 10)" in found.text()


def test_a_forecast_worse_than_the_last_value_is_underfitted(tmp_path: Path) -> None:
    train, valid = good()
    folder = write_run(tmp_path / "run", train, valid, val_mae=[2.0] * 10, val_mae_persistence=[1.5] * 10)
    found = judge(folder)
    assert found.verdict == "underfitted"
    assert "mae 2 against 1.5" in found.text()


@pytest.mark.parametrize("curve", ["valid", "train"])
def test_a_run_with_peaks_is_unstable(tmp_path: Path, curve: str) -> None:
    train, valid = good()
    (train if curve == "train" else valid)[5] += 1.5
    found = judge(write_run(tmp_path / "run", train, valid))
    assert (found.verdict, found.since, found.peaks) == ("unstable", 5, [5])
    assert "--trainer.gradient_clip_val 0.25 (it is 1.0)" in found.text()
    assert "--model.lr 0.0033 (it is 0.01)" in found.text()
    assert "layer norm" not in found.text()  # the fused layer has it by default


def test_a_training_loss_that_is_lost_again_is_unstable(tmp_path: Path) -> None:
    train = [3.0, 1.5, 1.2, 2.5, 2.6]
    found = judge(write_run(tmp_path / "run", train, [value + 0.1 for value in train]))
    assert (found.verdict, found.since) == ("unstable", 2)


def test_a_loss_that_is_no_number_is_unstable(tmp_path: Path) -> None:
    train, valid = good()
    train[6] = math.nan
    found = judge(write_run(tmp_path / "run", train, valid))
    assert (found.verdict, found.since) == ("unstable", 6)
    found = judge(write_run(tmp_path / "first", [math.inf], [math.nan]))
    assert (found.verdict, found.since) == ("unstable", 0)


def test_the_figure_that_judges_may_be_best_elsewhere(tmp_path: Path) -> None:
    config = OPTIONS | {"early_stopping": {"monitor": "val_f1", "mode": "max", "patience": 5}}
    folder = write_run(tmp_path / "run", *good(4), val_f1=[0.1, 0.7, 0.5, 0.4])
    found = diagnose(read_curves(folder), config, {})
    assert (
        "val_f1, which the run is judged by, was best in epoch 1: 0.7 (0.4 where the loss was lowest)" in found.text()
    )


def test_the_command_diagnoses_runs_that_differ(command: Callable[..., Result], tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a/version_0", [3.0, 1.0, 0.5, 0.2], [3.0, 1.5, 1.8, 2.2])
    write_run(tmp_path / "runs/b/version_0", *good())
    said = [command("diagnose", f"runs/{name}/version_0") for name in "ab"]
    assert [result.code for result in said] == [0, 0]
    assert [result.out.splitlines()[0] for result in said] == [
        "Verdict: overfitted, from epoch 2 on (counted from 0).",
        "Verdict: fine.",
    ]
    for name in "ab":
        folder = tmp_path / f"runs/{name}/version_0"
        assert (folder / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "diagnosis.md").read_text().startswith(f"# runs/{name}/version_0")
    assert "no run's folder" in command("diagnose", "runs/c").error
    (tmp_path / "runs/a/version_0/metrics.csv").write_text("epoch,step,train_loss_step\n0,9,1.5\n")
    assert "must have validations (val_loss)" in command("diagnose", "runs/a/version_0").error


# weights --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model's run of two epochs, its text beside it."""
    return fit(tmp_path_factory.mktemp("language"), "char_lm", *SMALL)


def fit(folder: Path, config: str, *options: str) -> Path:
    """The folder of a run of ``config``, on the small text where it reads one."""
    if config == "char_lm":
        (folder / "text.txt").write_text(make_text(), encoding="utf-8")
        options = ("--data.path", str(folder / "text.txt"), *options)
    arguments = ["--runs", str(folder / "runs"), "--name", "x", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "-c", config, *arguments, *options]) == 0
    return folder / "runs/x/version_0"


SHORT = ("--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=0")


@pytest.mark.parametrize("config", ["char_lm", "sentiment"])
def test_the_weights_at_the_start_are_made_again(tmp_path: Path, config: str) -> None:
    """Of a run that changes nothing (its learning rate is 0) they are the weights at the end."""
    small = ("--model.hidden_size=8", "--model.embedding_size=6", "--model.lr=0", "--seed_everything=7")
    folder = fit(tmp_path, config, *small, *SHORT)
    generator = torch.get_rng_state()
    found, state = initial_weights(folder, "last"), load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]
    assert torch.equal(torch.get_rng_state(), generator)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_findings_about_weights_are_computed() -> None:
    def some(label: str, scale: float, weight_decay: float | None) -> Weights:
        w = torch.linspace(-scale, scale, 101)
        return Weights(label, {"a.weight": w, "b.bias": 9 * torch.ones(3)}, {"a.weight"}, weight_decay)

    start, wide, narrow = some(AT_START, 0.1, None), some("off", 0.2, 0.0), some("on", 0.1, 0.1)
    said = "\n".join(findings_of([start, wide, narrow]))
    assert "off: of 1 groups of decayed weights 1 became wider in training; a.weight by +100%" in said
    assert "The smallest weights are those of on: 50.0% below those of off, as its weight decay" in said
    said = "\n".join(findings_of([some("off", 0.1, 0.0), some("on", 0.4, 0.1)]))
    assert "those of off: 75.0% below those of on, although the weight decay of on is the largest" in said


def test_dropout_is_seen(tmp_path: Path) -> None:
    share, said = draw_dropout(tmp_path / "dropout.png", torch.ones(20, 50), 0.2)
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 1000) ** 0.5
    assert said.startswith(f"Dropout 0.2 of 20 steps x 50 units dropped {share:.1%}")
    assert (tmp_path / "dropout.png").stat().st_size > 1000


def test_layer_norm_is_seen_in_the_run(language_run: Path) -> None:
    loaded = load_run(language_run)
    work = at_work(loaded.task, valid_batch(loaded))
    found = normalization(work)
    assert found.before.shape == (20 * 4, 4 * 12)
    torch.testing.assert_close(found.after.mean(-1), torch.zeros(80), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.after.std(-1, correction=0), torch.ones(80), atol=1e-3, rtol=0)


def test_the_command_shows_weights(command: Callable[..., Result], language_run: Path, tmp_path: Path) -> None:
    result = command("weights", language_run, "--output", tmp_path)
    assert result.code == 0, result.err
    assert "at the start" in result.out
    assert "x/version_0: of 3 groups of decayed weights" in result.out
    assert "dropped" in result.out
    assert {"weights.png", "dropout.png", "layer_norm.png", "weights.md"} <= {file.name for file in tmp_path.iterdir()}
    assert "rate must be above 0 and below 1, got 1.0" in command("weights", language_run, "--rate", "1").error
