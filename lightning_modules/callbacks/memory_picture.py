"""What a model remembers, as a picture."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lightning_modules.callbacks.confusion_picture import draw_confusion
from lightning_modules.pictures import plain_names
from lightning_modules.runs import folder_of
from lightning_modules.trainer_parts import datamodule_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class MemoryPicture(Callback):
    """Draws, when training has ended, how well the model remembers, from the test split, or else the valid split.

    - A class after the last step, by distance: the accuracy over the steps from the first to the answer, as
      ``accuracy_over_distance.png`` and ``.csv``; otherwise the confusion matrix, as ``confusion.png`` and ``.csv``.
    - Classes after every step: the accuracy of each recalled position, as ``accuracy_by_position.png`` and ``.csv``.
    - Numbers: predictions over targets, as ``predictions.png``.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder, data = folder_of(trainer), datamodule_of(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        split = "test" if data.has_test() else "valid"
        loader = (data.test_dataloader() if split == "test" else data.val_dataloader()).whole()
        was_training = pl_module.training
        pl_module.eval()
        with torch.inference_mode():
            batches = (pl_module.transfer_batch_to_device(batch, pl_module.device, 0) for batch in loader)
            outcomes = [pl_module.predict_step(batch) for batch in batches]
        pl_module.train(was_training)
        self.draw(outcomes, data, split, folder)

    @plain_names()
    def draw(self, outcomes: list[Any], data: Any, split: str, folder: Path) -> Path:
        """Writes the picture of the outcomes, and its figures."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        lengths = torch.cat([outcome.lengths for outcome in outcomes]).cpu()
        outputs = torch.cat([outcome.outputs for outcome in outcomes], -1 if data.target == "number" else -2).cpu()
        targets = torch.cat([outcome.targets for outcome in outcomes], -1).cpu()
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        if data.target == "number":
            name, table = "predictions", None
            draw_numbers(axes, targets, outputs)
        elif data.target == "classes":
            name = "accuracy_by_position"
            right = (outputs.argmax(-1) == targets).double().mean(1)
            table = [["position", "accuracy"], *([k + 1, value] for k, value in enumerate(right.tolist()))]
            draw_accuracy(axes, table, 1 / (data.output_size - 1), "position of the symbol")
            if len(table) <= 20:
                axes.set_xticks([position for position, _ in table[1:]])
        elif data.by_distance:
            name = "accuracy_over_distance"
            right = (outputs.argmax(-1) == targets).double()
            table = [["distance", "accuracy"]]
            table += [[int(n) - 1, float(right[lengths == n].mean())] for n in lengths.unique()]
            draw_accuracy(axes, table, 1 / data.output_size, "distance (steps of noise)")
            if table[-1][0] > 20 * max(table[1][0], 1):
                axes.set_xscale("symlog" if table[1][0] == 0 else "log")
                axes.set_xticks([distance for distance, _ in table[1:]], [str(distance) for distance, _ in table[1:]])
                axes.minorticks_off()
        else:
            name = "confusion"
            counts = multiclass_confusion_matrix(outputs, targets, data.output_size)
            names = [data.class_name(k) for k in range(data.output_size)]
            table = [["target", *names], *([name, *row] for name, row in zip(names, counts.tolist(), strict=True))]
        path = folder / f"{name}.png"
        if name == "confusion":
            draw_confusion(counts, names, path, f"{split} split")
        else:
            axes.set_title(f"{split} split, {len(lengths):,} sequences", fontsize="medium")
            FigureCanvasAgg(figure).print_png(path)
        if table is not None:
            with open(path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(table)
        return path


def draw_accuracy(axes: "Axes", table: list[list[Any]], chance: float, xlabel: str) -> None:
    """The accuracy over a distance or a position, with chance and 90 % as lines."""
    axes.plot(*zip(*table[1:], strict=True), marker="o")
    axes.axhline(0.9, color="gray", linestyle="--", linewidth=1, label="90%")
    axes.axhline(chance, color="gray", linestyle=":", linewidth=1, label=f"chance: {chance:.1%}")
    axes.set(xlabel=xlabel, ylabel="accuracy", ylim=(0, 1.04))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_numbers(axes: "Axes", targets: torch.Tensor, outputs: torch.Tensor) -> None:
    """Predictions over targets, at most 1,000 of them, and the line on which they should lie."""
    axes.plot([0, 2], [0, 2], color="gray", linestyle="--", linewidth=1, label="exact")
    mse = float((outputs - targets).square().mean())
    axes.scatter(targets[:1000], outputs[:1000], s=10, alpha=0.5, edgecolors="none", label=f"MSE {mse:.4f}")
    axes.set(xlabel="sum of the two marked numbers", ylabel="prediction")
    axes.grid(alpha=0.3)
    axes.legend()
