"""Early stopping, the best weights at the end, what a run leaves, and how it ends at an error."""

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from lightning_modules.callbacks import (
    BestCheckpoint,
    Interruption,
    LastCheckpoint,
    LearningCurves,
    RestoreBest,
    RunSummary,
    TextSample,
    TrainFigures,
)
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.data import TextDataModule
from lightning_modules.pictures import plain_names
from lightning_modules.tasks import LanguageModelTask
from lightning_modules.trainer_command import EARLY_STOPPING_DEFAULTS


class Scripted(LanguageModelTask):
    """A task whose validation loss is what a script says."""

    script: list[float]

    def on_validation_epoch_end(self) -> None:
        self.log("scripted_loss", self.script[self.current_epoch])


@pytest.fixture
def scripted_fit(
    tmp_path: Path, make_data: Callable[..., TextDataModule], make_trainer: Callable[..., Trainer]
) -> Callable[..., tuple[Trainer, Scripted]]:
    def fit(script: list[float], *extra: Callback, **stopping: Any) -> tuple[Trainer, Scripted]:
        torch.manual_seed(0)
        task = Scripted(embedding_size=4, hidden_size=4)
        task.script = script
        options = EARLY_STOPPING_DEFAULTS | {"monitor": "scripted_loss"} | stopping
        best = BestCheckpoint(options["monitor"], options["mode"])
        callbacks = [EarlyStopping(**options), best, LastCheckpoint(), LearningCurves(), RestoreBest(), *extra]
        trainer = make_trainer(
            max_epochs=len(script),
            callbacks=callbacks,
            logger=CSVLogger(tmp_path / "runs", "test"),
            log_every_n_steps=5,
        )
        trainer.fit(task, make_data())
        return trainer, task

    return fit


def test_patience_is_five_and_a_tie_is_no_improvement(scripted_fit: Callable[..., tuple]) -> None:
    trainer, _ = scripted_fit([5.0, 3.0, 3.0, 4.0, 3.0, 3.5, 3.0, 1.0, 1.0])
    assert trainer.current_epoch == 7  # epochs 2 to 6 are five without anything strictly below 3.0
    assert load_checkpoint(trainer.checkpoint_callbacks[0].best_model_path)["epoch"] == 1


def test_an_improvement_however_small_resets_the_patience(scripted_fit: Callable[..., tuple]) -> None:
    trainer, _ = scripted_fit([5.0, 6, 6, 6, 6, 4.9999, 6, 6, 6])
    assert trainer.current_epoch == 9


