"""Learning curves: a line and a table row an epoch while a run goes, and a picture."""

import csv
import math
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_modules.callbacks.checkpoints import best_checkpoint
from lightning_modules.callbacks.resume_point import epochs_done, is_fitting
from lightning_modules.files import replaced
from lightning_modules.pictures import log_y, plain_names
from lightning_modules.runs import ON_TRAIN, folder_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SECONDS_BETWEEN = 10.0  # pictures of a run whose epochs are short
Row = dict[str, float]


class LearningCurves(Callback):
    """Tells what was measured and whether it improved: a line on stdout, ``epochs.csv`` and ``learning_curves.png``.

    The figure that is watched is that of the best checkpoint and of early stopping: ``val_loss``, or any other, where
    more may be better. A measurement improves where it is strictly better than all before it; NaN and infinity never
    are. There is one an epoch; a validation in the middle of an epoch stands where it was made, with a line and a row
    of its own, and an epoch without one has none.

    The picture shows the losses of training and validation, and beneath them the watched figure where it is no loss of
    these. The stretch up to a measurement is shaded by whether that improved; the best is marked, and where training
    ended. It is drawn anew at epochs' ends, every ten seconds at most, and when training ends in any way; a resumed
    run's begins at the first epoch, as does its table.

    Attributes:
        epochs: every measurement: ``epoch`` (from 0) and ``step``, ``epochs``, the number trained by then, and the
            figures of a validation there, or of the training over the epoch that ended there, or both.
    """

    def __init__(self) -> None:
        self.epochs: list[Row] = []
        self.monitor, self.mode = "val_loss", "min"
        self._folder: Path | None = None
        self._unit = ""
        self._drawn_at = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_at = time.monotonic()
        self._folder = folder_of(trainer)
        self._unit = getattr(pl_module, "loss_unit", "")
        watching = [best_checkpoint(trainer), *trainer.early_stopping_callbacks]
        if watching := [callback for callback in watching if callback is not None]:
            first: Any = watching[0]
            self.monitor, self.mode = first.monitor, first.mode

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer):
            self._add(trainer, "val_")
            if not trainer.is_last_batch:  # the epoch's own row comes with its end
                self._tell(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add(trainer, "train_loss_epoch")
        self._tell(trainer, pl_module)
        if time.monotonic() - self._drawn_at > SECONDS_BETWEEN:
            self._draw_in_folder(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reasons = [getattr(c, "stopping_reason", None) for c in trainer.early_stopping_callbacks]
        early = any(reason not in (None, EarlyStoppingReason.NOT_STOPPED) for reason in reasons)
        self._draw_in_folder(trainer, "early stopping" if early else "end")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_fitting(trainer):
            self._draw_in_folder(trainer, "stopped")

    # What was measured ----------------------------------------------------------------------------------------------

    def _add(self, trainer: Trainer, prefix: str) -> None:
        """Adds the trainer's figures of a name that begins so to the measurements of this step."""
        in_training = prefix.startswith("train")
        figures = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix) or (name == self.monitor and name.startswith("train") == in_training)
        }
        if not self.epochs or self.epochs[-1]["step"] != trainer.global_step:
            place = {"epoch": trainer.current_epoch, "step": trainer.global_step, "epochs": epochs_done(trainer)}
            self.epochs.append(place)
        self.epochs[-1] |= figures

    def improvements(self) -> list[bool | None]:
        """Of each measurement, whether the watched figure is the best so far; ``None`` where it was not measured."""
        best, found = math.inf, []
        for row in self.epochs:
            value = row.get(self.monitor)
            signed = math.nan if value is None else -value if self.mode == "max" else value
            found.append(None if value is None else math.isfinite(signed) and signed < best)
            best = signed if found[-1] else best
        return found

    def table(self) -> Iterator[tuple[Any, ...]]:
        """The header and the rows of ``epochs.csv``."""
        others = [] if self.monitor in ("val_loss", "train_loss", "train_loss_epoch") else [self.monitor]
        others += [ON_TRAIN] if any(ON_TRAIN in row for row in self.epochs) else []
        yield ("epoch", "step", "train_loss", "val_loss", *others, "improved")
        words = {True: "yes", False: "no", None: ""}
        for row, improved in zip(self.epochs, self.improvements(), strict=True):
            figures = (row.get(name, "") for name in ("train_loss_epoch", "val_loss", *others))
            yield (row["epoch"], row["step"], *figures, words[improved])

    def _tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last measurement as a line, and all of them as a table."""
        if not trainer.is_global_zero or not self.epochs:
            return
        names, *_, row = self.table()
        measured = [(name, value) for name, value in zip(names[2:-1], row[2:-1], strict=True) if value != ""]
        figures = ", ".join(f"{name} {format_figure(value)}" for name, value in measured)
        verdict = {"yes": f"{self.monitor} improved", "no": f"{self.monitor} did not improve", "": ""}[row[-1]]
        place = f"epoch {row[0]}" if trainer.is_last_batch else f"epoch {row[0]}, step {row[1]}"
        pl_module.print(f"{place}: {figures}{'; ' if verdict else ''}{verdict}")
        sys.stdout.flush()  # a log that is a file is read while the run goes
        if self._folder is not None:
            with replaced(self._folder / "epochs.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self.table())

    # The picture ----------------------------------------------------------------------------------------------------

    def _draw_in_folder(self, trainer: Trainer, end: str | None = None) -> None:
        if trainer.is_global_zero and self._folder is not None and self.epochs:
            self.draw(self._folder / "learning_curves.png", (epochs_done(trainer), end) if end else None)
            self._drawn_at = time.monotonic()

    @plain_names()
    def draw(self, path: Path, end: tuple[float, str] | None = None) -> None:
        """Writes the picture of the measurements so far; ``end``: after how many epochs training ended, and how."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(self.figure(end)).print_png(path)

    def figure(self, end: tuple[float, str] | None = None) -> "Figure":
        """The picture."""
        from matplotlib.figure import Figure

        losses = [("train_loss_epoch", "train (mean of the epoch)"), ("val_loss", "validation")]
        panels = [losses]
        if self.monitor not in ("train_loss", *(name for name, _ in losses)):
            panels.append([(self.monitor, self.monitor)])
        figure = Figure(figsize=(10, 4.8 if len(panels) == 1 else 7.2), layout="constrained")
        all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, curves in zip(all_axes, panels, strict=True):
            for color, (name, label) in enumerate(curves, start=0 if curves is losses else 1):
                self._draw_curve(axes, name, label, f"C{color}")
            self._mark(axes, end)
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
            named = None if curves is losses else axes.get_lines()[:1]  # one legend explains the shades
            axes.legend(handles=named, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
            axes.set_ylabel((f"loss ({self._unit})" if self._unit else "loss") if curves is losses else self.monitor)
            values = [row[name] for row in self.epochs for name, _ in curves if name in row]
            if spans_decades(values):
                log_y(axes)
        all_axes[-1].set(xlabel="epochs", xlim=(0, None))
        all_axes[-1].xaxis.get_major_locator().set_params(integer=True)
        return figure

    def _draw_curve(self, axes: "Axes", name: str, label: str, color: str) -> None:
        """What is not finite is a gap in the line, and a cross at the edge."""
        points = [(row["epochs"], row[name]) for row in self.epochs if name in row]
        if points:
            style: dict[str, Any] = {"marker": "o", "markersize": 4 if len(points) <= 50 else 2, "color": color}
            axes.plot(*zip(*points, strict=True), label=label, **style)
        if lost := [epochs for epochs, value in points if not math.isfinite(value)]:
            edge = axes.get_xaxis_transform()
            axes.plot(lost, [0.02] * len(lost), "x", color=color, transform=edge, label=f"{label}: not finite")

    def _mark(self, axes: "Axes", end: tuple[float, str] | None) -> None:
        """Shades what improved and what did not; marks the best, and the end."""
        measured = [
            (row["epochs"], row[self.monitor], improved)
            for row, improved in zip(self.epochs, self.improvements(), strict=True)
            if improved is not None
        ]
        labeled: set[bool] = set()
        for (begin, _, _), (stop, _, improved) in pairwise([(0.0, 0.0, False), *measured]):
            color, word = ("tab:green", "improved") if improved else ("tab:gray", "did not improve")
            once = None if improved in labeled else f"{self.monitor} {word}"
            axes.axvspan(begin, stop, color=color, alpha=0.16, linewidth=0, zorder=0, label=once)
            labeled.add(improved)
        if best := [(epochs, value) for epochs, value, improved in measured if improved]:
            epochs, value = best[-1]
            label = f"best: {self.monitor} {format_figure(value)}\nafter {epochs:.4g} epochs"
            axes.axvline(epochs, color="tab:green", linestyle="--", label=label)
        if end is not None:
            axes.axvline(end[0], color="black", linestyle=":", label=f"{end[1]}: after {end[0]:.4g} epochs")

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """(An older version measured only at the end of epochs, and recorded no step.)"""
        self.epochs = [{"step": -1, "epochs": row["epoch"] + 1, **row} for row in state_dict["epochs"]]


def format_figure(value: float) -> str:
    """Four decimals, or three digits where those would show too few."""
    return f"{value:.4f}" if not 0 < abs(value) < 0.01 else f"{value:.3g}"


def spans_decades(values: list[float]) -> bool:
    """Whether only a logarithmic axis shows all of the values."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 30 * min(finite)
