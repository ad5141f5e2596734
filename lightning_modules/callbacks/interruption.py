"""A run that is stopped from outside: it ends at a batch's end and saves where it was."""

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_modules.runs import folder_of


class Interruption(Callback):
    """Saves ``checkpoints/interrupted.ckpt`` when Ctrl-C, SIGTERM or an exception ends a fit; best and last stay.

    The first Ctrl-C takes effect when the running batch is done - or the validation, where that batch was an epoch's
    last - so that the checkpoint is exact to resume from; a second one stops at once. Inside a batch or a validation
    there is no well-defined place to resume from, and at an epoch's end ``last.ckpt`` has just been written: then
    nothing more is saved, and ``last.ckpt`` is what to resume from.
    """

    def __init__(self) -> None:
        self.interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over Ctrl-C; when the fit ends in any way, Lightning puts back all handlers there were before it."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.interrupted = False
        previous = signal.getsignal(signal.SIGINT)

        def stop_after_the_batch(signum: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, previous)
            trainer.print("\nStopping when this batch is done; Ctrl-C again stops at once.")

        signal.signal(signal.SIGINT, stop_after_the_batch)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.interrupted and not trainer.is_last_batch:
            raise KeyboardInterrupt

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Lightning acts on SIGTERM in training and evaluation alone."""
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        between_batches = progress.current.ready == progress.current.processed and not progress.is_last_batch
        if not trainer.training or not between_batches or trainer.global_step == 0 or trainer.fast_dev_run:
            return
        path = (folder_of(trainer) or Path(trainer.default_root_dir)) / "checkpoints" / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        trainer.print(f"Stopped at step {trainer.global_step}; --ckpt_path {path} goes on from there.")
