"""The looks into a run: what they say is computed from it, and another run makes them say something else."""

import csv
import importlib
import json
import math
import os
import random
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import SHORT_SAMPLE, SMALL, Result, make_reviews, make_text, undrawn
from testing import PATIENCE

from lightning_modules import data, tasks
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.cli import main
from lightning_modules.data.labeled_text import split_words, word_pattern
from lightning_modules.inspections import weights
from lightning_modules.inspections.diagnose import Diagnosis, diagnose, read_config, read_curves
from lightning_modules.inspections.export import BEGINNING, WITH_ONNX, WITH_TORCH, export, exportable
from lightning_modules.inspections.gates import Gates, as_lstm, draw_heatmaps, findings, followed, inputs_of, trace
from lightning_modules.inspections.gradients import Line, finding_of_inputs, flow_back, fresh_parts, parts_of
from lightning_modules.inspections.gradients import draw as draw_gradients
from lightning_modules.inspections.gradients import findings as gradient_findings
from lightning_modules.inspections.inside import at_work, initial_weights, valid_batch
from lightning_modules.inspections.weights import (
    AT_START,
    Weights,
    draw_dropout,
    findings_of,
    names_of_folders,
    normalization,
)
from lightning_modules.loading import load_run
from lightning_modules.runs import read_summary
from lstm_fused import LSTM, FusedLSTM

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


@pytest.mark.parametrize("verb", ["diagnose", "weights", "gates", "gradients", "export"])
def test_a_mistake_in_the_options_is_one_sentence(command: Callable[..., Result], verb: str) -> None:
    assert "--no-such-option" in command(verb, "run", "--no-such-option=1").error


# diagnose -------------------------------------------------------------------------------------------------------------


def test_a_good_run_is_fine(tmp_path: Path) -> None:
    found = judge(write_run(tmp_path / "run", *good()))
    assert (found.verdict, found.since, found.advice) == ("fine", None, [])
    assert "0.0" in found.table()
    assert "(5%) above the training loss" in found.text()
    assert "those of train_loss, measured in training, with dropout 0.2, while the weights changed" in found.text()


def test_an_overfitted_run_is_told_with_its_epoch(tmp_path: Path) -> None:
    train = [3.0, 2.0, 1.5, 1.1, 0.8, 0.5, 0.3, 0.2]
    valid = [3.0, 2.1, 1.7, 1.5, 1.6, 1.8, 2.1, 2.5]
    found = judge(write_run(tmp_path / "run", train, valid))
    assert (found.verdict, found.since) == ("overfitted", 4)
    assert "From epoch 4 on the validation loss rose: from 1.5 to 2.5 (+67%)" in found.text()
    assert "--model.dropout 0.4 (it is 0.2)" in found.text()
    assert "--model.weight_decay 0.001 (it is 0.0001)" in found.text()
    assert "The last 4 of 8 validations improved nothing, 30 of 60 s." in found.text()
    assert "--early_stopping.patience 2 (it is 20)" in found.text()


def test_a_wide_gap_alone_is_overfitting(tmp_path: Path) -> None:
    valid = [3.0, 2.0, 1.6, 1.5, 1.49, 1.485]
    found = judge(write_run(tmp_path / "run", [2.9, 1.8, 1.3, 1.0, 0.8, 0.6], valid))
    assert (found.verdict, found.since) == ("overfitted", 3)


def test_the_gap_is_that_to_the_loss_measured_as_the_validation_is(tmp_path: Path) -> None:
    """With dropout the training loss hides overfitting."""
    train, valid = [3.0, 2.0, 1.55, 1.51], [3.0, 2.0, 1.52, 1.5]
    hidden = judge(write_run(tmp_path / "a", train, valid))
    assert hidden.verdict == "fine"
    found = judge(write_run(tmp_path / "b", train, valid, val_loss_on_train=[2.9, 1.7, 1.1, 0.6]))
    assert (found.verdict, found.since) == ("overfitted", 2)
    assert "far below the validation loss: 0.6 against 1.5 at the end, 60% of it" in found.text()
    assert "those of val_loss_on_train, measured as the validation is" in found.text()
    assert "| val_loss_on_train |" in found.table()
    assert "val_loss_on_train" not in hidden.table()


