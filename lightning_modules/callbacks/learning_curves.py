"""Learning curves as a picture."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.runs import folder_of


class LearningCurves(Callback):
    """Draws ``learning_curves.png`` in the run's folder: the losses of training and validation by epoch.

    It is drawn anew after every epoch, so an interrupted run has one too; a resumed run's begins at the first epoch.
    ``epochs`` has every epoch's figures.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val_") or name == "train_loss_epoch"
        }
        self.epochs.append({"epoch": trainer.current_epoch, **figures})
        folder = folder_of(trainer)
        if trainer.is_global_zero and folder is not None:
            self.draw(folder / "learning_curves.png", f"loss ({getattr(pl_module, 'loss_unit', '')})")

    def draw(self, path: Path, ylabel: str = "loss") -> None:
        """Writes the picture of the epochs so far."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, label in (("train_loss_epoch", "train"), ("val_loss", "validation")):
            points = [(row["epoch"], row[name]) for row in self.epochs if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        if points:
            epoch, loss = min(points, key=lambda point: point[1])
            axes.axvline(epoch, color="grey", linestyle=":", label=f"best: {loss:.4f} in epoch {epoch}")
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
        FigureCanvasAgg(figure).print_png(path)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])
