"""A run that is stopped from outside: it ends at a batch's end and saves where it was."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_modules.runs import folder_of

# Two SIGINTs so close together are one Ctrl-C: it goes to all processes of a terminal, some of which pass it on.
ONE_CTRL_C = 0.5  # seconds


class Interruption(Callback):
    """Saves ``checkpoints/interrupted.ckpt`` when Ctrl-C, SIGTERM or an exception ends a fit; best and last stay.

    The first Ctrl-C takes effect when the running batch is done - or the validation, where that batch was an epoch's
    last - so that the checkpoint is exact to resume from; a second one stops at once. Inside a batch or a validation
    there is no well-defined place to resume from, and at an epoch's end ``last.ckpt`` has just been written: then
    nothing more is saved, and ``last.ckpt`` is what to resume from.

    Several processes tell one another after every batch, so that all of them stop at the same one, whichever of them
    got the signal: one that stopped alone would wait for the others for ever.
    """

    def __init__(self) -> None:
        self.interrupted = False  # whether to stop: in several processes, whether they have agreed to
        self._received: set[int] = set()  # the signals that this process was sent

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over Ctrl-C; when the fit ends in any way, Lightning puts back all handlers there were before it."""
        self._take_over_sigterm(trainer)
        if threading.current_thread() is not threading.main_thread():
            return
        self.interrupted = False
        self._received.discard(signal.SIGINT)
        previous = signal.getsignal(signal.SIGINT)
        first = 0.0

        def stop_after_the_batch(signum: int, frame: Any) -> None:
            nonlocal first
            if signum not in self._received:
                self._received.add(signum)
                first = time.monotonic()
                trainer.print("\nStopping when this batch is done; Ctrl-C again stops at once.")
            elif time.monotonic() - first > ONE_CTRL_C:
                signal.signal(signal.SIGINT, previous)
                signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGINT, stop_after_the_batch)

    def _take_over_sigterm(self, trainer: Trainer, *_: Any) -> None:
        """Lightning's own handler tells the other processes at once, wherever these are, and may wait for ever."""
        if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
            return
        self._received.discard(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda signum, frame: self._received.add(signum))

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = _take_over_sigterm

    def _agree(self, trainer: Trainer, *_: Any) -> None:
        """What one process was sent before this batch's end, all take as sent."""
        sent = [number in self._received for number in (signal.SIGINT, signal.SIGTERM)]
        if trainer.world_size > 1:
            sent = trainer.strategy.reduce(
                torch.tensor(sent, dtype=torch.int32, device=trainer.strategy.root_device), reduce_op="sum"
            ).tolist()
            if sent[1]:
                trainer._signal_connector.received_sigterm = True  # on which Lightning acts between two batches
        self.interrupted = bool(sent[0])

    on_validation_batch_end = on_test_batch_end = on_train_end = _agree

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._agree(trainer)
        if self.interrupted and not trainer.is_last_batch:
            raise KeyboardInterrupt

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Lightning acts on SIGTERM in training and evaluation alone."""
        self._agree(trainer)
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