def test_next_to_no_loss_is_no_overfitting(tmp_path: Path) -> None:
    """Twice as much of next to nothing is next to nothing."""
    found = judge(write_run(tmp_path / "run", [2.0, 0.1, 0.001, 0.0005], [1.0, 0.05, 0.002, 0.002]))
    assert found.verdict == "fine"


def test_a_run_that_learned_little_is_underfitted(tmp_path: Path) -> None:
    found = judge(write_run(tmp_path / "run", [2.31, 2.29, 2.28, 2.28], [2.3, 2.29, 2.285, 2.284]))
    assert (found.verdict, found.since) == ("underfitted", 0)
    assert "--model.dropout 0.1 (it is 0.2)" in found.text()
    assert "--model.hidden_size 128 (it is 64)" in found.text()
    assert "max_epochs" not in found.text()  # it was not getting anywhere


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


def test_a_first_loss_kept_late_is_not_that_of_the_start(tmp_path: Path) -> None:
    """The mean of the first epoch lies above it in any run that learns."""
    train, valid = [4.1, 1.2, 1.1, 1.08], [1.5, 1.2, 1.12, 1.1]
    folder = write_run(tmp_path / "run", train, valid)
    assert judge(folder).verdict == "fine"
    rows = (folder / "metrics.csv").read_text().splitlines()
    header, *others = (row for row in rows if not row.startswith("0,9,4.1"))  # the first loss that is left is 1.2
    (folder / "metrics.csv").write_text("\n".join([header, *others]) + "\n")
    summary = read_summary(folder) | {"data": {"valid_unigram_entropy": 3.0}}
    assert diagnose(read_curves(folder), read_config(folder), summary).verdict == "fine"
    (folder / "metrics.csv").write_text("\n".join([header, "0,0,1.2,,", *others]) + "\n")
    assert diagnose(read_curves(folder), read_config(folder), summary).verdict == "unstable"


def test_the_figure_that_judges_may_be_best_elsewhere(tmp_path: Path) -> None:
    config = OPTIONS | {"early_stopping": {"monitor": "val_f1", "mode": "max", "patience": 5}}
    folder = write_run(tmp_path / "run", *good(4), val_f1=[0.1, 0.7, 0.5, 0.4])
    found = diagnose(read_curves(folder), config, {})
    assert (
        "val_f1, which the run is judged by, was best in epoch 1: 0.7 (0.4 where the loss was lowest)" in found.text()
    )


