"""The report of an experiment: tables, pictures and findings, from whatever runs there are."""

import csv
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_modules.experiments.plan import Plan, Run
from lightning_modules.experiments.statistics import Difference, deviation, mean, paired_difference
from lightning_modules.experiments.wandb_report import log_report
from lightning_modules.files import replaced
from lightning_modules.inspections.report import format_table
from lightning_modules.runs import ON_TRAIN, read_summary

if TYPE_CHECKING:
    from lightning_modules.experiments.base import Experiment

AT_END = "_at_end"  # of a figure's name: it is of the last weights

# The words for a difference, and what is not known.
BETTER, WORSE, NOT_TOLD_APART, ONE_PAIR = "better", "worse", "not told apart", "a single seed, no interval"
SAME = "the same in every run"


@dataclass(frozen=True)
class Result:
    """A run that is finished.

    Args:
        run: of the plan.
        folder: its newest.
        summary: its ``summary.json``.
        curve: the rows of its ``epochs.csv``: what was measured from its first epoch on.
    """

    run: Run
    folder: Path
    summary: dict[str, Any]
    curve: list[dict[str, float]]
    more: dict[str, float] = field(default_factory=dict)  # figures of the experiment

    @cached_property
    def figures(self) -> dict[str, float]:
        """Figures by name, those that are finite; none of them is a time.

        ``val_...`` are of the best weights, as are ``test_...`` and ``gap``, the validation loss less the loss on train
        data; ``..._at_end`` is of the last weights that were validated.
        """
        summary, best = self.summary, self.summary.get("best") or {}
        found = {name: value for name, value in best.items() if name.startswith("val_")}
        if ON_TRAIN in found:
            found["gap"] = gap(found)
            ends = [row for row in self.curve if ON_TRAIN in row]
            found[f"gap{AT_END}"] = gap(ends[-1]) if ends else None
        monitor = summary.get("monitor")
        found[f"{monitor}{AT_END}"] = next((row[monitor] for row in reversed(self.curve) if monitor in row), None)
        found |= summary.get("test") or {}
        found |= self.more
        found["train_loss_at_end"] = next(
            (row["train_loss"] for row in reversed(self.curve) if "train_loss" in row), None
        )
        found["best_epoch"] = best.get("epoch")
        found["epochs"] = summary.get("epochs")
        found["steps"] = summary.get("steps")
        found["parameters"] = sum(sum(part.values()) for part in summary.get("parameters", {}).values()) or None
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    @property
    def times(self) -> dict[str, float]:
        return {name: self.summary[name] for name in ("seconds", "ms_a_step") if self.summary.get(name) is not None}


def gap(figures: dict[str, float]) -> float | None:
    valid, on_train = figures.get("val_loss"), figures.get(ON_TRAIN)
    return None if valid is None or on_train is None else valid - on_train


class Row(NamedTuple):
    """What there is to say of a figure of a variant."""

    variant: str
    figure: str
    values: dict[int, float]  # by seed
    difference: Difference | None  # to the baseline; None of the baseline itself, and where no seed has both

    @property
    def mean(self) -> float:
        return mean(list(self.values.values()))

    @property
    def deviation(self) -> float:
        return deviation(list(self.values.values()))


