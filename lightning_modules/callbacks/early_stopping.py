"""Early stopping that judges what was measured just now, and obeys the arguments of a resumed run."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from lightning_modules.callbacks.checkpoints import is_measured_in_training
from lightning_modules.callbacks.resume_point import is_fitting


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, with three differences.

    It judges a validation when it has just been made, wherever in an epoch that is, and a figure of the training
    (``train_...``) at the epoch's end: no figure is counted twice or missed where an epoch is not validated. A
    ``monitor`` that is not measured is reported after the sanity check. A resumed run uses the arguments given
    now, and continues with the checkpoint's count and best figure.
    """

    current_score: Tensor | None = None  # the last figure judged
    _is_validated = False  # since the last figure judged

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._check_on_train_epoch_end is None:
            self._check_on_train_epoch_end = is_measured_in_training(self.monitor)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_measured_in_training(self.monitor):
            self._validate_condition_metric(trainer.callback_metrics)

    def _validate_condition_metric(self, logs: dict[str, Tensor]) -> bool:
        if self.strict and self.monitor not in logs:
            names = ", ".join(name for name in logs if name.startswith(("val_", "train_")))
            raise ValueError(f"early_stopping.monitor must be one of {names}, got {self.monitor!r}")
        return super()._validate_condition_metric(logs)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was stopped early trains no more, unless the arguments have become such that it would not be."""
        trainer.should_stop = trainer.should_stop or self.stopping_reason != EarlyStoppingReason.NOT_STOPPED

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_validated = is_fitting(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """(Of an epoch without a validation there is only the figure of an earlier one.)"""
        if self._is_validated or is_measured_in_training(self.monitor):
            super().on_train_epoch_end(trainer, pl_module)
            self._is_validated = False

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        self.current_score = current
        return super()._evaluate_stopping_criteria(current)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"current_score": self.current_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        going_on = {"stopping_reason": EarlyStoppingReason.NOT_STOPPED.value, "stopping_reason_message": None}
        changes = {"patience": self.patience} | ({} if self.would_stop(state_dict) else going_on)
        super().load_state_dict(state_dict | changes)
        self.current_score = state_dict.get("current_score")

    def would_stop(self, state_dict: dict[str, Any]) -> bool:
        """Whether training was stopped in this state, and would be with the present arguments too."""
        reason = EarlyStoppingReason(state_dict.get("stopping_reason", EarlyStoppingReason.NOT_STOPPED.value))
        current = state_dict.get("current_score")
        if reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return bool(state_dict["wait_count"] >= self.patience)
        if reason == EarlyStoppingReason.STOPPING_THRESHOLD and current is not None:
            return self.stopping_threshold is not None and bool(self.monitor_op(current, self.stopping_threshold))
        if reason == EarlyStoppingReason.DIVERGENCE_THRESHOLD and current is not None:
            limit = self.divergence_threshold
            return limit is not None and bool(self.monitor_op(-current, -limit))
        return False
