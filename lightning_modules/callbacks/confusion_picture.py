"""Which labels a classifier takes for which, as a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_modules.pictures import plain_names
from lightning_modules.runs import folder_of
from lightning_modules.trainer_parts import datamodule_of

MOST_NUMBERED = 20  # classes up to which each cell has its count written in it


class ConfusionPicture(Callback):
    """Draws ``confusion_valid.png`` in the run's folder when training has ended, ``confusion_test.png`` after a test.

    Both are of the weights that the model has then, which are the best ones. Under distributed training they are of
    the examples of all processes.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.val_dataloaders, "valid")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.test_dataloaders, "test")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, batches: Iterable[Any] | None, split: str) -> None:
        folder = folder_of(trainer)
        if folder is None or batches is None:
            return
        labels = datamodule_of(trainer).labels
        counts = confusion(trainer, pl_module, batches, len(labels))
        if trainer.is_global_zero:
            draw_confusion(counts, labels, folder / f"confusion_{split}.png", f"{split} split")


@torch.no_grad()
def confusion(trainer: Trainer, pl_module: LightningModule, batches: Iterable[Any], num_classes: int) -> Tensor:
    """How often each true class (row) is taken for each class (column): int64 [K, K], over all processes."""
    matrix = MulticlassConfusionMatrix(num_classes).to(pl_module.device)
    training = pl_module.training
    pl_module.eval()
    for batch in batches:
        batch = trainer.strategy.batch_to_device(batch)
        matrix.update(pl_module(batch.inputs, batch.lengths), batch.targets)
    pl_module.train(training)
    return matrix.compute().cpu()


@plain_names()
def draw_confusion(counts: Tensor, labels: Sequence[str], path: Path, title: str) -> None:
    """Writes the picture of a confusion matrix.

    Colors are shares of a true class, so that rare classes are as legible as frequent ones; the numbers are counts.

    Args:
        counts: int64 [K, K], true classes by rows.
        labels: names of the classes.
        path: of the PNG file.
        title: what the examples are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(labels)
    names = [label if len(label) <= 16 else label[:15] + "…" for label in labels]
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(3.2 + 0.42 * count, 12)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="cividis", vmin=0, vmax=1)
    if count <= MOST_NUMBERED:
        for row in range(count):
            for column in range(count):
                color = "black" if shares[row, column] > 0.55 else "white"
                axes.text(column, row, f"{int(counts[row, column]):,}", ha="center", va="center", color=color)
    every = max(1, -(-count // 60))  # more names than that overlap
    ticks = range(0, count, every)
    size = None if count <= 30 else 6
    turned = count > 4 and max(map(len, names)) > 3
    axes.set_xticks(ticks, names[::every], rotation=90 if turned else 0, fontsize=size)
    axes.set_yticks(ticks, names[::every], fontsize=size)
    accuracy = float(counts.diagonal().sum() / counts.sum().clamp(min=1))
    axes.set(xlabel="predicted label", ylabel="true label")
    axes.set_title(f"{title}: {accuracy:.1%} of {int(counts.sum()):,} examples right", fontsize="medium")
    figure.colorbar(image, ax=axes, label="share of the true label's examples", shrink=0.85)
    FigureCanvasAgg(figure).print_png(path)
