"""Weights averaged over the steps of training, from when it pays."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class NonMonotonicAveraging(WeightAveraging):
    """Averages the weights of all steps from the moment on when validation has stopped to improve (NT-ASGD).

    That is the first validation whose figure is worse than the best of those more than ``patience`` validations before
    it (Merity et al. 2018, algorithm 1). Until then the average is the weights themselves. Validations, and the
    checkpoints, are of the average; a resumed run goes on with both.

    Args:
        patience: the algorithm's non-monotone interval n.
        monitor: the figure, lower is better.
    """

    def __init__(self, patience: int = 5, monitor: str = "val_loss") -> None:
        super().__init__(avg_fn=self._average)
        self.patience, self.monitor = patience, monitor
        self.figures: list[float] = []
        self.averaged = 0  # steps that are averaged, the present one included; 0 before the moment

    @torch.no_grad()
    def _average(self, average: Tensor, current: Tensor, count: Tensor) -> Tensor:
        return current if self.averaged == 0 else average + (current - average) / self.averaged

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        if self.averaged and trainer.global_step > self._latest_update_step:
            self.averaged += 1
        super().on_train_batch_end(trainer, pl_module, *arguments)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return
        figure = float(trainer.callback_metrics[self.monitor])
        before = self.figures[: -self.patience]
        if self.averaged == 0 and before and figure > min(before):
            self.averaged = 1  # the weights of now are the first of the average
            trainer.print(f"Weights are averaged from step {trainer.global_step} on.")
        self.figures.append(figure)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"figures": self.figures, "averaged": self.averaged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.figures, self.averaged = list(state_dict["figures"]), state_dict["averaged"]
