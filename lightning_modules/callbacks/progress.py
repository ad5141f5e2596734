"""The progress bar."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """The progress of the current epoch; the results of each epoch remain as a line of :class:`LearningCurves`."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss of the last batch only, to leave room for the bar; the rest is printed at the epoch's end."""
        metrics = super().get_metrics(trainer, pl_module)
        return {"loss": metrics["train_loss_step"]} if "train_loss_step" in metrics else {}
