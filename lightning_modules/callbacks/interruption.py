"""A run that is stopped from outside: it ends where it can go on exactly."""

import signal
import threading
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_modules.callbacks.resume_point import is_after_a_step, is_fitting
from lightning_modules.trainer_parts import callbacks_of

# Two SIGINTs so close together are one Ctrl-C: it goes to all processes of a terminal, some of which pass it on.
ONE_CTRL_C = 0.5  # seconds


class Interruption(Callback):
    """Ends a fit at Ctrl-C where it can go on exactly: after a step of the optimizer, or inside a validation.

    The first Ctrl-C takes effect when the running batch is done; a second one stops at once.
    :class:`LastCheckpoint` then saves where the run was.

    Several processes tell one another after every batch, so that all of them stop at the same one, whichever of them
    got the signal: one that stopped alone would wait for the others for ever.

    The trainer calls it after all other callbacks: what they have to do after a batch is done before the run ends.
    """

    def __init__(self) -> None:
        self.interrupted = False  # whether to stop: in several processes, whether they have agreed to
        self._received: set[int] = set()  # the signals that this process was sent

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        others = [callback for callback in callbacks_of(trainer) if callback is not self]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]  # as in trainer_parts

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
        """Replaces Lightning's handler, which signals the other processes immediately, at any point, and may hang."""
        if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
            return
        self._received.discard(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda signum, frame: self._received.add(signum))

    on_sanity_check_start: Any = _take_over_sigterm
    on_validation_start: Any = _take_over_sigterm
    on_test_start: Any = _take_over_sigterm
    on_predict_start: Any = _take_over_sigterm

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

    on_test_batch_end: Any = _agree
    on_train_end: Any = _agree

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """(After an epoch's last batch comes its validation, or its end.)"""
        self._agree(trainer)
        if self.interrupted and is_after_a_step(trainer) and not trainer.is_last_batch:
            trainer._logger_connector.on_batch_end()  # logs the batch, as Lightning would after this
            trainer._logger_connector.update_train_step_metrics()
            raise KeyboardInterrupt

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._agree(trainer)
        if self.interrupted and is_fitting(trainer) and is_after_a_step(trainer):
            raise KeyboardInterrupt

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Lightning acts on SIGTERM in training and evaluation alone."""
        self._agree(trainer)
        if trainer.received_sigterm:
            raise SIGTERMException
