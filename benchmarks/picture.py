"""The results in one picture: training and inference on every shape, and below latency, dropouts and memory: those of
them that were measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from .memory import GROUP as MEMORY
from .models import DROPOUTS, EAGER, FULL, NORM, ONNXRUNTIME, PEER, PLAIN, SCRIPT
from .rows import Row, geometric_mean

COLORS = {
    PEER: "#444444",
    PLAIN: "#1b6ca8",
    NORM: "#3aa17e",
    FULL: "#8fc93a",
    SCRIPT: "#c9c9c9",
    EAGER: "#9a9a9a",
    ONNXRUNTIME: "#e0a030",
}
STREAMED = {
    PEER: COLORS[PEER],
    "nn.LSTMCell": COLORS[EAGER],
    "FusedLSTM": COLORS[PLAIN],
    "FusedLSTMCell": "#6aaede",
    ONNXRUNTIME: COLORS[ONNXRUNTIME],
}


def picture(rows: list[Row], facts: dict[str, str], path: Path) -> bool:
    """Whether there was anything to draw."""
    wide = {"training step": training, "inference": inference}
    narrow = {"one step, one sequence": streaming, "dropout on top of layer norm": dropout, MEMORY: memory}
    measured = {row.group for row in rows}
    above = [group for group in wide if group in measured]
    below = [group for group in narrow if group in measured]
    mosaic = [[group] * max(1, len(below)) for group in above] + ([below] if below else [])
    if not mosaic:
        return False
    figure, axes = plt.subplot_mosaic(mosaic, figsize=(12, 4 * len(mosaic)), layout="constrained")
    for group, each in axes.items():
        (wide | narrow)[group](each, [row for row in rows if row.group == group])
        each.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{facts['CPU']}, {facts['instruction set']}, one thread, torch {facts['torch']}", fontsize=11)
    candidates = {row.candidate for row in rows}
    handles = [Patch(color=color, label=name) for name, color in COLORS.items() if name in candidates]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def bars(axes: Axes, rows: list[Row], field: str, colors: dict[str, str], names: Iterable[str]) -> None:
    """A bar a candidate, side by side for each shape."""
    values = {name: {row.shape: getattr(row, field) for row in rows if row.candidate == name} for name in names}
    values = {name: by_shape for name, by_shape in values.items() if by_shape}
    shapes = list(dict.fromkeys(row.shape for row in rows))
    width = 0.8 / max(1, len(values))
    for index, (name, by_shape) in enumerate(values.items()):
        offset = (index - (len(values) - 1) / 2) * width
        places = [shapes.index(shape) + offset for shape in by_shape]
        axes.bar(places, list(by_shape.values()), width, label=name, color=colors[name])
    axes.set_xticks(range(len(shapes)), [shape.replace(" ", "\n") for shape in shapes], fontsize=9)


def training(axes: Axes, rows: list[Row]) -> None:
    bars(axes, rows, "speed_vs_nn_lstm", COLORS, (PLAIN, NORM, FULL, SCRIPT, EAGER))
    axes.axhline(1, color=COLORS[PEER], linewidth=1.5)
    axes.set_title("Speed of a training step, plain nn.LSTM = 1: more is faster", fontsize=10)


def inference(axes: Axes, rows: list[Row]) -> None:
    bars(axes, rows, "speed_vs_nn_lstm", COLORS, (PLAIN, NORM, ONNXRUNTIME))
    axes.axhline(1, color=COLORS[PEER], linewidth=1.5)
    axes.set_title("Speed of inference, plain nn.LSTM = 1: more is faster", fontsize=10)


def streaming(axes: Axes, rows: list[Row]) -> None:
    bars(axes, rows, "best_ms", STREAMED, STREAMED)
    axes.set_yscale("log")
    axes.set_title("One step of one sequence, ms: less is faster", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def dropout(axes: Axes, rows: list[Row]) -> None:
    """The geometric mean over the shapes, and a line to the worst."""
    percent = {name: [100 * (row.cost - 1) for row in rows if row.candidate == name] for name in reversed(DROPOUTS)}
    for place, (name, values) in enumerate((name, values) for name, values in percent.items() if values):
        mean = 100 * (geometric_mean([1 + value / 100 for value in values]) - 1)
        axes.barh(place, mean, color=COLORS[NORM], height=0.6)
        axes.plot([mean, max(values)], [place, place], color="black", linewidth=1)
        axes.text(0, place + 0.32, name, fontsize=8, va="bottom")
    axes.set_yticks([])
    axes.set_title(
        "What a dropout adds to the layer-normed step, %\n(mean of the shapes; line: the worst)", fontsize=10
    )


def memory(axes: Axes, rows: list[Row]) -> None:
    bars(axes, rows, "peak_mib", COLORS, (PEER, PLAIN, NORM, FULL))
    axes.set_title("Peak memory of a training step, MiB", fontsize=10)
