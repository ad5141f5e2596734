"""How well each type of entity is found, as a picture."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_modules.callbacks.checkpoints import best_checkpoint
from lightning_modules.models.entity_metrics import entity_scores
from lightning_modules.pictures import plain_names
from lightning_modules.runs import folder_of


class EntityPicture(Callback):
    """Draws ``entities_valid.png`` and ``entities_test.png``: precision, recall and F1 of each type of entity.

    That of the valid split is drawn when training ends, of the best weights; that of the test split after a test.
    """

    def __init__(self) -> None:
        self.counts: dict[int, list[list[int]]] = {}  # of the valid split, by step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.counts[trainer.global_step] = _counts(pl_module.val_metrics["f1"]).tolist()

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        found = best_checkpoint(trainer)
        best = None if found is None else found.best
        step = max(self.counts, default=None) if best is None else int(best["step"])
        if step is not None and step in self.counts:
            self._write(trainer, pl_module, "valid", torch.tensor(self.counts[step]), f", step {step}")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._write(trainer, pl_module, "test", _counts(pl_module.test_metrics["f1"]))

    def _write(self, trainer: Trainer, task: Any, split: str, counts: Tensor, what: str = "") -> None:
        folder = folder_of(trainer)
        if trainer.is_global_zero and folder is not None:
            draw_scores(
                folder / f"entities_{split}.png", counts, task.types, f"Entities of the {split} sentences{what}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts = dict(state_dict["counts"])


def _counts(metric: Any) -> Tensor:
    """Over all processes."""
    with metric.sync_context():
        counts: Tensor = metric.counts.clone().cpu()
        return counts


@plain_names()
def draw_scores(path: Path, counts: Tensor, types: list[str], title: str) -> None:
    """Writes the picture of counts [types, 3], right, found and there, as a PNG: a group of bars for each type."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [type_ or "entity" for type_ in types]
    if len(types) > 1:
        names, counts = ["all", *names], torch.cat((counts.sum(0, keepdim=True), counts))
    scores = entity_scores(counts)
    figure = Figure(figsize=(7, 1.7 + 0.7 * len(names)), layout="constrained")
    axes = figure.subplots()
    places = torch.arange(len(names), dtype=torch.float64)
    for k, (name, label) in enumerate((("precision", "precision"), ("recall", "recall"), ("f1", "F1"))):
        values = (100 * scores[name]).tolist()
        color = ("#56b4e9", "#e69f00", "#333333")[k]  # distinguishable for color-blind people, and in gray
        bars = axes.barh((places + 0.26 * (k - 1)).tolist(), values, height=0.24, color=color, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks(places.tolist(), [f"{name}\n({int(n):,})" for name, n in zip(names, counts[:, 2], strict=True)])
    axes.invert_yaxis()
    axes.set(
        xlabel="whole entities with the right type (%)", ylabel="type (entities there)", xlim=(0, 108), title=title
    )
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    FigureCanvasAgg(figure).print_png(path)