class Report:
    """The results of a plan.

    Args:
        experiment: whose plan it is.
        plan: its variants and seeds.

    Attributes:
        results: of the runs that are finished.
        missing: the others, each with its state.
        needless: those that need not be made, each with the reason.
        variants: those with results, in the plan's order.
        baseline: the variant that the others are compared with: the plan's first.
        monitor: the figure that the best weights were chosen by.
    """

    def __init__(self, experiment: "Experiment", plan: Plan) -> None:
        self.experiment, self.plan, self.folder = experiment, plan, plan.folder
        self.results: list[Result] = []
        self.missing: list[tuple[Run, str]] = []
        for run in plan.runs():
            if (folder := run.result()) is not None:
                self.results.append(Result(run, folder, read_summary(folder), read_curve(folder)))
            else:
                self.missing.append((run, run.state))
        for result, figures in zip(self.results, experiment.more_figures(self.results), strict=True):
            result.more.update(figures)
        self.baseline = plan.chosen[0]
        with_results = {result.run.variant for result in self.results}
        self.variants = [variant for variant in plan.chosen if variant in with_results]
        self.needless = {
            run: reason
            for run, state in self.missing
            if state == "missing" and (reason := experiment.needless(run, self)) is not None
        }
        self.missing = [(run, state) for run, state in self.missing if run not in self.needless]
        judged = next((r.summary for r in self.results if r.summary.get("monitor")), {})
        self.monitor, self.mode = judged.get("monitor", "val_loss"), judged.get("mode", "min")
        self.loss_unit = next((r.summary["loss_unit"] for r in self.results if r.summary.get("loss_unit")), "")

    # Figures --------------------------------------------------------------------------------------------------------

    def of(self, variant: str) -> list[Result]:
        return [result for result in self.results if result.run.variant == variant]

    def row(self, variant: str, figure: str) -> Row:
        def values(name: str) -> dict[int, float]:
            return {r.run.seed: r.figures[figure] for r in self.of(name) if figure in r.figures}

        of_it = values(variant)
        difference = None if variant == self.baseline else paired_difference(of_it, values(self.baseline))
        return Row(variant, figure, of_it, difference)

    @cached_property
    def figures(self) -> list[str]:
        """The names of all figures of any run: first what was judged by, then the same on the test split."""
        names = dict.fromkeys([*self.main_figures, *(name for r in self.results for name in r.figures)])
        names.pop(ON_TRAIN, None)
        return list(names)

    @cached_property
    def main_figures(self) -> list[str]:
        """Those that the variants are compared by."""
        wanted = [self.monitor, self.monitor.replace("val_", "test_", 1), "gap"]
        wanted += [f"{name}{AT_END}" for name in (self.monitor, "gap")]
        return [name for name in dict.fromkeys(wanted) if any(name in r.figures for r in self.results)]

    def direction(self, figure: str) -> int:
        """1 where more is better, -1 where less is, 0 where neither can be said."""
        figure = figure.removesuffix(AT_END)
        if figure.partition("_")[2] == self.monitor.partition("_")[2]:
            return 1 if self.mode == "max" else -1
        return -1 if figure.endswith("loss") or figure == "gap" else 0

    def unit(self, figure: str) -> str:
        """That of the losses and of what is made of them; nothing of others."""
        return self.loss_unit if figure.removesuffix(AT_END).endswith(("loss", "gap")) else ""

    def verdict(self, row: Row) -> str | None:
        """What the difference to the baseline comes to, in a word; ``None`` where there is none."""
        if row.difference is None:
            return None
        base = self.row(self.baseline, row.figure).values
        if all(value == base[seed] for seed, value in row.values.items() if seed in base):
            return SAME  # the variant turns off what is off
        if row.difference.pairs == 1:
            return ONE_PAIR
        if not row.difference.is_told_apart:
            return NOT_TOLD_APART
        return BETTER if row.difference.mean * self.direction(row.figure) > 0 else WORSE

    def findings(self) -> list[str]:
        """A sentence for each of the main figures: which variants differ from the baseline, and by how much."""
        found = []
        for figure in self.main_figures:
            rows = [self.row(variant, figure) for variant in self.variants if variant != self.baseline]
            base = self.row(self.baseline, figure)
            if not rows or not base.values:
                continue
            words = {1: "more is better", -1: "less is better", 0: ""}[self.direction(figure)]
            parts = []
            for verdict in (BETTER, WORSE, NOT_TOLD_APART, ONE_PAIR, SAME):
                named = [f"{r.variant} {format_difference(r.difference)}" for r in rows if self.verdict(r) == verdict]
                parts += [f"{verdict}: {', '.join(named)}"] if named else []
            found.append(f"{figure} ({words}), against {self.baseline} with {number(base.mean)}: {'; '.join(parts)}.")
        return found

    # Files ----------------------------------------------------------------------------------------------------------

    def write(self) -> str:
        """Writes ``report.md``, the CSV files and the pictures into the plan's folder; what is to be printed of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tables, pictures = self._tables(), self._draw()
        for name, (columns, rows) in tables.items():
            write_csv(self.folder / f"{name}.csv", columns, rows)
        with replaced(self.folder / "report.md") as path:
            path.write_text(self.markdown(pictures), encoding="utf-8")
        log_report(self, tables, [file for file, _ in pictures])
        lines = [self.experiment.overview(self)] if self.results else []
        lines += [f"- {finding}" for finding in self._findings()]
        lines += [f"- {line}" for line in self._missing()]
        return "\n".join([*lines, f"The report is {self.folder / 'report.md'}"])

    def _findings(self) -> list[str]:
        return self.experiment.findings(self) if self.results else []

    def _tables(self) -> dict[str, tuple[Sequence[str], list[list[Any]]]]:
        """Of each CSV file the names of its columns, and its rows."""
        rows = [self.row(variant, figure) for figure in self.figures for variant in self.variants]
        times = ("seconds", "ms_a_step")
        return {
            "table": (
                ("figure", "variant", "mean", "deviation", "seeds", "difference", "low", "high", "pairs"),
                [
                    [r.figure, r.variant, r.mean, r.deviation, len(r.values), *(r.difference or [None] * 4)]
                    for r in rows
                ],
            ),
            "runs": (
                ("variant", "seed", *self.figures, "stop_reason"),
                [
                    [r.run.variant, r.run.seed, *map(r.figures.get, self.figures), r.summary["stop_reason"]]
                    for r in self.results
                ],
            ),
            "times": (
                ("variant", "seed", *times, "kernel", "folder"),
                [
                    [r.run.variant, r.run.seed, *map(r.times.get, times), r.summary.get("kernel"), str(r.folder)]
                    for r in self.results
                ],
            ),
        }

    def _draw(self) -> list[tuple[str, str]]:
        """The pictures: file and caption."""
        from lightning_modules.experiments import pictures

        if not self.results:
            return []
        drawn = []
        if not self.experiment.compares:
            return self.experiment.pictures(self)
        if pictures.draw_curves(self, self.folder / "curves.png"):
            drawn.append(("curves.png", "Losses over the steps of training, a line a seed"))
        if pictures.draw_differences(self, self.folder / "differences.png"):
            drawn.append(("differences.png", f"Differences to {self.baseline} with their 95 % intervals"))
        return drawn + self.experiment.pictures(self)

    # Text -----------------------------------------------------------------------------------------------------------

    def markdown(self, pictures: Iterable[tuple[str, str]] = ()) -> str:
        """The report as a page."""
        arguments = shlex.join(self.plan.arguments)
        parts = [f"# {self.plan.experiment}: {self.folder.name}", f"Every run: `lstm-fused fit {arguments}`, and:"]
        parts.append(
            format_table(("variant", "its arguments"), [(name, self._arguments(name)) for name in self.plan.chosen])
        )
        if missing := self._missing():
            parts += ["## Missing", "\n".join(f"- {line}" for line in missing)]
        if self.results:
            parts += ["## Findings", "\n".join(f"- {finding}" for finding in self._findings())]
            parts += ["## Figures", self.experiment.overview(self)]
            if self.experiment.compares:
                parts.append(
                    f"Mean and standard deviation over the seeds, of the weights with the best {self.monitor} "
                    f"({'most' if self.mode == 'max' else 'least'}). {self._gap_says()}".strip()
                )
            if self.experiment.compares and self.baseline in self.variants and len(self.variants) > 1:
                parts += [f"## Differences to {self.baseline}", self.differences()]
                parts.append("In brackets the 95 % interval of the mean difference (Student's t over pairs of a seed).")
            parts += [f"![{caption}]({file})" for file, caption in pictures]
            if self.experiment.shows_samples and (samples := self._samples()):
                parts += ["## Samples", *samples]
            parts += ["## Time", self.times()]
            parts.append("Means over the seeds, as measured on the machine that ran them, with whatever else it ran.")
        return "\n\n".join(parts) + "\n"

    def _samples(self, most: int = 300) -> list[str]:
        """The beginning of what the first run of each variant has drawn as a text."""
        found = []
        for variant in self.variants:
            path = self.of(variant)[0].folder / "sample.txt"
            if path.is_file():
                text = path.read_text(encoding="utf-8")[:most].replace("~~~", "")
                found.append(f"{variant}:\n\n~~~text\n{text}\n~~~")
        return found

    def _arguments(self, variant: str) -> str:
        words = self.plan.variants[variant]
        return f"`{shlex.join(words)}`" if words else "none"

    def _gap_says(self) -> str:
        if "gap" not in self.figures:
            return ""
        return (
            "The gap is the validation loss less the loss on train data, both measured alike (without dropout); "
            "what ends with at_end is of the last weights."
        )

    def overview(self) -> str:
        """A row a variant: every figure with its deviation."""
        names = [name for name in self.figures if name not in ("steps", "epochs")]
        rows = []
        for variant in self.variants:
            cells = [self.row(variant, name) for name in names]
            rows.append((variant, len(self.of(variant)), *(with_deviation(cell) for cell in cells)))
        return format_table(("variant", "seeds", *names), rows)

    def differences(self) -> str:
        rows = []
        for variant in self.variants:
            if variant != self.baseline:
                cells = [self.row(variant, name) for name in self.main_figures]
                rows.append((variant, *(f"{format_difference(c.difference)}, {self.verdict(c)}" if c.difference else ""
                             for c in cells)))  # fmt: skip
        return format_table(("variant", *self.main_figures), rows)

    def times(self) -> str:
        rows = []
        for variant in self.variants:
            times = [[r.times[name] for r in self.of(variant) if name in r.times] for name in ("seconds", "ms_a_step")]
            rows.append((variant, *(f"{mean(values):.1f}" if values else "" for values in times)))
        return format_table(("variant", "seconds of training", "ms a step (median)"), rows)

    def _missing(self) -> list[str]:
        """The runs that are not finished: those of a state in one line, of those that failed those of an error."""
        lines = []
        for state in ("unfinished", "missing"):
            names = [run.name for run, its in self.missing if its == state]
            words = {"unfinished": "begun and not finished", "missing": "not begun"}[state]
            lines += [f"{len(names)} {words}: {', '.join(names)}"] if names else []
        failed: dict[str, list[str]] = {}
        for run, its in self.missing:
            if its == "failed":
                failed.setdefault(run.failure or "", []).append(run.name)
        lines += [f"{len(names)} failed: {', '.join(names)}: {error}" for error, names in failed.items()]
        for reason in dict.fromkeys(self.needless.values()):
            lines.append(f"{list(self.needless.values()).count(reason)} not needed, because {reason}")
        diverged = [r.run.name for r in self.results if "diverged" in r.summary["stop_reason"]]
        if diverged:
            lines.append(f"{len(diverged)} diverged, whose figures, if any, are of before: {', '.join(diverged)}")
        return lines


def read_curve(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's ``epochs.csv``, figures that are there alone."""
    try:
        with open(folder / "epochs.csv", newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items() if is_number(v)} for row in csv.DictReader(file)]
    except OSError:
        return []


def is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or "nan"))
    except ValueError:
        return False


def number(value: float) -> str:
    """For reading: four decimals, fewer of large numbers."""
    if math.isnan(value):
        return ""
    if value == int(value) and abs(value) >= 100:
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def with_deviation(row: Row) -> str:
    if not row.values:
        return ""
    if row.figure == "best_epoch":
        return f"{row.mean:.1f}"
    spread = row.deviation
    return number(row.mean) + (f" ± {number(spread)}" if spread > 0 else "")


def format_difference(difference: Difference | None) -> str:
    """``+0.0123 (+0.0050 to +0.0196)``."""
    if difference is None:
        return ""
    signed = [("+" if value >= 0 else "") + number(value) for value in difference[:3]]
    return signed[0] + (f" ({signed[1]} to {signed[2]})" if difference.pairs > 1 else "")


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with replaced(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(["" if isinstance(v, float) and math.isnan(v) else v for v in row] for row in rows)
