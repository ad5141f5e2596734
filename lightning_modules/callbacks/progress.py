"""The progress bar."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """How far the present epoch is; what an epoch came to stays to be read as a line of :class:`LearningCurves`."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss of the last batch: all else would leave the bar no room, and is told at the epoch's end."""
        metrics = super().get_metrics(trainer, pl_module)
        return {"loss": metrics["train_loss_step"]} if "train_loss_step" in metrics else {}