def shades(axes: Any) -> list[tuple[float, float, bool]]:
    """From where to where the picture is shaded, and whether as improving."""
    return [(p.get_x(), p.get_x() + p.get_width(), p.get_facecolor()[1] > p.get_facecolor()[0]) for p in axes.patches]


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_epoch_is_told_and_shaded_by_whether_it_improved(
    scripted_fit: Callable[..., tuple], capsys: pytest.CaptureFixture
) -> None:
    script = [2.51, 2.10, 1.80, 1.70, 1.75, 1.85, 2.00, 2.15]
    trainer, _ = scripted_fit(script, patience=3)
    [curves] = [callback for callback in trainer.callbacks if isinstance(callback, LearningCurves)]
    assert trainer.current_epoch == 7
    with open(Path(trainer.log_dir) / "epochs.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(7)]
    assert [row["improved"] for row in rows] == ["yes"] * 4 + ["no"] * 3
    assert [float(row["scripted_loss"]) for row in rows] == pytest.approx(script[:7])
    assert all(float(row["train_loss"]) > 0 and float(row["val_loss"]) > 0 for row in rows)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 7
    assert lines[3].startswith(f"epoch 3: train_loss {float(rows[3]['train_loss']):.4f}, val_loss ")
    assert lines[3].endswith("scripted_loss 1.7000; scripted_loss improved")
    assert lines[4].endswith("scripted_loss 1.7500; scripted_loss did not improve")
    losses, watched = curves.figure((7, "early stopping")).axes
    assert shades(losses) == shades(watched) == [(k, k + 1, k < 4) for k in range(7)]
    assert "best: scripted_loss 1.7000\nafter 4 epochs" in labels(losses)
    assert labels(losses)[-1] == "early stopping: after 7 epochs"


def test_more_may_be_better_and_what_is_not_finite_never_is(scripted_fit: Callable[..., tuple]) -> None:
    trainer, _ = scripted_fit([0.5, math.nan, 0.7, math.inf, 0.6], mode="max", patience=9, check_finite=False)
    [curves] = [callback for callback in trainer.callbacks if isinstance(callback, LearningCurves)]
    assert curves.improvements() == [True, False, True, False, False]
    _, watched = curves.figure().axes
    assert labels(watched) == ["scripted_loss"]
    assert watched.get_lines()[0].get_ydata()[2] == pytest.approx(0.7)
    assert list(watched.get_lines()[1].get_xdata()) == [2, 4]  # the crosses
    assert load_checkpoint(trainer.checkpoint_callbacks[0].best_model_path)["epoch"] == 2


def test_a_picture_of_validations_inside_epochs_and_of_losses_over_decades() -> None:
    curves = LearningCurves()
    curves.epochs = [
        {"epoch": 0, "step": 5, "epochs": 0.5, "val_loss": 3.0},
        {"epoch": 0, "step": 10, "epochs": 1.0, "val_loss": 2.0, "train_loss_epoch": 2.5},
        {"epoch": 1, "step": 20, "epochs": 2.0, "train_loss_epoch": 2.2},  # not validated
        {"epoch": 2, "step": 25, "epochs": 2.5, "val_loss": 2.5},
    ]
    [axes] = curves.figure().axes
    assert shades(axes) == [(0, 0.5, True), (0.5, 1, True), (1, 2.5, False)]
    assert axes.get_yscale() == "linear"
    assert [row[-1] for row in curves.table()] == ["improved", "yes", "yes", "", "no"]
    assert [row[2] for row in curves.table()] == ["train_loss", "", 2.5, 2.2, ""]
    curves.epochs[0]["val_loss"] = 300.0
    with plain_names():
        figure = curves.figure()
        figure.draw_without_rendering()
    assert figure.axes[0].get_yscale() == "log"
    numbers = [label.get_text() for label in figure.axes[0].get_yticklabels(which="both") if label.get_text()]
    assert "10" in numbers
    assert not [number for number in numbers if not re.fullmatch(r"\d+(\.\d+)?", number)]


def test_the_weights_at_the_end_are_those_of_the_best_epoch(scripted_fit: Callable[..., tuple]) -> None:
    class Weights(Callback):
        def __init__(self) -> None:
            self.by_epoch: list[dict] = []

        def on_train_epoch_end(self, trainer: Trainer, task: LanguageModelTask) -> None:
            self.by_epoch.append({name: value.clone() for name, value in task.state_dict().items()})

    weights = Weights()
    trainer, task = scripted_fit([3.0, 2.0, 1.0, 2.0, 3.0], weights)
    assert len(weights.by_epoch) == 5
    folder = Path(trainer.log_dir) / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    best = load_checkpoint(folder / "best.ckpt")["state_dict"]
    last = load_checkpoint(folder / "last.ckpt")["state_dict"]
    for name, value in task.state_dict().items():
        assert value.equal(best[name])
        assert value.equal(weights.by_epoch[2][name])
        assert last[name].equal(weights.by_epoch[4][name])
    assert not best["net.decoder.weight"].equal(last["net.decoder.weight"])


def test_what_a_run_leaves(
    tmp_path: Path, make_data: Callable[..., TextDataModule], make_trainer: Callable[..., Trainer], capsys
) -> None:
    torch.manual_seed(0)
    task = LanguageModelTask(embedding_size=8, hidden_size=12, lr=0.02)
    callbacks = [EarlyStopping("val_loss"), BestCheckpoint(), LastCheckpoint(), LearningCurves(), RestoreBest()]
    callbacks += [TextSample(length=50), RunSummary()]
    trainer = make_trainer(max_epochs=3, callbacks=callbacks, logger=CSVLogger(tmp_path, "test"), log_every_n_steps=5)
    data = make_data()
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    folder = tmp_path / "test" / "version_0"
    out = capsys.readouterr().out

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stop_reason"] == "the limit of 3 epochs"
    assert "lstm_fused" in summary["kernel"]
    assert set(summary["parameters"]["decayed"]) | set(summary["parameters"]["spared"]) == {
        name for name, _ in task.named_parameters()
    }
    assert all(name in out for name, _ in task.named_parameters())
    best = load_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert summary["best_epoch"] == best["epoch"]
    assert summary["best"]["val_loss"] == pytest.approx(float(trainer.checkpoint_callbacks[0].best_model_score))
    # The test's figure is that of the best epoch's weights: tested alone, they give the same.
    again = LanguageModelTask(**best["hyper_parameters"])
    again.load_state_dict(best["state_dict"])
    [figures] = make_trainer().test(again, data, verbose=False)
    assert summary["test"] == pytest.approx(figures)

    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    sample = (folder / "sample.txt").read_text(encoding="utf-8")
    prompt = " ".join(data.text("valid").split()[:6])[:40]
    assert sample.startswith(prompt)
    assert len(sample) == len(prompt) + 50 + 1
    assert sample.strip() in out


class FailAt(Callback):
    """Raises an error in the middle of a batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: Trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("boom")


def test_an_error_inside_a_batch_leaves_best_and_last(
    tmp_path: Path,
    make_data: Callable[..., TextDataModule],
    make_task: Callable[..., LanguageModelTask],
    make_trainer: Callable[..., Trainer],
) -> None:
    data = make_data()
    batches = len(data.train_dataloader())
    callbacks = [Interruption(), BestCheckpoint(), LastCheckpoint(), FailAt(batches + 1)]
    trainer = make_trainer(callbacks=callbacks, logger=CSVLogger(tmp_path, "run"), log_every_n_steps=5)
    with pytest.raises(RuntimeError, match="boom"):
        trainer.fit(make_task(vocab_size=None), data)
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    assert sorted(file.name for file in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert load_checkpoint(folder / "last.ckpt")["global_step"] == batches


def test_the_loss_on_train_data_is_measured_as_the_validation_is(
    make_data: Callable[..., TextDataModule], make_trainer: Callable[..., Trainer], make_task: Callable[..., Any]
) -> None:
    """Without dropout and label smoothing, on as many batches; and training continues unaffected."""

    def fit(*callbacks: Callback) -> LanguageModelTask:
        task = make_task(vocab_size=None, dropout=0.5, label_smoothing=0.2, l2=0.1)
        trainer = make_trainer(callbacks=list(callbacks), enable_checkpointing=False, max_epochs=2)
        trainer.fit(task, make_data())
        return task

    curves = LearningCurves()
    task = fit(TrainFigures(), curves)
    data = make_data()
    task.eval()
    losses, weights, state = [], [], None
    with torch.no_grad():
        for batch, _ in zip(data.train_dataloader(), data.val_dataloader(), strict=False):
            loss, state = task.model_step(batch, state)
            losses.append(float(loss))
            weights.append(batch[1].numel())
    expected = sum(a * b for a, b in zip(losses, weights, strict=True)) / sum(weights)
    assert curves.epochs[-1]["val_loss_on_train"] == pytest.approx(expected, rel=1e-6)
    names, *rows = curves.table()
    assert [row[names.index("val_loss_on_train")] for row in rows][-1] == curves.epochs[-1]["val_loss_on_train"]
    for name, value in fit().state_dict().items():
        assert value.equal(task.state_dict()[name]), name
