"""The pictures of a report; what differs in color differs in line or marker too."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.experiments.report import AT_END, BETTER, NOT_TOLD_APART, SAME, WORSE, number
from lightning_modules.inspections.report import BLUE, RED, new_figure, save_figure
from lightning_modules.runs import ON_TRAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_modules.experiments.report import Report

GRAY = "0.45"
COLUMNS = 4
STYLE: Any = {"font.size": 11, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}


def draw_curves(report: "Report", path: Path) -> bool:
    """A panel a variant: the losses on validation and train data; whether there is anything to draw."""
    import matplotlib as mpl

    curves = {v: [r.curve for r in report.of(v) if r.curve] for v in report.variants}
    curves = {variant: found for variant, found in curves.items() if found}
    if not curves:
        return False
    columns = min(COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    with mpl.rc_context(STYLE):
        figure = new_figure(max(7.0, 2.3 * columns + 0.8), 2.3 * rows + 0.9)  # at least as wide as the legend
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        kinds = _kinds(curves.values())
        lows: list[float] = []
        for axes, (variant, found) in zip(grid.flat, curves.items(), strict=False):
            for curve in found:
                lows += [row[name] for row in curve for name in kinds if name in row]
                _draw_curve(axes, curve, kinds)
            row = report.row(variant, report.monitor)
            axes.set_title(f"{variant}\n{report.monitor} {number(row.mean)}", fontsize=10)
        for axes in grid.flat[len(curves) :]:
            axes.set_visible(False)
        for axes in grid.flat[: len(curves)][-columns:]:  # the lowest ones, where the last row is not full too
            axes.tick_params(labelbottom=True)
        if lows and min(lows) > 0 and max(lows) > 30 * min(lows):
            grid[0, 0].set_yscale("log")
        unit = f" ({report.loss_unit})" if report.loss_unit else ""
        figure.supylabel(f"loss{unit}")
        figure.supxlabel("steps of training")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        by_label = dict(zip(labels, handles, strict=True))
        figure.legend(by_label.values(), by_label.keys(), loc="outside upper center", ncols=3, frameon=False)
        save_figure(figure, path)
    return True


def _kinds(curves: Iterable[list[list[dict[str, float]]]]) -> dict[str, tuple[str, str, str]]:
    """The losses to draw by name, each with its label, line style and color."""
    on_train = any(ON_TRAIN in row for found in curves for curve in found for row in curve)
    label = "train data, measured alike" if on_train else "train (mean of the epoch)"
    return {"val_loss": ("validation", "-", BLUE), ON_TRAIN if on_train else "train_loss": (label, "--", RED)}


def _draw_curve(axes: "Axes", curve: list[dict[str, float]], kinds: dict[str, tuple[str, str, str]]) -> None:
    for name, (label, style, color) in kinds.items():
        points = [(row["step"], row[name]) for row in curve if name in row]
        if points:
            marker = "." if len(points) < 3 else None
            axes.plot(*zip(*points, strict=True), style, color=color, label=label, linewidth=1.3, marker=marker)
    best = min((row for row in curve if "val_loss" in row), key=lambda row: row["val_loss"], default=None)
    if best is not None:
        label = "least validation loss"
        axes.plot(best["step"], best["val_loss"], "o", color="black", markersize=5, label=label, linestyle="none")


def draw_differences(report: "Report", path: Path) -> bool:
    """Each variant's difference to the baseline, a panel a main figure of the best weights; whether there is any."""
    import matplotlib as mpl

    figures = {
        figure: [row for v in report.variants if (row := report.row(v, figure)).difference is not None]
        for figure in report.main_figures
        if not figure.endswith(AT_END)
    }
    figures = {figure: rows for figure, rows in figures.items() if rows}
    if not figures:
        return False
    names = [variant for variant in report.variants if variant != report.baseline]
    styles = {
        BETTER: ("o", BLUE, "better"),
        WORSE: ("s", RED, "worse"),
        NOT_TOLD_APART: ("D", GRAY, "not told apart"),
        SAME: ("|", GRAY, SAME),
        None: ("D", GRAY, "a single seed"),
    }
    with mpl.rc_context(STYLE):
        figure = new_figure(2.7 * len(figures) + 1.9, 0.38 * len(names) + 1.8)
        grid = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(grid, figures.items(), strict=True):
            axes.axvline(0, color="black", linewidth=1)
            for row in rows:
                verdict = report.verdict(row)
                marker, color, label = styles.get(verdict, styles[None])
                difference = row.difference
                assert difference is not None  # rows without one are not drawn
                half = 0.0 if difference.pairs == 1 else difference.high - difference.mean
                axes.errorbar(
                    difference.mean, names.index(row.variant), xerr=half or None, fmt=marker, color=color, capsize=4,
                    markersize=7, linewidth=2, label=label,
                )  # fmt: skip
            base = report.row(report.baseline, name).mean
            words = {1: "more is better", -1: "less is better", 0: ""}[report.direction(name)]
            value = f"{number(base)} {report.unit(name)}".strip()
            axes.set_xlabel(f"{name} less that of\n{report.baseline}, {value}\n({words})", fontsize=10)
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(axis="x", labelsize=9)
            axes.locator_params(axis="x", nbins=4)
        grid[0].set_ylim(len(names) - 0.5, -0.5)
        entries: dict[str, Any] = {}
        for axes in grid:
            handles, labels = axes.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
        figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=4, frameon=False)
        save_figure(figure, path)
    return True
