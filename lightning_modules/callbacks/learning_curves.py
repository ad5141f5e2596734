"""Learning curves as a picture."""

import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.callbacks.resume_point import epochs_done, is_fitting
from lightning_modules.runs import folder_of

SECONDS_BETWEEN = 10.0  # pictures of a run whose epochs are short


class LearningCurves(Callback):
    """Draws ``learning_curves.png`` in the run's folder: the losses of training and validation, as they were measured.

    A validation in the middle of an epoch stands there, and an epoch without one has none. It is drawn anew at epochs'
    ends, every ten seconds at most, and when training ends in any way; a resumed run's begins at the first epoch.

    Attributes:
        epochs: every measurement: ``epoch`` (from 0) and ``step``, ``epochs``, the number trained by then, and the
            figures of a validation there, or of the training over the epoch that ended there, or both.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._folder: Path | None = None
        self._unit = ""
        self._drawn_at = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_at = time.monotonic()
        self._folder = folder_of(trainer)
        self._unit = getattr(pl_module, "loss_unit", "")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer):
            self._add(trainer, "val_")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add(trainer, "train_loss_epoch")
        if time.monotonic() - self._drawn_at > SECONDS_BETWEEN:
            self._draw_in_folder(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_in_folder(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_fitting(trainer):
            self._draw_in_folder(trainer)

    def _add(self, trainer: Trainer, prefix: str) -> None:
        """Adds the trainer's figures of a name that begins so to the measurements of this step."""
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
        if not self.epochs or self.epochs[-1]["step"] != trainer.global_step:
            place = {"epoch": trainer.current_epoch, "step": trainer.global_step, "epochs": epochs_done(trainer)}
            self.epochs.append(place)
        self.epochs[-1] |= figures

    def _draw_in_folder(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self._folder is not None and self.epochs:
            self.draw(self._folder / "learning_curves.png")
            self._drawn_at = time.monotonic()

    def draw(self, path: Path) -> None:
        """Writes the picture of the measurements so far."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, label in (("train_loss_epoch", "train"), ("val_loss", "validation")):
            points = [(row["epochs"], row[name]) for row in self.epochs if math.isfinite(row.get(name, math.nan))]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        if points:
            epochs, loss = min(points, key=lambda point: point[1])
            axes.axvline(epochs, color="grey", linestyle=":", label=f"best: {loss:.4f} after {epochs:.4g} epochs")
        axes.set(xlabel="epochs", ylabel=f"loss ({self._unit})" if self._unit else "loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        FigureCanvasAgg(figure).print_png(path)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """(An older version measured at an epoch's end alone, and told no step.)"""
        self.epochs = [{"step": -1, "epochs": row["epoch"] + 1, **row} for row in state_dict["epochs"]]
