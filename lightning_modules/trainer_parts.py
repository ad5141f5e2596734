"""What Lightning sets on a Trainer from outside, so that the Trainer's own type does not tell of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what lists a plan's runs does not wait for it
    from lightning.pytorch import Callback, Trainer


def datamodule_of(trainer: Trainer) -> Any:
    """The data module of this run; which one it is, the task knows."""
    return trainer.datamodule  # type: ignore[attr-defined]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def is_trial(trainer: Trainer) -> bool:
    """Whether ``fast_dev_run`` is on."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
