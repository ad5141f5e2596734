"""Early stopping, the best weights at the end, what a run leaves, and how it ends at an error."""

import json
from collections.abc import Callable
from pathlib import Path

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
)
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.data import TextDataModule
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
    def fit(script: list[float], *extra: Callback) -> tuple[Trainer, Scripted]:
        torch.manual_seed(0)
        task = Scripted(embedding_size=4, hidden_size=4)
        task.script = script
        options = EARLY_STOPPING_DEFAULTS | {"monitor": "scripted_loss"}
        best = BestCheckpoint(monitor="scripted_loss")
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
