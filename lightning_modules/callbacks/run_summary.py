"""What ran, why it stopped and what came of it: printed, and kept in the run's folder."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import nn

from lightning_modules.callbacks.checkpoints import RestoreBest
from lightning_modules.callbacks.learning_curves import LearningCurves
from lightning_modules.models.optimizers import describe_partition
from lightning_modules.runs import folder_of


class RunSummary(Callback):
    """Prints what runs when a fit begins, and writes ``summary.json`` when it has ended and after a test.

    ``summary.json`` holds the kernel, the parameters that weight decay acts on and those it spares, figures of the
    data, the epochs, why training stopped, the best epoch (from 0) with its figures, and the test's figures.
    """

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self._folder: Path | None = None
        self._start = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        self._folder = folder_of(trainer)
        partition = pl_module.decay_partition()
        self.summary = {
            "model": type(pl_module).__name__,
            "recurrent": repr(recurrent_layer(pl_module)),
            "kernel": kernel_in_use(recurrent_layer(pl_module)),
            "optimizer": pl_module.hparams.optimizer["class_path"],
            "weight_decay": pl_module.hparams.weight_decay,
            "parameters": {
                "decayed": {name: parameter.numel() for name, parameter in partition.decayed.items()},
                "spared": {name: parameter.numel() for name, parameter in partition.spared.items()},
            },
            "data": trainer.datamodule.summary(),
        }
        if trainer.is_global_zero:
            lines = [
                f"{self.summary['recurrent']}: {self.summary['kernel']}",
                describe_partition(partition, pl_module.hparams.weight_decay),
                *trainer.datamodule.describe(),
            ]
            if self._folder is not None:
                lines.append(f"run: {self._folder}")
            print("\n".join(lines))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        curves = next(c for c in trainer.callbacks if isinstance(c, LearningCurves))
        best_epoch = next(c for c in trainer.callbacks if isinstance(c, RestoreBest)).best_epoch
        best = next((row for row in curves.epochs if row["epoch"] == best_epoch), None)
        self.summary |= {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "seconds": round(time.monotonic() - self._start, 1),
            "stop_reason": stop_reason(trainer),
            "best_epoch": best_epoch,
            "best": best,
        }
        self._write(trainer)
        if trainer.is_global_zero:
            print(
                f"Stopped after {trainer.current_epoch} epochs, {self.summary['seconds']} s: "
                f"{self.summary['stop_reason']}."
            )
            if best is not None:
                print(f"Best epoch {best_epoch}: {format_figures(best, 'val_')}; its weights are in the model now.")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test_")}
        self.summary["test"] = figures
        self._write(trainer)
        if trainer.is_global_zero:
            print(f"Test: {format_figures(figures, 'test_')}.")

    def _write(self, trainer: Trainer) -> None:
        if self._folder is not None and trainer.is_global_zero:
            text = json.dumps(self.summary, indent=2)
            (self._folder / "summary.json").write_text(text + "\n", encoding="utf-8")


def recurrent_layer(module: nn.Module) -> nn.Module:
    """The module's largest layer that computes a recurrence."""
    layers = [m for m in module.modules() if isinstance(m, nn.RNNBase) or is_fused(m)]
    return max(layers, key=lambda m: sum(p.numel() for p in m.parameters()), default=module)


def is_fused(module: nn.Module) -> bool:
    """Whether this package's kernel runs the module."""
    return type(module).__module__.partition(".")[0] == "lstm_fused"


def kernel_in_use(layer: nn.Module) -> str:
    """What computes the recurrence."""
    if not is_fused(layer):
        return f"torch {torch.__version__}"
    import lstm_fused

    info = lstm_fused.build_info()
    return f"lstm_fused {info['version']} kernel, {info['isa']}, {torch.get_num_threads()} threads"


def stop_reason(trainer: Trainer) -> str:
    """Why training stopped, in words."""
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            reason = callback.stopping_reason_message or callback.stopping_reason.value
            return reason.removesuffix("Signaling Trainer to stop.").strip().rstrip(".")
    if trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps:
        return f"the limit of {trainer.max_steps} steps"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return f"the limit of {trainer.max_epochs} epochs"
    return "the trainer was told to stop"


def format_figures(figures: dict[str, float], prefix: str) -> str:
    """``loss 1.2345, ppl 3.4366`` and the like, of the figures whose name begins with ``prefix``."""
    return ", ".join(f"{name[len(prefix) :]} {value:.4f}" for name, value in figures.items() if name.startswith(prefix))
