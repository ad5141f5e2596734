"""A run whose loss is no number any more is ended."""

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.callbacks.resume_point import is_fitting


class TrainingDiverged(FloatingPointError):
    """The loss has become infinite or NaN."""


class Divergence(Callback):
    """Ends a run whose loss becomes infinite or NaN, by an error: nothing that followed would be of use.

    The training loss is looked at before every backward pass, so that the weights stay those of the step before. Of a
    validation it is ``val_loss`` and the figures that early stopping watches, unless that is configured to ignore them
    (``check_finite`` off).

    Raises:
        TrainingDiverged: on every process, if it is so on one.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        loss = loss.detach()
        finite = bool(loss.isfinite().all())
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce_boolean_decision(finite)
        if not finite:
            raise TrainingDiverged(_sentence(trainer, "the training loss", float(loss)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stops = trainer.early_stopping_callbacks
        if not is_fitting(trainer) or not all(stop.check_finite for stop in stops):
            return
        for name in ("val_loss", *(stop.monitor for stop in stops)):
            value = trainer.callback_metrics.get(name)
            if value is not None and not math.isfinite(value):
                raise TrainingDiverged(_sentence(trainer, name, float(value)))


def _sentence(trainer: Trainer, name: str, value: float) -> str:
    found = f"{name} is {value}" if not math.isfinite(value) else f"{name} is not finite on another process"
    return f"the training has diverged: {found} in epoch {trainer.current_epoch}, after step {trainer.global_step}"
