"""Where training stands, written into every checkpoint so that Lightning goes on from exactly there."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules.trainer_parts import callbacks_of


class ResumePoint(Callback):
    """Makes every checkpoint of a fit, whichever callback saves it and when, one that a fit goes on from exactly.

    Lightning's loops tell from their counters where a checkpoint was saved, and go wrong in places: after a stop inside
    an epoch (``max_steps``, ``max_time``, early stopping) the epoch counts as done, with ``max_steps`` an epoch's end
    is run twice, and a validation that was due, or was interrupted, is left out. So the counters are settled to one of
    three places when a checkpoint is saved: the end of an epoch, between two batches, or before a validation that is
    due after a batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._validated = -1  # number of the batch after which the last validation was complete, over all epochs
        self._resumed = False
        self._in_validation = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_validation = is_fitting(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer):
            self._validated = trainer.fit_loop.total_batch_idx
        self._in_validation = False

    def leave_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the trained weights back into the module, where a validation has ended before its end."""
        for callback in callbacks_of(trainer) if self._in_validation else ():
            if isinstance(callback, WeightAveraging):  # validates its average of the weights
                callback.on_validation_epoch_end(trainer, pl_module)
        self._in_validation = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        settle(checkpoint["loops"]["fit_loop"], checkpoint["global_step"], self._validation_is_due(trainer))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loops = checkpoint.get("loops", {}).get("fit_loop")
        if trainer.state.fn != TrainerFn.FITTING or not loops:
            return
        settle(loops, checkpoint["global_step"], _is_before_a_validation(loops))  # an older version's was not

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop = trainer.fit_loop
        self._resumed = loop.is_resuming
        if not self._resumed:
            return
        epoch, batch = loop.epoch_progress.current, loop.epoch_loop.batch_progress
        mid_epoch = epoch.ready != epoch.completed
        if mid_epoch and batch.is_last_batch:  # all but its validation is done
            for name in ("ready", "started", "processed", "completed"):
                setattr(batch.current, name, int(trainer.num_training_batches))
            if not validation_follows(trainer):  # no longer: other epochs are validated in this run
                loop.epoch_progress.increment_processed()
                loop.epoch_progress.increment_completed()
                loop.reset_restart_stage()
                fetcher: Any = loop._data_fetcher
                iter(fetcher)
                mid_epoch = False
        if not mid_epoch:
            loop.epoch_loop.restarting = False
            restarting: Any = _Loop.restarting
            restarting.fset(loop, False)  # its own setter leaves it as it is where there is a max_steps

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._resumed:  # the loggers' step, which Lightning counts one too far when it leaves a validation out
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._resumed = False

    def place(self, trainer: Trainer) -> tuple[int, int]:
        """Tells whether anything has been done since: the last batch, and the last one that was validated after."""
        return trainer.fit_loop.total_batch_idx, self._validated

    def _validation_is_due(self, trainer: Trainer) -> bool:
        """Whether the validation that follows the batch just done has still to come, or to come to its end."""
        loop = trainer.fit_loop
        progress: Any = loop.epoch_progress.current
        if trainer.state.fn != TrainerFn.FITTING or progress.processed == progress.started:
            return False
        return self._validated != loop.total_batch_idx and validation_follows(trainer)


def is_fitting(trainer: Trainer) -> bool:
    """Whether this is part of a fit, and not the sanity check before it."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def is_between_batches(trainer: Trainer) -> bool:
    """Whether the weights are those after a whole batch: no step is half done."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(progress.ready == progress.processed)


def is_after_a_step(trainer: Trainer) -> bool:
    """Whether the optimizer has stepped after this batch: no gradient waits for those of further batches."""
    return trainer.is_last_batch or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


def validation_follows(trainer: Trainer) -> bool:
    """Whether the trainer validates after this batch, even without a request to stop (before which it validates)."""
    requested, trainer.should_stop = trainer.should_stop, False
    try:
        fetcher: Any = trainer.fit_loop._data_fetcher
        return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    finally:
        trainer.should_stop = requested


def epochs_done(trainer: Trainer) -> float:
    """The number of epochs trained so far, the present one by its share of batches."""
    loop: Any = trainer.fit_loop  # whose counters have more than their type says
    epoch, batch = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    share = 1.0 if batch.is_last_batch else batch.current.processed / trainer.num_training_batches
    counted = epoch.processed == epoch.started and share > 0  # the share is that of an epoch that counts already
    done: float = epoch.processed - counted + min(share, 1.0)
    return done


def settle(loops: dict[str, Any], steps: int, validation_is_due: bool) -> None:
    """Changes the saved state of a fit's loops to one of the places that :class:`ResumePoint` describes.

    Args:
        loops: ``checkpoint["loops"]["fit_loop"]``; left alone where a batch is half done.
        steps: the optimizer's steps so far.
        validation_is_due: after the last batch, a validation has still to be run.
    """
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    if batch["current"]["ready"] != batch["current"]["processed"]:
        return
    # The number of the epoch that the batches are of; it counts as processed from its end on.
    counted = epoch["current"]["processed"] == epoch["current"]["started"]
    over = batch["is_last_batch"] and not validation_is_due
    for counts in (epoch["total"], epoch["current"]):
        done = counts["processed"] - counted + over if batch["current"]["ready"] else counts["processed"]
        started = done + (batch["current"]["ready"] > 0 and not over)
        counts.update(ready=started, started=started, processed=done, completed=done)
    batch["total"]["completed"] = batch["total"]["processed"]
    batch["current"]["completed"] = batch["current"]["processed"]
    for counts in (validation["total"], validation["current"]):
        begun = int(validation_is_due)  # Lightning then goes back and runs it
        counts.update(ready=begun, started=begun, processed=0, completed=0)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - validation_is_due  # counts up after a validation
    if over:  # the next epoch begins at its beginning
        batch["current"].update(ready=0, started=0, processed=0, completed=0)
        batch["is_last_batch"] = False
        loops["state_dict"].pop("combined_loader", None)


def _is_before_a_validation(loops: dict[str, Any]) -> bool:
    counts = loops["epoch_loop.val_loop.batch_progress"]["total"]
    return bool(counts["started"] == counts["ready"] == counts["processed"] + 1)
