"""Going on inside an epoch, where the data may be read otherwise than before."""

import sys
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightning_modules.trainer_parts import datamodule_of


@runtime_checkable
class ResumableLoader(Protocol):
    """A train loader that knows where in the data it goes on after ``load_state_dict``.

    Attributes:
        next_batch: the number, in its own batches, of the one that the next epoch begins with.
        begins_anew: whether a state was loaded whose place means nothing here, so that this is the first batch.
        changed: what differs from the loader whose state was loaded, in words; empty where nothing does.
    """

    next_batch: int
    begins_anew: bool
    changed: str

    def restart(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def tell(sentence: str) -> None:
    """One line on stderr, by rank 0 alone."""
    rank_zero_only(print)(sentence, file=sys.stderr, flush=True)


def continue_epoch(trainer: Trainer) -> None:
    """Makes a resumed trainer's count of batches that of its train loader; for ``on_train_start``.

    Lightning goes on with the number of batches in the checkpoint, which are not those of now if the batches are of
    another size, of other data or more or fewer: the epoch would end early, or late, and what it leaves out would
    never be read. A loader that cannot continue where the epoch stopped restarts it, and one line says so.
    """
    begin_training = getattr(datamodule_of(trainer), "begin_training", None)
    is_other_data = begin_training is not None and begin_training()
    loader = trainer.train_dataloader
    epoch = trainer.fit_loop.epoch_loop
    if not epoch.restarting or not isinstance(loader, ResumableLoader):
        return
    counts = epoch.batch_progress.current
    if epoch.batch_progress.is_last_batch:  # Lightning begins an epoch where the count is that of all batches
        loader.restart()
        batch = int(trainer.num_training_batches)
    else:
        if loader.begins_anew:
            tell(f"The epoch that the checkpoint stopped in begins anew: {loader.changed}.")
        elif is_other_data:
            loader.restart()
            tell("The epoch that the checkpoint stopped in begins anew: its data is another.")
        elif loader.next_batch >= trainer.num_training_batches:
            loader.restart()
            tell("The epoch that the checkpoint stopped in begins anew: it is not to have as many batches as it had.")
        elif loader.changed:
            tell(f"The epoch goes on where the checkpoint stopped, in batch {loader.next_batch:,}: {loader.changed}.")
        batch = loader.next_batch
    offset = batch - counts.ready
    for name in ("ready", "started", "processed", "completed"):
        setattr(counts, name, getattr(counts, name) + offset)


def is_inside_an_epoch(trainer: Trainer) -> bool:
    """Whether a resumed trainer, as :func:`continue_epoch` has left it, has trained on batches of an epoch, not all."""
    epoch = trainer.fit_loop.epoch_loop
    return epoch.restarting and epoch.batch_progress.current.ready > 0 and not epoch.batch_progress.is_last_batch


def is_before_an_epochs_end(trainer: Trainer) -> bool:
    """Whether a resumed trainer has trained on all batches of an epoch, whose validation has still to come."""
    epoch = trainer.fit_loop.epoch_loop
    return epoch.restarting and epoch.batch_progress.is_last_batch
