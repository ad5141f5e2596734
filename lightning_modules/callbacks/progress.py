"""The progress bar."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """One line an epoch that stays to be read, in a terminal and in a log alike."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10, leave=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        for name in ("v_num", "train_loss_step"):
            metrics.pop(name, None)
        return metrics
