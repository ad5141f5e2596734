"""Options of the optimizer that a resumed run was given anew."""

from collections.abc import Collection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

OPTIONS = ("lr", "weight_decay", "momentum")


class OptimizerFlags(Callback):
    """Puts options of the optimizer in force that Lightning would overwrite with those of the checkpoint.

    A schedule that is a function of the step is evaluated again: a run that continues to a later end, or with
    another warm-up, has its rate from the first step on.

    Args:
        given: names out of ``OPTIONS``: those that the run was given, and that are not to be as in the checkpoint.
    """

    def __init__(self, given: Collection[str] = ()) -> None:
        self.given = [name for name in OPTIONS if name in given]
        self._groups: list[list[dict[str, Any]]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizers are made now, and not yet loaded from a checkpoint."""
        self._groups = [[dict(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fit_loop.is_resuming:
            return
        for optimizer, wanted in zip(trainer.optimizers, self._groups, strict=True):
            for group, new in zip(optimizer.param_groups, wanted, strict=True):
                for name in set(self.given) & set(group) - {"lr"}:
                    group[name] = new[name]
                if "lr" in self.given:
                    base = new.get("initial_lr", new["lr"])
                    group["lr"] *= base / group.get("initial_lr", group["lr"])
                    group["initial_lr"] = base
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            groups = scheduler.optimizer.param_groups
            if "lr" in self.given and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [group["initial_lr"] for group in groups]
            if isinstance(scheduler, LambdaLR):
                for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                    group["lr"] = base * factor(scheduler.last_epoch)
