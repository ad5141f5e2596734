"""The best and the last checkpoint of a run, and the best weights at its end."""

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lightning_modules.callbacks.divergence import TrainingDiverged
from lightning_modules.callbacks.resume_point import ResumePoint, is_after_a_step, is_between_batches, is_fitting
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.files import replaced
from lightning_modules.runs import folder_of
from lightning_modules.trainer_parts import is_trial


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``: the weights that the lowest ``monitor`` was measured of (strictly: a tie is not better).

    They are judged whenever they have been validated, and by a figure of the training (``train_...``) at the epoch's
    end. NaN and infinity are never the best.

    A resumed run writes to a folder of its own. The best checkpoint so far is copied there, from beside the
    checkpoint that the run resumes from, so that the best stays the best of the whole training.

    Args:
        monitor: the figure to judge by.
        mode: ``"min"``, or ``"max"`` where more is better.

    Attributes:
        best: ``epoch`` (from 0) and ``step`` of the best weights, and the figures of their own validation; ``None``
            as long as there is no best.
    """

    def __init__(self, monitor: str = "val_loss", mode: str = "min") -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
            save_on_train_epoch_end=is_measured_in_training(monitor),
        )
        self.best: dict[str, float] | None = None

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        return current is not None and math.isfinite(current) and super().check_monitor_top_k(trainer, current)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        figures = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val_") or name == self.monitor
        }
        self.best = {"epoch": trainer.current_epoch, "step": trainer.global_step, **figures}
        super()._save_checkpoint(trainer, filepath)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: :meth:`on_load_checkpoint` does it, which knows the trainer, and is called for every ``monitor``."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes over the best so far, judged by this run's ``monitor`` even if the checkpoint's had another."""
        if trainer.state.fn != TrainerFn.FITTING or (state := _state_of_best(checkpoint)) is None:
            return
        assert trainer.ckpt_path is not None  # it is where the checkpoint came from
        before, score = Path(trainer.ckpt_path).with_name("best.ckpt"), float(state["best_model_score"])
        found = load_checkpoint(before) if before.is_file() else {}
        if float((_state_of_best(found) or {}).get("best_model_score", math.nan)) != score:
            rank_zero_warn(
                f"no best.ckpt with the score so far lies beside '{trainer.ckpt_path}': the best of this run is that "
                f"of its own epochs"
            )
            return
        # An older version kept the score alone.
        place = {"epoch": found["epoch"], "step": found["global_step"]}
        best = state.get("best") or {**place, state["monitor"]: score}
        if self.monitor not in best:
            rank_zero_warn(f"'{before}' tells no {self.monitor}: the best of this run is that of its own epochs")
            return
        assert self.dirpath is not None  # since setup()
        path = Path(self.dirpath) / "best.ckpt"
        if trainer.is_global_zero and path.resolve() != before.resolve():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(before, path)
        trainer.strategy.barrier()
        self.best = best
        self.best_model_path = self.kth_best_model_path = str(path)
        self.best_model_score = self.kth_value = torch.tensor(best[self.monitor], dtype=torch.float64)
        self.best_k_models = {str(path): self.best_model_score}


class LastCheckpoint(ResumePoint, Checkpoint):
    """Keeps ``last.ckpt``, the checkpoint of the very last step: what to resume from.

    It is written at the end of every epoch, in whatever way the last of them ends; inside an epoch after every
    validation, and when the last one is ``every_minutes`` old; and when an exception, Ctrl-C or SIGTERM ends a fit.
    Then ``interrupted.ckpt`` is the same file by another name. Inside a batch there is no well-defined place to resume
    from, and from a training that has diverged there is none worth it: nothing is written then. (SIGTERM may come
    between the batches of one step, ``accumulate_grad_batches``: what of its gradient there was is lost.)

    (Lightning's ``save_last`` writes one only in epochs that improve.)

    Args:
        every_minutes: the most that is lost when a run is killed; 0 writes after every step of the optimizer.

    Raises:
        ValueError: for a number below 0.
    """

    def __init__(self, every_minutes: float = 10.0) -> None:
        super().__init__()
        if not every_minutes >= 0:
            raise ValueError(f"every_minutes must be at least 0, got {every_minutes}")
        self.every_minutes = every_minutes
        self.dirpath: str | None = None
        self._saved_at = 0.0
        self._saved_place: tuple[int, int] | None = None
        self._saved_step: int | None = None

    @property
    def path(self) -> Path:
        assert self.dirpath is not None  # since setup()
        return Path(self.dirpath) / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = folder_of(trainer)  # called on every rank
        if self.dirpath is None:
            self.dirpath = str((folder or Path(trainer.default_root_dir)) / "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at, self._saved_step, self._saved_place = time.monotonic(), None, self.place(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_last_batch:
            return
        due = is_after_a_step(trainer) and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        if trainer.world_size > 1:  # their clocks differ
            due = trainer.strategy.broadcast(due)
        # Where training ends in the middle of an epoch, callbacks are told that the epoch has ended: not yet here.
        if due or trainer.fit_loop.epoch_loop.done:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer) and not trainer.is_last_batch:  # so that it is never older than best.ckpt
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch or self._saved_place != self.place(trainer):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not is_fitting(trainer) or isinstance(exception, TrainingDiverged):
            return
        if trainer.world_size > 1 and not isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            return  # an error of one process alone: the others would not save with it
        if is_between_batches(trainer):
            self.leave_validation(trainer, pl_module)
            if self._saved_place not in (None, self.place(trainer)):
                self._save(trainer)
            if self._saved_step is not None and trainer.is_global_zero:
                _link(self.path, self.path.with_name("interrupted.ckpt"))
        if self._saved_step is not None:
            trainer.print(f"Stopped; --ckpt_path {self.path} goes on from step {self._saved_step}.")

    def _save(self, trainer: Trainer) -> None:
        if is_trial(trainer):
            return
        trainer.save_checkpoint(self.path)
        self._saved_at, self._saved_step, self._saved_place = time.monotonic(), trainer.global_step, self.place(trainer)


class RestoreBest(Callback):
    """Loads the weights of ``best.ckpt`` when training ends, so that what is tested next is the best model.

    Without it the module holds the weights of the last step, which early stopping has just judged worse, or whose
    training has diverged. Where nothing was validated they stay.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = best_checkpoint(trainer)
        if best is not None and best.best_model_path:
            pl_module.load_state_dict(load_checkpoint(best.best_model_path)["state_dict"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, TrainingDiverged):
            self.on_fit_end(trainer, pl_module)


def best_checkpoint(trainer: Trainer) -> BestCheckpoint | None:
    """The trainer's :class:`BestCheckpoint`."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)


def is_measured_in_training(name: str) -> bool:
    """Whether a figure of this name is logged in training, by epoch, and not in validation."""
    return name.startswith("train")


def _state_of_best(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the :class:`BestCheckpoint` of a checkpoint's run, whatever it judged by, if there was a best."""
    states = checkpoint.get("callbacks", {}).items()
    state: dict[str, Any] = next((state for key, state in states if key.startswith("BestCheckpoint")), {})
    return state if state.get("best_model_score") is not None else None


def _link(source: Path, name: Path) -> None:
    """Gives a file another name, or copies it where the disk has no links; a file of that name is replaced."""
    with replaced(name) as new:
        try:
            os.link(source, new)
        except OSError:
            shutil.copyfile(source, new)
