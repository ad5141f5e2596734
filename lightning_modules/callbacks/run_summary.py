"""What ran, why it stopped and its results: printed, and kept in the run's folder."""

import json
import math
import statistics
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lightning_modules.callbacks.checkpoints import best_checkpoint
from lightning_modules.callbacks.divergence import TrainingDiverged
from lightning_modules.callbacks.resume_point import epochs_done, is_fitting
from lightning_modules.files import replaced
from lightning_modules.models.optimizers import describe_partition
from lightning_modules.runs import folder_of
from lightning_modules.trainer_parts import callbacks_of, datamodule_of


class RunSummary(Callback):
    """Prints what runs when a fit begins, and writes ``summary.json`` when it has ended, in any way, and after a test.

    ``summary.json`` holds the kernel, the parameters that weight decay acts on and those it spares, figures of the
    data, the epochs, steps and seconds of training, why it stopped, ``best``: epoch (from 0), step and figures of the
    best weights, and ``test``: the test's figures, and which weights were ``tested``; ``finished``: whether nothing is
    left to do, ``monitor`` and ``mode``: what was judged by and whether more is better, and ``ms_a_step``: the median
    of the training steps of this process; ``error``: what training failed with, where it did. A figure that is not
    finite is ``null``.

    Args:
        kept: what an earlier process has written of the same training, which this one only completes.
    """

    def __init__(self, kept: dict[str, Any] | None = None) -> None:
        self.summary: dict[str, Any] = {}
        self._kept = kept or {}
        self._folder: Path | None = None
        self._start = time.monotonic()
        self._seconds_before = 0.0
        self._step_start = 0.0
        self._step_seconds: deque[float] = deque(maxlen=1000)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]

    def _seconds(self) -> float:
        """Of training, those before a resume included."""
        return self._seconds_before + time.monotonic() - self._start

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._start = time.monotonic()
        self._folder = folder_of(trainer)
        partition = pl_module.decay_partition()
        self.summary = {
            "model": type(pl_module).__name__,
            "loss_unit": pl_module.loss_unit,
            "recurrent": repr(recurrent_layer(pl_module)),
            "kernel": kernel_in_use(recurrent_layer(pl_module)),
            "optimizer": pl_module.hparams.optimizer["class_path"],
            "weight_decay": pl_module.hparams.weight_decay,
            "parameters": {
                "decayed": {name: parameter.numel() for name, parameter in partition.decayed.items()},
                "spared": {name: parameter.numel() for name, parameter in partition.spared.items()},
            },
            "data": datamodule_of(trainer).summary(),
        } | self._kept
        if trainer.is_global_zero:
            lines = [
                f"{self.summary['recurrent']}: {self.summary['kernel']}",
                describe_partition(partition, pl_module.hparams.weight_decay),
                *datamodule_of(trainer).describe(),
            ]
            if self._folder is not None:
                lines.append(f"run: {self._folder}")
            print("\n".join(lines))

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        best = best_checkpoint(trainer)
        if (best is None or best.best is None) and (reason := why_nothing_is_validated(trainer)):
            trainer.print(
                f"No validation will be run: {reason}. So there will be no best weights, and the last ones are tested."
            )

    def on_train_batch_start(self, *_: Any) -> None:
        self._step_start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self._step_seconds.append(time.perf_counter() - self._step_start)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._end(trainer, stop_reason(trainer))
        best = self.summary["best"]
        if trainer.is_global_zero and best is not None:
            print(
                f"Best epoch {best['epoch']}, step {best['step']}: {format_figures(best, 'val_')}; its weights are in "
                f"the model now."
            )
        elif trainer.is_global_zero:
            print("Nothing was validated: the weights of the last step are in the model.")

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        if is_fitting(trainer) and self.summary:
            words = {KeyboardInterrupt: "interrupted", SIGTERMException: "terminated"}
            reason = words.get(type(exception), " ".join(str(exception).split()) or type(exception).__name__)
            diverged = isinstance(exception, TrainingDiverged)
            if type(exception) not in words and not diverged:
                self.summary["error"] = reason
            self._end(trainer, reason, is_trained=diverged, diverged=diverged)

    def _end(self, trainer: Trainer, reason: str, *, is_trained: bool = True, diverged: bool = False) -> None:
        """The end of a fit, after which there may be nothing left to train."""
        epochs, best = epochs_done(trainer), best_checkpoint(trainer)
        self.summary |= {
            "epochs": int(epochs) if epochs.is_integer() else round(epochs, 3),
            "steps": trainer.global_step,
            "seconds": round(self._seconds(), 1),
            "stop_reason": reason,
            "best_epoch": None if best is None or best.best is None else best.best["epoch"],
            "best": None if best is None else best.best,
            "monitor": None if best is None else best.monitor,
            "mode": None if best is None else best.mode,
            "finished": is_trained and not is_tested_after(trainer, diverged),
        }
        if self._step_seconds:
            self.summary["ms_a_step"] = round(1e3 * statistics.median(self._step_seconds), 3)
        self._write(trainer)
        trainer.print(f"Stopped after {self.summary['epochs']} epochs, {self.summary['seconds']} s: {reason}.")

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test_")}
        self.summary["tested"] = (
            "the weights of the last step" if self.summary.get("best") is None else "the best weights"
        )
        self.summary["test"] = figures
        self.summary["finished"] = True
        self._write(trainer)
        if trainer.is_global_zero:
            print(f"Test: {format_figures(figures, 'test_')}.")

    def _write(self, trainer: Trainer) -> None:
        if self._folder is not None and trainer.is_global_zero:
            write_json(self.summary, self._folder / "summary.json")


