"""A run that stops and is resumed ends with the same bits as one that never stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils._pytree import tree_map

from lightning_modules.callbacks import BestCheckpoint, LastCheckpoint, LearningCurves, RNGState
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.data import TextDataModule
from lightning_modules.tasks import LanguageModelTask

EPOCHS = 4


class Losses(Callback):
    """The loss of every training batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.fixture
def fit(
    tmp_path: Path,
    make_data: Callable[..., TextDataModule],
    make_task: Callable[..., LanguageModelTask],
    make_trainer: Callable[..., Trainer],
) -> Callable[..., tuple]:
    def run(
        folder: str, *extra: Callback, resume: Path | None = None, seed: int = 0, word: str = "fused", **trainer_options
    ) -> tuple:
        losses = Losses()
        dirpath = tmp_path / folder
        saver = ModelCheckpoint(dirpath, "{step}", every_n_train_steps=1, save_top_k=-1)
        epochs = ModelCheckpoint(dirpath, "end-of-{epoch}", every_n_epochs=1, save_top_k=-1)
        callbacks = [losses, RNGState(), LearningCurves(), *extra]
        callbacks += [saver, epochs] if resume is None else []
        # Everything random is on: dropout of torch and of the kernel, and a schedule that depends on the step.
        lacks = {} if word == "fused" else {"recurrent_dropout": 0.0, "zoneout": 0.0}
        task = make_task(seed, vocab_size=None, recurrent=word, lr_schedule="cosine", warmup_steps=3, **lacks)
        trainer = make_trainer(max_epochs=EPOCHS, callbacks=callbacks, gradient_clip_val=1.0, **trainer_options)
        trainer.fit(task, make_data(sequence_length=60), ckpt_path=resume, weights_only=True)
        return task, losses.values, dirpath, trainer

    return run


def zeros(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


def assert_same(task: LanguageModelTask, other: LanguageModelTask) -> None:
    for (name, ours), theirs in zip(task.state_dict().items(), other.state_dict().values(), strict=True):
        assert ours.equal(theirs), name


@pytest.mark.parametrize("word", ["fused", "torch", "gru"])
def test_resume_is_exact_in_the_middle_and_at_the_end_of_an_epoch(fit: Callable[..., tuple], word: str) -> None:
    task, losses, folder, trainer = fit("whole", word=word)
    batches = len(losses) // EPOCHS
    assert batches >= 3
    middle = [f"step={step}.ckpt" for step in (1, batches + 2, 2 * batches)]
    ends = ["end-of-epoch=0.ckpt", "end-of-epoch=2.ckpt"]
    for name in middle + ends:
        checkpoint = load_checkpoint(folder / name)
        again, rest, _, resumed = fit(f"resumed-{name}", resume=folder / name, seed=99, word=word)
        assert rest == losses[checkpoint["global_step"] :], name
        assert_same(again, task)
        assert resumed.callback_metrics["val_loss"] == trainer.callback_metrics["val_loss"]


def test_resume_is_exact_after_a_validation_inside_an_epoch(fit: Callable[..., tuple]) -> None:
    after_validation = ModelCheckpoint(filename="{step}", monitor="val_loss", save_top_k=-1)
    task, losses, _, _ = fit("whole", after_validation, val_check_interval=0.5)
    saved = sorted(Path(after_validation.dirpath).iterdir(), key=lambda path: int(path.stem.removeprefix("step=")))
    for path in saved[1:3]:  # in the middle of the first epoch's and the second's
        again, rest, _, _ = fit(path.stem, resume=path, seed=99, val_check_interval=0.5)
        assert rest == losses[load_checkpoint(path)["global_step"] :]
        assert_same(again, task)


def test_without_the_carried_state_a_resume_would_differ(fit: Callable[..., tuple], tmp_path: Path) -> None:
    """The test above can fail: the state, the generators and the place in the text each matter."""
    _, losses, folder, _ = fit("whole")
    for spoil in ("train_state", "rng", "loader"):
        checkpoint = load_checkpoint(folder / "step=2.ckpt")
        if spoil == "train_state":
            checkpoint["train_state"] = tree_map(zeros, checkpoint["train_state"])
        elif spoil == "rng":
            checkpoint["callbacks"]["RNGState"]["torch"] = torch.Generator().manual_seed(5).get_state()
        else:
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [{"batches": 0}]
        torch.save(checkpoint, tmp_path / "spoilt.ckpt")
        _, rest, _, _ = fit(f"spoilt-{spoil}", resume=tmp_path / "spoilt.ckpt")
        assert rest[0] != losses[2], spoil


def test_the_best_of_before_stays_the_best(fit: Callable[..., tuple], tmp_path: Path) -> None:
    """A resumed run has a folder of its own; best.ckpt goes with it, early stopping counts on."""

    def savers(folder: str) -> tuple[BestCheckpoint, LastCheckpoint, EarlyStopping]:
        best, last = BestCheckpoint(monitor="figure"), LastCheckpoint()
        best.dirpath = last.dirpath = str(tmp_path / folder)
        return best, last, EarlyStopping("figure", patience=3)

    class Worsen(Callback):
        """Reports a figure that is best in epoch 1."""

        def on_validation_epoch_end(self, trainer, pl_module) -> None:
            self.log("figure", [3.0, 1.0, 2.0, 4.0][trainer.current_epoch])

    class StopAfter(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    best, last, stopping = savers("first")
    fit("first", Worsen(), StopAfter(), best, last, stopping)
    assert float(best.best_model_score) == 1.0
    again, _, stopping = savers("second")
    fit("second", Worsen(), again, LastCheckpoint(), stopping, resume=tmp_path / "first" / "last.ckpt")
    assert float(again.best_model_score) == 1.0
    assert Path(again.best_model_path) == tmp_path / "second" / "best.ckpt"
    assert load_checkpoint(again.best_model_path)["epoch"] == 1
    assert stopping.wait_count == 2

    # An older checkpoint, whose best was another, does not adopt a best.ckpt that it knows nothing of.
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "best.ckpt").write_bytes((tmp_path / "first" / "end-of-epoch=0.ckpt").read_bytes())
    (tmp_path / "odd" / "last.ckpt").write_bytes((tmp_path / "first" / "last.ckpt").read_bytes())
    third, _, stopping = savers("third")
    with pytest.warns(UserWarning, match="no best.ckpt"):
        fit("third", Worsen(), third, stopping, resume=tmp_path / "odd" / "last.ckpt")
    assert float(third.best_model_score) == 2.0
