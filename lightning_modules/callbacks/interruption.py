"""A run that is stopped from outside: it ends at a batch's end and saves where it was."""

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Interruption(Callback):
    """Saves ``checkpoints/interrupted.ckpt`` when Ctrl-C, SIGTERM or an exception ends a fit; best and last stay.

    The first Ctrl-C takes effect when the running batch is done, so that the checkpoint is exact to resume from; a
    second one stops at once. An exception inside a batch or a validation leaves no well-defined place to resume from: then nothing is
    saved, and ``last.ckpt`` is the newest.

    Lightning acts on SIGTERM in training alone; this callback also ends a test or a prediction.
    """

    def __init__(self) -> None:
        self._interrupted = False
        self._previous_handler: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore_handler()

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def _on_interrupt(self, signum: int, frame: Any) -> None:
        self._interrupted = True
        self._restore_handler()
        rank_zero_info("\nStopping when this batch is done; Ctrl-C again stops at once.")

    def on_train_batch_end(self, *_: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.received_sigterm:
            raise SIGTERMException

    on_predict_batch_end = on_test_batch_end

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.received_sigterm and trainer.state.fn == "validate":
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handler()
        progress = trainer.fit_loop.epoch_loop.batch_progress
        inside_batch = progress.current.ready != progress.current.processed
        if not trainer.training or inside_batch or trainer.global_step == 0 or trainer.fast_dev_run:
            return
        path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"Stopped at step {trainer.global_step}; --ckpt_path {path} goes on from there.")