def is_tested_after(trainer: Trainer, diverged: bool) -> bool:
    """Whether a test is made after a fit; after one that has diverged only if weights were validated before."""
    best = best_checkpoint(trainer)
    if diverged and (best is None or best.best is None):
        return False
    return datamodule_of(trainer).has_test() and trainer.limit_test_batches != 0


def write_json(value: Any, path: Path) -> None:
    """Writes JSON in one step, so that there is never half a file; numbers that are not finite become ``null``."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(finite(value), indent=2, allow_nan=False)
    with replaced(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def recurrent_layer(module: nn.Module) -> nn.Module:
    """The module's largest layer that computes a recurrence."""
    layers = [m for m in module.modules() if isinstance(m, nn.RNNBase) or is_fused(m)]
    return max(layers, key=lambda m: sum(p.numel() for p in m.parameters()), default=module)


def is_fused(module: nn.Module) -> bool:
    """Whether this package's kernel runs the module."""
    return type(module).__module__.partition(".")[0] == "lstm_fused"


def kernel_in_use(layer: nn.Module) -> str:
    """What computes the recurrence, and where."""
    device = next((parameter.device for parameter in layer.parameters()), torch.device("cpu"))
    place = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    if not is_fused(layer):
        return f"torch {torch.__version__}{place}"
    import lstm_fused

    info = lstm_fused.build_info()
    if place:
        return f"lstm_fused {info['version']} on CUDA{place}"
    return f"lstm_fused {info['version']} kernel, {info['isa']}, {torch.get_num_threads()} threads"


def stop_reason(trainer: Trainer) -> str:
    """Why training stopped, in words."""
    callback: Callback | None
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            reason = callback.stopping_reason_message or callback.stopping_reason.value
            return reason.removesuffix("Signaling Trainer to stop.").strip().rstrip(".")
    if trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps:
        return f"the limit of {trainer.max_steps} steps"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return f"the limit of {trainer.max_epochs} epochs"
    for callback in callbacks_of(trainer):
        if isinstance(callback, Timer) and (remaining := callback.time_remaining()) is not None and remaining <= 0:
            return f"the limit of time, {timedelta(seconds=round(callback.time_elapsed()))} of training"
    return "the trainer was told to stop"


def why_nothing_is_validated(trainer: Trainer) -> str | None:
    """Why no validation will be run before training ends; ``None`` where one will, or where it cannot be known."""
    if not trainer.enable_validation:
        return "trainer.limit_val_batches is 0"
    batches, first = trainer.num_training_batches, trainer.val_check_batch
    if first is None or math.isinf(batches) or math.isinf(first):
        return None
    every = trainer.check_val_every_n_epoch
    if every is None:
        epochs, first = divmod(first - 1, batches)
        first += 1
    else:
        epochs = every - 1 - trainer.current_epoch % every
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + epochs:
        epoch = trainer.current_epoch + epochs
        return f"the first would be in epoch {epoch} (from 0), and trainer.max_epochs is {trainer.max_epochs}"
    steps_an_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    before = trainer.global_step + epochs * steps_an_epoch + (first - 1) // trainer.accumulate_grad_batches
    if 0 <= trainer.max_steps <= before:
        return f"the first would be after step {before + 1}, and trainer.max_steps is {trainer.max_steps}"
    return None


def format_figures(figures: dict[str, float], prefix: str) -> str:
    """``loss 1.2345, ppl 3.4366`` and the like, of the figures whose name begins with ``prefix``."""
    return ", ".join(f"{name[len(prefix) :]} {value:.4f}" for name, value in figures.items() if name.startswith(prefix))
