"""The trainer's limits: what they mean on the command line, and those that nothing can be trained with."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Timer

from lightning_modules.trainer_parts import callbacks_of


def put_int_before_float(action: Any) -> None:
    """Lets an argument that may be an int or a float be an int where it is written as one: 1 batch is not 1.0 of all.

    (typing takes two unions of the same types for one, in whichever order it met them first.)
    """
    types = getattr(getattr(action, "_typehint", None), "__args__", ())
    if int in types and float in types:
        action._typehint = reduce(or_, sorted(types, key=lambda kind: kind is not int))


def check_limits_of_training(trainer: Trainer) -> None:
    """Raises ValueError where the trainer's limits leave nothing to train."""
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise ValueError(f"trainer.{name} must be more than 0 for a fit, got 0")
    for timer in callbacks_of(trainer):
        if isinstance(timer, Timer) and (left := timer.time_remaining()) is not None and left <= 0:
            raise ValueError("trainer.max_time must be more than 0 seconds for a fit")


def check_limits_of_batches(trainer: Trainer, data: LightningDataModule, stages: Sequence[str]) -> None:
    """Raises ValueError where a limit leaves no batch, or validation is after more batches than an epoch has.

    (Lightning raises its error only after the run's folder has been created.)
    """
    for stage in stages:
        limit = getattr(trainer, f"limit_{stage}_batches")
        batches = sized_len(getattr(data, f"{stage}_dataloader")())
        if stage == "predict" and limit == 0:
            raise ValueError("trainer.limit_predict_batches must be more than 0 to predict, got 0")
        if batches is None:
            continue
        if isinstance(limit, float) and limit > 0 and int(batches * limit) == 0:
            raise ValueError(
                f"trainer.limit_{stage}_batches must leave at least one of the {batches} batches, got {limit}"
            )
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        interval = getattr(trainer, "val_check_interval", None)  # there is none where it is a time
        if stage == "train" and isinstance(interval, int) and trainer.check_val_every_n_epoch and batches < interval:
            raise ValueError(
                f"trainer.val_check_interval must be at most the {batches} batches of an epoch, got {interval}; with "
                f"trainer.check_val_every_n_epoch null it counts the batches of all epochs"
            )