# Runs that are made to fail, and one that is not: lines of text, and options.
MADE = {
    "overfitted": (
        16, "--model.hidden_size=64", "--model.dropout=0", "--model.lr=0.03", "--model.lr_schedule=constant",
        "--data.batch_size=4", "--trainer.max_epochs=8",
    ),
    "underfitted": (30, "--model.hidden_size=8", "--model.lr=1e-5", "--trainer.max_epochs=2"),
    "unstable": (30, "--model.hidden_size=8", "--model.lr=1", "--model.layer_norm=false", "--trainer.max_epochs=2"),
    "fine": (120, "--model.hidden_size=16", "--model.dropout=0.1", "--model.lr=0.05", "--trainer.max_epochs=5"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Diagnosis]:
    """What is said of a real run of each kind."""
    folder = tmp_path_factory.mktemp("made")
    small = (
        "--model.embedding_size=8", "--model.recurrent_dropout=0", "--model.warmup_steps=0", "--data.batch_size=8",
        "--data.sequence_length=20", "--data.split=[0.7,0.3,0]", "--trainer.log_every_n_steps=1",
        "--early_stopping.patience=100", "--trainer.callbacks+=lightning_modules.callbacks.TrainFigures",
    )  # fmt: skip
    return {
        name: judge(fit(folder / name, "char_lm", *small, *options, lines=lines))
        for name, (lines, *options) in MADE.items()
    }


@pytest.mark.parametrize("name", MADE)
def test_a_run_is_what_it_was_made_to_be(made_runs: dict[str, Diagnosis], name: str) -> None:
    found = made_runs[name]
    assert found.verdict == name, found.text()
    assert "those of val_loss_on_train" in found.text()
    said = {
        "overfitted": "The training loss lies far below the validation loss",
        "underfitted": "Little was learned",
        "unstable": "that the run began with, in epoch 0 to",
        "fine": "neither far above that nor rising away",
    }
    assert [other for other, words in said.items() if words in found.text()] == [name]


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


def fit(folder: Path, config: str, *options: str, lines: int = 120) -> Path:
    """The folder of a run of ``config`` on a small text, or on a few of them."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(make_text(lines), encoding="utf-8")
    (folder / "reviews.tsv").write_text(make_reviews(), encoding="utf-8")
    file, more = {"char_lm": ("text.txt", [SHORT_SAMPLE]), "sentiment": ("reviews.tsv", [])}[config]
    options = ("--data.path", str(folder / file), *more, *options)
    arguments = ["--runs", str(folder / "runs"), "--name", "x", "--trainer.enable_progress_bar", "false"]
    with undrawn():
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


def test_runs_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """Those of a plan end alike."""
    folders = [tmp_path / end for end in ("a/seed_1/version_0", "b/seed_1/version_0", "a/seed_1/version_1")]
    assert names_of_folders(folders[:2]) == ["a/seed_1/version_0", "b/seed_1/version_0"]
    assert names_of_folders(folders[::2]) == ["seed_1/version_0", "seed_1/version_1"]
    assert names_of_folders([folders[0]] * 2) == ["seed_1/version_0"] * 2


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
    larger = Weights("larger", {"a.weight": torch.ones(7)}, {"a.weight"}, 0.0)
    assert "larger: of" not in "\n".join(findings_of([start, narrow, larger]))  # it did not begin with this start


def test_what_a_picture_of_weights_leaves_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(weights, "save_figure", lambda figure, path: drawn.append(figure))
    for count in (6, 7):
        groups = {f"layer_{k}.weight": torch.linspace(-1, 1, 10 + k) for k in range(count)}
        weights.draw_weights(tmp_path / "weights.png", [Weights("run", groups, set(groups), 0.1)])
    assert [figure.get_suptitle() for figure in drawn] == ["", "the 6 largest of 7 groups of weights"]


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


# gates ----------------------------------------------------------------------------------------------------------------


def made_gates(steps: int = 60, units: int = 4) -> tuple[Gates, torch.Tensor]:
    """Gates of a half, but that the forget gate of unit 2 closes at every third step; and where that is."""
    values = 0.5 + 0.01 * torch.randn(steps, 4, units, generator=torch.Generator().manual_seed(0))
    at_a = (torch.arange(steps) % 3 == 0).float()
    values[:, 1, 2] = 0.8 - 0.75 * at_a
    values[:, 3, 1], values[:, 0, 3] = 0.99, 0.02
    return Gates(values, values), at_a


def test_what_gates_follow_is_found() -> None:
    gates, at_a = made_gates()
    found = followed(gates, {"b": 1 - at_a.roll(1), "a": at_a}, tokens=True)
    assert (found[0].gate, found[0].unit, found[0].what) == ("f", 2, "a")
    assert found[0].correlation == pytest.approx(-1)
    assert (found[0].there, found[0].elsewhere) == (pytest.approx(0.05), pytest.approx(0.8))
    said = "\n".join(findings(gates, "layer 1", found, [], {"start": made_gates()[0], "end": gates}))
    assert "The forget gate of unit 2 closes at 'a' (0.05, elsewhere 0.80): correlation -1.00" in said
    assert "output gate always on (above 0.9): 1 of 4 units (1)" in said
    assert "input gate always off (below 0.1): 1 of 4 units (3)" in said
    other = Gates(gates.values.flip(2), gates.values.flip(2))  # unit 2 is unit 1
    assert "The forget gate of unit 1 closes" in "\n".join(
        findings(other, "layer 1", followed(other, {"a": at_a}, True), [], {})
    )


@pytest.mark.parametrize(("gate", "name"), [(1, "forget"), (3, "output")])
def test_what_changed_in_training_is_found(gate: int, name: str) -> None:
    gates, _ = made_gates()
    closing = gates.values.clone()
    closing[:, gate] /= 2
    said = "\n".join(findings(gates, "layer 1", [], [], {"start": gates, "end": Gates(closing, closing)}))
    assert f"In training, from start to end, the {name} gate changed most" in said


def test_noise_is_no_finding() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(500, 4, 8, generator=generator)
    noise = {str(k): (torch.rand(500, generator=generator) < 0.5).float() for k in range(10)}
    found = followed(Gates(values, values), noise, tokens=True)
    assert "correlation" not in "\n".join(findings(Gates(values, values), "layer 1", found, [], {}))


def test_names_are_drawn_as_they_stand(tmp_path: Path) -> None:
    """Dollars begin no formula, in tokens or in the names of runs."""
    wrong = r"$\no$"
    draw_heatmaps(tmp_path / "gates.png", made_gates()[0], wrong, [wrong] * 4, 4)
    draw_gradients(tmp_path / "gradients.png", [Line(wrong, torch.logspace(0, -4, 9)[None])], "steps", "norm")
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in ("gates", "gradients"))


def test_gates_of_a_run(language_run: Path) -> None:
    """The gates are those from which the layer's own states follow; names stand at their steps."""
    loaded = load_run(language_run)
    batch = valid_batch(loaded)
    work, found = trace(loaded.task, batch)
    torch.testing.assert_close(work.output, found.output)
    names = loaded.task.step_names(batch, loaded.data)
    tokens, _ = inputs_of(work, names)
    first = next(iter(tokens))
    assert float(tokens[first].sum()) == sum(column.count(first) for column in names)


def test_which_layers_have_gates() -> None:
    lstm = torch.nn.LSTM(3, 5, bidirectional=True)
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(as_lstm(lstm).trace(x).output, lstm(x)[0])
    assert isinstance(as_lstm(FusedLSTM(3, 5)), FusedLSTM)
    with pytest.raises(ValueError, match="the gates i, f, g and o, and its recurrent layer is a torch RNN"):
        as_lstm(torch.nn.RNN(3, 5))


def test_the_command_shows_gates(command: Callable[..., Result], language_run: Path, tmp_path: Path) -> None:
    result = command("gates", language_run, "--output", tmp_path)
    assert result.code == 0, result.err
    assert len([line for line in result.out.splitlines() if line.startswith("- ")]) >= 5
    assert "In training, from start (step 0) to " in result.out
    names = {"gates.png", "gates_units.png", "gates_training.png", "gates.md"}
    assert names <= {file.name for file in tmp_path.iterdir()}
    with undrawn() as drawn:
        on_text = command("gates", language_run, "--output", tmp_path, "--text", "the cat the cat the cat the cat ")
    assert on_text.code == 0, on_text.err
    assert on_text.out != result.out
    assert set(drawn) == names - {"gates.md"}
    assert "got 'ä'" in command("gates", language_run, "--text", "ä").error  # one character, not its two bytes
    assert "layer must be from 0 to 0, got 1" in command("gates", language_run, "--layer", "1").error


# gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["layer_norm", "peepholes", "rnn"])
def test_the_gradient_over_time_is_autograds(cell: str) -> None:
    """That of the last hidden state with respect to the one on the way, from which the rest is run in one call."""
    parts, T = fresh_parts(cell, 3, 5, 1.0 if cell != "rnn" else None, seed=1), 7
    ((layer,),) = parts
    input = torch.randn(T, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = flow_back(parts, input, seed=4).hidden[""]
    direction = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    direction = direction / direction.norm()
    assert found[0] == pytest.approx(1)
    for t in (1, 4):
        _, state = layer(input[:t])
        h, *c = [x.detach() for x in (state if isinstance(state, tuple) else (state,))]
        h.requires_grad_()
        output, _ = layer(input[t:], (h, *c) if c else h)
        (output[-1:] * direction).sum().backward()
        assert found[T - t] == pytest.approx(float(h.grad.norm()))


@pytest.mark.parametrize("cls", [FusedLSTM, torch.nn.GRU])
def test_the_gradient_through_layers_and_directions_is_that_of_the_whole(cls: type) -> None:
    """At the input it is what autograd gives of the layer in one piece; each part has its weights."""
    torch.manual_seed(2)
    whole = cls(3, 4, num_layers=2, bidirectional=True).double().eval()
    parts = parts_of(whole, {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": {"bidirectional": True}})
    input = torch.randn(6, 2, 3, dtype=torch.float64)
    found = flow_back(parts, input, seed=4)
    assert list(found.hidden) == [f"layer {k} {way}" for k in (1, 2) for way in ("forward", "backward")]
    assert [float(found.hidden[f"layer 2 {way}"][0]) for way in ("forward", "backward")] == pytest.approx([1, 1])
    generator = torch.Generator().manual_seed(4)
    forward, backward = (torch.randn(1, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    output, _ = whole(input.requires_grad_())
    (output[-1, :, :4] * forward / forward.norm(dim=-1, keepdim=True)).sum().backward()
    loss = (whole(input)[0][0, :, 4:] * backward / backward.norm(dim=-1, keepdim=True)).sum()
    loss.backward()
    torch.testing.assert_close(found.input, input.grad.norm(dim=-1).mean(-1))


def test_the_gradient_at_the_beginning_in_words() -> None:
    """A bidirectional layer sees it, and one that looks back from the end does not."""
    falls, level = Line("lstm", torch.logspace(-4, 0, 20)[None]), Line("bidirectional", torch.ones(1, 20))
    assert "has 0.78% in lstm; 50% in bidirectional" in finding_of_inputs([falls, level])
    assert "has 50% in lstm; 0.78% in bidirectional" in finding_of_inputs(
        [Line("lstm", level.norms), Line("bidirectional", falls.norms)]
    )


def test_findings_about_gradients_are_computed() -> None:
    fades = Line("lstm, forget bias 0", torch.logspace(0, -4, 21).expand(2, 21))
    lasts = Line("lstm, forget bias 2", torch.ones(2, 21))
    said = "\n".join(gradient_findings([fades, lasts]))
    assert "Over 20 steps most of the gradient is left in lstm, forget bias 2, 1 of it" in said
    assert "lstm, forget bias 0: the gradient is below 1% after 11 steps" in said
    assert "lstm: forget bias 2 instead of 0 leaves 100 times as much over 10 steps" in said
    assert "most of the gradient is left in lstm, forget bias 0" in "\n".join(
        gradient_findings([Line(fades.label, lasts.norms), Line(lasts.label, fades.norms)])
    )


def test_the_command_shows_gradients(command: Callable[..., Result], language_run: Path, tmp_path: Path) -> None:
    small = ("--length", 12, "--hidden-size", 4, "--input-size", 2, "--seeds", 1)
    cells = ("lstm", "gru", "bidirectional", "two_layers")
    result = command("gradients", "--cells", *cells, "--forget-bias", 0, 2, *small)
    assert result.code == 0, result.err
    assert {f.name for f in (tmp_path / "runs/gradients").iterdir()} == {
        *(f"gradients{end}" for end in (".png", ".csv", ".md", "_input.png", "_input.csv"))
    }
    assert "lstm: forget bias 2 instead of 0 leaves" in result.out
    assert "two_layers, layer 1: forget bias 2 instead of 0 leaves" in result.out
    assert "- bidirectional, backward, forget bias 0: the gradient is" in result.out
    result = command("gradients", language_run, "--output", tmp_path, *small)
    assert result.code == 0, result.err
    assert "training made the gradient over 11 steps" in result.out
    assert "Of the gradient at the input the first half of the steps has" in result.out
    assert "length must be at least 2, got 1" in command("gradients", "--length", 1).error


# export ---------------------------------------------------------------------------------------------------------------

SMALL_MODEL = {"hidden_size": 6, "dropout": 0.0}
TWO_WAYS = {"recurrent": {"class_path": "lstm_fused.FusedLSTM", "init_args": {"bidirectional": True}}}
EXPORTED = {
    "classification": (
        tasks.ClassificationTask,
        data.LabeledTextDataModule,
        {"embedding_size": 4, **TWO_WAYS},
        {"path": "some.tsv"},
    ),
    "series": (tasks.ClassificationTask, data.LabeledSeriesDataModule, {"recurrent": "torch", **SMALL_MODEL}, {}),
    "tagging": (tasks.TaggingTask, data.TaggingDataModule, {"embedding_size": 4, **TWO_WAYS}, {"path": "some.conll"}),
    "forecasting": (tasks.ForecastTask, data.SeriesDataModule, {}, {"covariates": "all", "horizon": 3}),
    "music": (tasks.MusicTask, data.MusicDataModule, {}, {"batch_size": 4}),
    "class": (tasks.MemoryTask, data.RememberDataModule, {}, {}),
    "number": (tasks.MemoryTask, data.AddingDataModule, {}, {"length": 10}),
    "classes": (tasks.MemoryTask, data.CopyingDataModule, {}, {"delay": 5, "recalled": 3}),
}


def untrained(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **more: Any) -> tuple[Any, Any]:
    """A task of small sizes that was not trained, and its data."""
    monkeypatch.chdir(folder)
    sentences = [f"the O\nstr B-code\nof O\nPython{k} B-term\n3 I-term\n\n" for k in range(20)]
    Path("some.conll").write_text("".join(sentences), encoding="utf-8")
    Path("some.tsv").write_text(make_reviews(), encoding="utf-8")
    task, module, options, of_data = EXPORTED[name]
    torch.manual_seed(1)
    module, task = module(**of_data), task(**SMALL_MODEL | options | more)
    module.setup("fit")
    task.build(module)
    return task.eval(), module


def run_example(script: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Runs it where those of our packages that it does not import itself cannot be imported."""
    text = script.read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *arguments])
        for name in ("torch", "lstm_fused", "lightning", "lightning_modules", "torchmetrics"):
            if not re.search(rf"^import {name}\b", text, re.MULTILINE):
                patch.setitem(sys.modules, name, None)
        runpy.run_path(str(script))


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("classification", "tagging", "forecasting") else pytest.param(name, marks=pytest.mark.slow)
        for name in EXPORTED
    ],
)
def test_every_task_is_exported_and_its_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    task, module = untrained(name, monkeypatch, tmp_path)
    said = export(task, module, tmp_path, "torch")
    assert "gives what the run gives, at two sizes" in said
    assert "without Lightning" in said
    capsys.readouterr()
    run_example(tmp_path / "use_torch.py", monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines
    if name == "classification":
        text = "It's (really) the \u201cbest\u201d film... isn't it? users' don't-miss"
        run_example(tmp_path / "use_torch.py", monkeypatch, text)
        wanted = task.predict_examples([text], module)[0].probabilities
        assert capsys.readouterr().out.splitlines() == [f"{label}: {p:.3f}" for label, p in wanted.items()]
    elif name == "tagging":
        sentence = "the function str returns a string in Python 3"
        found = [line.split()[1] for line in lines]
        assert [tag[0] for tag in found] == [tag[0] for tag in task.predict_examples([sentence], module)[0]]
    elif name == "forecasting":
        example = json.loads((tmp_path / "about.json").read_text())["example"]
        wanted = task.predict_examples([example], module)[:, 0, 0].tolist()
        assert [float(line.split()[-1]) for line in lines] == pytest.approx(wanted, rel=1e-4)


def test_a_run_is_exported_to_onnx(
    command: Callable[..., Result],
    language_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    """The example gives the text that the model gives when it takes the likeliest token."""
    pytest.importorskip("onnxscript", reason="torch's exporter is written in it")
    pytest.importorskip("onnxruntime", reason="the exported file runs in it")
    result = command("export", language_run, "--output", tmp_path)
    assert result.code == 0, result.err
    assert "It needs onnxruntime alone" in result.out
    assert "torch" not in (tmp_path / "use_onnx.py").read_text()
    assert "format must be torch with decompose, got onnx" in command("export", language_run, "--decompose").error
    drawn = command("sample", language_run, "--prompt", "the ", "--length", 40, "--temperature", 0).out
    run_example(tmp_path / "use_onnx.py", monkeypatch, "the ")
    assert capfd.readouterr().out == drawn


OF_FORM = {"onnx": WITH_ONNX, "torch": WITH_TORCH}


@pytest.mark.parametrize("form", OF_FORM)
@pytest.mark.parametrize("module", ["classification", "forecasting", "language_model", "memory", "music", "tagging"])
def test_examples_are_short(module: str, form: str) -> None:
    """20 lines, without the title; 27 where a CRF's path is to be found."""
    found = vars(importlib.import_module(f"lightning_modules.tasks.{module}"))
    examples = [text for name, text in found.items() if name.endswith("EXAMPLE")]
    assert examples
    for example in examples:
        script = BEGINNING.format(script="x.py", **OF_FORM[form]) + example
        compile(script, "x.py", "exec")
        title, *lines = [line for line in script.splitlines() if line.strip()]
        assert title.startswith('"""Uses')
        assert len(lines) <= (27 if module == "tagging" else 20)
        assert max(map(len, lines)) <= 120


def test_the_pattern_of_words_finds_those_that_are_split() -> None:
    """In an example without this package: of texts drawn from what words are told by."""
    drawn = random.Random(0)
    texts = [
        "".join(drawn.choices("ab0'\u2019-_.,!(\u201d\u0915\u093f\u0301\u200d$\u20ac \n\u3000", k=9))
        for _ in range(2000)
    ]
    texts += [f"{chr(k)} a{chr(k)} b" for k in range(0x3000)]
    assert [re.findall(word_pattern(), text) for text in texts] == [split_words(text) for text in texts]


@pytest.mark.slow
def test_a_program_in_torchs_own_ops(language_run: Path, tmp_path: Path) -> None:
    """It runs in a process that has neither lstm_fused nor Lightning."""
    loaded = load_run(language_run)
    assert "needs torch alone" in export(loaded.task, loaded.data, tmp_path, "torch", decomposed=True)
    hide = f"""
import runpy, sys
sys.modules["lstm_fused"] = sys.modules["lightning"] = sys.modules["lightning_modules"] = None
sys.argv = ["use_torch.py", "the "]
runpy.run_path({str(tmp_path / "use_torch.py")!r})
"""
    result = subprocess.run(
        [sys.executable, "-c", hide], capture_output=True, text=True, timeout=PATIENCE, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the ")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_every_task_is_exported_to_onnx(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, module = untrained(name, monkeypatch, tmp_path)
    export(task, module, tmp_path)
    run_example(tmp_path / "use_onnx.py", monkeypatch)


# torch's own layers, whose exports torch writes out step by step: not ours.
OF_TORCH = {
    "gru": {"class_path": "torch.nn.GRU", "init_args": {"bidirectional": True}},
    "two_layers": {"class_path": "torch.nn.GRU", "init_args": {"num_layers": 2}},
    "rnn": {"class_path": "torch.nn.RNN", "init_args": {"nonlinearity": "relu", "bias": False}},
}


@pytest.mark.parametrize(
    ("word", "name", "form", "decomposed"),
    [
        ("gru", "classification", "torch", False),
        ("rnn", "number", "onnx", False),
        pytest.param("gru", "tagging", "onnx", False, marks=pytest.mark.slow),
        pytest.param("two_layers", "forecasting", "torch", True, marks=pytest.mark.slow),
        pytest.param("rnn", "music", "torch", False, marks=pytest.mark.slow),
    ],
)
def test_torchs_gru_and_rnn_are_exported(
    word: str, name: str, form: str, decomposed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is compared with the run, whose layer torch itself runs on a PackedSequence."""
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="torch's exporter is written in it")
        pytest.importorskip("onnxruntime", reason="the exported file runs in it")
    task, module = untrained(name, monkeypatch, tmp_path, recurrent=OF_TORCH[word])
    said = export(task, module, tmp_path, form, decomposed)
    assert f"It needs {'torch' if form == 'torch' else 'onnxruntime'} alone" in said
    run_example(tmp_path / f"use_{form}.py", monkeypatch)


class OwnGRU(torch.nn.GRU):
    """What it computes is not known."""


def test_what_cannot_be_exported_says_so() -> None:
    task = tasks.MemoryTask(recurrent=OwnGRU, **SMALL_MODEL)
    module = data.AddingDataModule(length=6)
    module.setup("fit")
    task.build(module)
    with pytest.raises(ValueError, match="or a layer that takes lengths, to be exported, got OwnGRU, a GRU of its own"):
        export(task.eval(), module, Path("nowhere"), "torch")
    with pytest.raises(NotImplementedError, match="RecurrentTask does not say how it is exported"):
        tasks.RecurrentTask.to_export(tasks.RecurrentTask.__new__(tasks.RecurrentTask), module)
    assert type(exportable(torch.nn.Sequential(LSTM(3, 4)))[0]) is LSTM  # an nn.LSTM for isinstance, and ours
