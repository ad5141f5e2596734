"""``lstm-fused diagnose RUN``: what a run's own curves say, in words.

Nothing is loaded but the run's ``metrics.csv``, ``config.yaml`` and ``summary.json``.
"""

import csv
import math
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_modules.arguments import CommandParser
from lightning_modules.inspections.report import BLUE, RED, SKY, format_table, new_figure, save_figure
from lightning_modules.runs import ON_TRAIN, read_summary

# Thresholds above which a difference is reported. Two losses differ by much if they do so both by a share of the loss
# itself and by a share of where it began: of two losses near zero one may be twice the other without any harm.
LARGE_GAP = 0.25  # of the validation loss: the training loss lies so far below it
RISE = 0.03  # of the lowest validation loss: it has risen by so much since
OF_START = 0.04  # of the loss that the run began with, for both of them
PEAK = 0.2  # of all that the loss ever fell: a peak stands so high above what is before and after it
VISIBLE = 0.05  # of the loss itself, for a peak
LITTLE = 0.1  # of the loss that the run began with: no more has been learned
STILL_FALLING = 0.03  # of the validation loss, in the last quarter of the run


@dataclass
class Point:
    """One validation, with the training loss up to it since the one before."""

    epoch: int  # from 0
    step: int
    train: float | None  # with dropout and what else acts in training, of weights that changed meanwhile
    valid: float
    figures: dict[str, float] = field(default_factory=dict)  # what else was validated

    @property
    def on_train(self) -> float | None:
        """The loss on train data, measured as the validation is, where ``TrainFigures`` did so."""
        return self.figures.get(ON_TRAIN)

    @property
    def learned(self) -> float | None:
        """The loss on train data that is compared with the validation loss: the honest one where there is one."""
        return self.train if self.on_train is None else self.on_train

    @property
    def gap(self) -> float | None:
        return None if self.learned is None else self.valid - self.learned


@dataclass
class Curves:
    """The measurements of a run."""

    points: list[Point]
    first_loss: float | None = None  # of the first training step that was kept
    first_step: float | None = None  # which that is, from 0
    not_finite: str | None = None  # the first figure that was infinite or NaN


@dataclass
class Diagnosis:
    """What there is to say of a run."""

    verdict: str  # "unstable", "overfitted", "underfitted" or "fine"
    since: int | None  # the epoch (from 0) from which on it is so
    findings: list[str]
    advice: list[str]
    points: list[Point]
    best: int | None  # the point of the lowest validation loss
    peaks: list[int]  # points at which a loss stands out
    stop: str | None = None

    def text(self) -> str:
        """All of it, with the table."""
        since = "" if self.since is None else f", from epoch {self.since} on (counted from 0)"
        lines = [f"Verdict: {self.verdict}{since}.", *(f"- {finding}" for finding in self.findings)]
        if self.advice:
            lines += ["What to change:", *(f"- {advice}" for advice in self.advice)]
        return "\n".join((*lines, "", self.table()))

    def table(self) -> str:
        lowest = list(accumulate((point.valid for point in self.points), min))
        honest = any(point.on_train is not None for point in self.points)
        rows = []
        for k, point in enumerate(self.points):
            marks = ["best"] if k == self.best else []
            marks += ["peak"] if k in self.peaks else []
            improved = math.isfinite(point.valid) and (k == 0 or point.valid < lowest[k - 1])
            rows.append(
                (point.epoch, point.step, point.train, *([point.on_train] if honest else []), point.valid, point.gap,
                 "yes" if improved else "no", ", ".join(marks))
            )  # fmt: skip
        losses = ("train_loss", *([ON_TRAIN] if honest else []), "val_loss")
        return format_table(("epoch", "step", *losses, "gap", "improved", ""), rows)

    def draw(self, path: Path, unit: str = "") -> None:
        """Both curves; the best epoch and the stop marked; epochs that improved and did not are shaded."""
        from matplotlib.patches import Patch

        figure = new_figure(7.6, 4.4)
        axes = figure.subplots()
        # A validation after n epochs stands at n; of several in an epoch each at its share of the steps.
        x = _places(self.points)
        lowest = math.inf
        for k, point in enumerate(self.points):
            improved, lowest = point.valid < lowest, min(lowest, point.valid)
            left = x[k - 1] if k else max(0.0, 2 * x[0] - x[1]) if len(x) > 1 else 0.0
            axes.axvspan(left, x[k], color="#009e73" if improved else "#e69f00", alpha=0.16, linewidth=0)
        curves: tuple[tuple[str, list[float | None], dict[str, Any]], ...] = (
            ("train (in training)", [p.train for p in self.points], {"color": SKY, "marker": "^", "linestyle": ":"}),
            ("train (as validation)", [p.on_train for p in self.points],
             {"color": BLUE, "marker": "o", "linestyle": "--"}),
            ("validation", [p.valid for p in self.points], {"color": RED, "marker": "s"}),
        )  # fmt: skip
        for label, values, style in curves:
            known = [(at, v) for at, v in zip(x, values, strict=True) if v is not None and math.isfinite(v)]
            if known:
                axes.plot(*zip(*known, strict=True), markersize=3, label=label, **style)
        if self.best is not None:
            point = self.points[self.best]
            label = f"best: {point.valid:.4g} after {x[self.best]:.4g} epochs"
            axes.axvline(x[self.best], color="black", linestyle=":", label=label)
        axes.axvline(x[-1], color="black", linewidth=1, label="stop")
        if self.peaks:
            tops = [max(self.points[k].valid, self.points[k].train or -math.inf) for k in self.peaks]
            axes.plot([x[k] for k in self.peaks], tops, "kv", markersize=9, fillstyle="none", label="peak")
        handles, _ = axes.get_legend_handles_labels()
        handles += [
            Patch(color="#009e73", alpha=0.3, label="improved"),
            Patch(color="#e69f00", alpha=0.3, label="did not improve"),
        ]
        since = "" if self.since is None else f", from epoch {self.since} on (counted from 0)"
        axes.set(xlabel="epochs trained", ylabel=f"loss ({unit})" if unit else "loss", title=f"{self.verdict}{since}")
        axes.margins(x=0.02)
        axes.grid(alpha=0.3)
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small")
        save_figure(figure, path)


def _places(points: list[Point]) -> list[float]:
    """Epochs trained at each point: an epoch's last validation stands at its end."""
    places = []
    for k, point in enumerate(points):
        same = [other.step for other in points if other.epoch == point.epoch]
        before = max((other.step for other in points[:k] if other.epoch < point.epoch), default=None)
        if before is None:
            before = -1 if same[-1] > -1 else same[-1] - 1
        places.append(point.epoch + (point.step - before) / max(1, same[-1] - before))
    return places


# Reading --------------------------------------------------------------------------------------------------------------


def read_curves(folder: str | Path) -> Curves:
    """The measurements in a run's ``metrics.csv``, a resumed run's back to its first epoch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: nothing was validated.
    """
    path = Path(folder) / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"there is no run's folder with a metrics.csv at '{folder}'")
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
    rows = [row for row in rows if "epoch" in row]
    not_finite = _first_not_finite(rows)
    steps = [(row["step"], row["train_loss_step"]) for row in rows if "train_loss_step" in row]
    points = _points(rows, steps)
    if points and points[0].epoch > 0:
        points = _earlier_points(Path(folder), points[0]) + points
    if not points and not_finite is None:
        raise ValueError(f"'{path}' must have validations (val_loss) to be judged, got none")
    first_step, first_loss = steps[0] if steps else (None, None)
    return Curves(points, first_loss, first_step, not_finite)


def _first_not_finite(rows: list[dict[str, float]]) -> str | None:
    for row in rows:
        for name, value in row.items():
            if not math.isfinite(value):
                return f"{name} is {value} in epoch {int(row['epoch'])}"
    return None


def _points(rows: list[dict[str, float]], steps: list[tuple[float, float]]) -> list[Point]:
    """A point for each validation. ``steps``: the training losses that were kept, each with its step."""
    of_epoch = {int(row["epoch"]): row["train_loss_epoch"] for row in rows if "train_loss_epoch" in row}
    valid = [row for row in rows if "val_loss" in row]
    points: list[Point] = []
    before = -math.inf
    for row in valid:
        epoch, step = int(row["epoch"]), int(row["step"])
        train = of_epoch.get(epoch)
        if train is None or sum(int(other["epoch"]) == epoch for other in valid) > 1:
            since = [loss for at, loss in steps if before < at <= step]
            train = sum(since) / len(since) if since else train
        figures = {name: value for name, value in row.items() if name.startswith("val_") and name != "val_loss"}
        points.append(Point(epoch, step, train, row["val_loss"], figures))
        before = step
    return points


def _earlier_points(folder: Path, first: Point) -> list[Point]:
    """Those before ``first`` in the run that this one goes on from: its curves are in the checkpoint."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        return []
    from lightning_modules.checkpoints import load_checkpoint

    rows = load_checkpoint(checkpoint).get("callbacks", {}).get("LearningCurves", {}).get("epochs", [])
    return [
        Point(
            row["epoch"],
            row["step"] - 1,  # metrics.csv counts from 0
            row.get("train_loss_epoch"),
            row["val_loss"],
            {name: value for name, value in row.items() if name.startswith("val_") and name != "val_loss"},
        )
        for row in rows
        if "val_loss" in row and (row["epoch"], row["step"] - 1) < (first.epoch, first.step)
    ]


def read_config(folder: str | Path) -> dict[str, Any]:
    """A run's ``config.yaml``; empty where there is none."""
    path = Path(folder) / "config.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


# Judging --------------------------------------------------------------------------------------------------------------


def diagnose(curves: Curves, config: dict[str, Any] | None = None, summary: dict[str, Any] | None = None) -> Diagnosis:
    """What the curves say, and what to change of the options in ``config``.

    Args:
        curves: of :func:`read_curves`.
        config: a run's ``config.yaml``.
        summary: a run's ``summary.json``.
    """
    config, summary = config or {}, summary or {}
    options = Options(config, summary)
    stop = summary.get("stop_reason")
    diverged = curves.not_finite or (stop if stop and "diverged" in stop else None)
    if not any(math.isfinite(point.valid) for point in curves.points):
        findings = [f"The training has diverged before anything was validated: {diverged}."]
        return Diagnosis("unstable", 0, findings, options.steadier(), curves.points, None, [], stop)
    signs = _signs(curves, summary, diverged)
    judged = _judge(signs, options)
    wasted = [] if judged.verdict == "unstable" else _validations_in_vain(signs, summary)
    findings = [
        _lowest(signs), *_of_the_monitor(signs.points, signs.best, config), *judged.findings,
        *_how_train_was_measured(signs.last, options), *wasted,
    ]  # fmt: skip
    advice = judged.advice + (_less_patience(signs, config) if wasted else [])
    return Diagnosis(judged.verdict, judged.since, findings, advice, signs.points, signs.best, signs.peaks, stop)


@dataclass
class _Signs:
    """What the curves show, before it is judged; places are those in ``points``."""

    points: list[Point]  # those whose validation loss is finite
    best: int
    start: float
    first_loss: float | None
    diverged: str | None
    not_finite: str | None
    peaks: list[int]
    fallen_back: int | None
    blown_up: int | None
    overfitted: tuple[int | None, list[str]]  # since which epoch, and findings
    underfitted: tuple[int | None, list[str]]
    falling: str | None

    @property
    def lowest(self) -> Point:
        return self.points[self.best]

    @property
    def last(self) -> Point:
        return self.points[-1]

    @property
    def waited(self) -> int:
        """The validations after the best one."""
        return len(self.points) - 1 - self.best


class _Judged(NamedTuple):
    verdict: str
    since: int | None
    findings: list[str]
    advice: list[str]


def _signs(curves: Curves, summary: dict[str, Any], diverged: str | None) -> _Signs:
    points = [point for point in curves.points if math.isfinite(point.valid)]
    start = _start(curves, summary)
    best = min(range(len(points)), key=lambda k: points[k].valid)
    falling = _still_falling(points, best, summary)
    return _Signs(
        points,
        best,
        start,
        curves.first_loss,
        diverged,
        curves.not_finite,
        peaks=sorted({*_peaks([p.valid for p in points]), *_peaks([p.train for p in points])}),
        fallen_back=_risen_for_good([p.train for p in points]),
        blown_up=_above_the_start(points, curves, start),
        overfitted=_overfitting(points, best, start),
        underfitted=_underfitting(points, best, start, falling),
        falling=falling,
    )


def _judge(signs: _Signs, options: "Options") -> _Judged:
    """The verdict, by the gravest sign."""
    (overfitted, of_overfitting), (underfitted, of_underfitting) = signs.overfitted, signs.underfitted
    if signs.diverged or signs.peaks or signs.fallen_back is not None or signs.blown_up is not None:
        findings = _instabilities(signs) + of_overfitting
        return _Judged("unstable", _unstable_since(signs), findings, options.steadier())
    if overfitted is not None:
        return _Judged("overfitted", overfitted, of_overfitting + of_underfitting, options.more_regularization())
    if underfitted is not None:
        advice = options.less_regularization(still_falling=signs.falling is not None)
        return _Judged("underfitted", underfitted, of_underfitting, advice)
    return _Judged("fine", None, [_fine(signs)], [])


def _lowest(signs: _Signs) -> str:
    lowest, last = signs.lowest, signs.last
    return (
        f"The validation loss was lowest in epoch {lowest.epoch}: {lowest.valid:.4g}"
        + ("" if lowest.learned is None else f", with a training loss of {lowest.learned:.4g}")
        + f"; the run ended in epoch {last.epoch} with {last.valid:.4g}."
    )


def _unstable_since(signs: _Signs) -> int:
    moments = [signs.points[k].epoch for k in (*signs.peaks, signs.fallen_back, signs.blown_up) if k is not None]
    end = signs.last.epoch if signs.not_finite is None else _epoch_of(signs.not_finite)
    return min(moments, default=end)


def _instabilities(signs: _Signs) -> list[str]:
    points, peaks = signs.points, signs.peaks
    findings = []
    if signs.diverged:
        findings.append(f"The training has diverged: {signs.diverged.removeprefix('the training has diverged: ')}.")
    if peaks:
        worst = max(peaks, key=lambda k: points[k].valid)
        findings.append(
            f"{len(peaks)} time{'s' * (len(peaks) > 1)} a loss jumped up and came back by more than "
            f"{PEAK:.0%} of all it ever fell; the highest, in epoch {points[worst].epoch}, was a validation loss "
            f"of {points[worst].valid:.4g} between {points[max(worst - 1, 0)].valid:.4g} before and "
            f"{points[min(worst + 1, len(points) - 1)].valid:.4g} after it."
        )
    if signs.fallen_back is not None:
        before = points[signs.fallen_back]
        findings.append(
            f"The training loss itself ended at {signs.last.train:.4g}, above {before.train:.4g} in epoch "
            f"{before.epoch}: what was learned was lost again."
        )
    if signs.blown_up is not None:
        above = points[signs.blown_up]
        findings.append(
            f"The training loss rose above the {signs.first_loss:.4g} that the run began with, in epoch "
            f"{above.epoch} to {above.train:.4g}: the steps are too long."
        )
    return findings


def _fine(signs: _Signs) -> str:
    lowest, last = signs.lowest, signs.last
    gap = ""
    if last.gap is not None:
        where = "above" if last.gap >= 0 else "below"
        gap = f" and {abs(last.gap):.4g} ({abs(last.gap) / last.valid:.0%}) {where} the training loss"
    return (
        f"The validation loss fell from {signs.start:.4g} at the start by {1 - lowest.valid / signs.start:.0%}, ended "
        f"within {last.valid / lowest.valid - 1:.1%} of its best{gap}: "
        f"{'neither far above that nor' if gap else 'not'} rising away."
    )


def _how_train_was_measured(last: Point, options: "Options") -> list[str]:
    if last.on_train is not None:
        return [f"The training loss and the gap are those of {ON_TRAIN}, measured as the validation is."]
    if last.train is None:
        return []
    by = f", with {options.in_training}" if options.in_training else ""
    return [
        f"The training loss and the gap are those of train_loss, measured in training{by}, while the weights "
        f"changed; with --trainer.callbacks+=lightning_modules.callbacks.TrainFigures they are measured as the "
        f"validation is."
    ]


def _validations_in_vain(signs: _Signs, summary: dict[str, Any]) -> list[str]:
    """A finding where a large part of the run came after its best point."""
    waited, count = signs.waited, len(signs.points)
    if waited < max(3, count // 2):
        return []
    seconds = summary.get("seconds")
    cost = f", {seconds * waited / count:.0f} of {seconds:.0f} s" if seconds else ""
    return [f"The last {waited} of {count} validations improved nothing{cost}."]


def _less_patience(signs: _Signs, config: dict[str, Any]) -> list[str]:
    patience = config.get("early_stopping", {}).get("patience")
    shorter = max(2, signs.waited // 3)
    if patience is not None and shorter >= patience:
        return []
    told = "" if patience is None else f" (it is {patience})"
    return [f"stop sooner: --early_stopping.patience {shorter}{told}"]


def _epoch_of(sentence: str) -> int:
    return int(sentence.rpartition(" ")[2])


def _start(curves: Curves, summary: dict[str, Any]) -> float:
    """The loss of a model without knowledge, if the data has it, or else the highest of the first measured."""
    data = summary.get("data") or {}
    for name in ("valid_unigram_entropy", "valid_nll_of_frequencies"):
        if data.get(name):
            return float(data[name])
    labels = data.get("labels")
    if isinstance(labels, dict) and sum(labels.values()):
        shares = [count / sum(labels.values()) for count in labels.values() if count]
        return float(-sum(share * math.log(share) for share in shares))
    first = next(point for point in curves.points if math.isfinite(point.valid))
    known = [x for x in (curves.first_loss, first.train, first.valid) if x is not None and math.isfinite(x)]
    return max(known)


def _peaks(values: list[float | None]) -> list[int]:
    """Points where a curve is above both its neighbors by a large part of its total descent."""
    known = [(k, value) for k, value in enumerate(values) if value is not None and math.isfinite(value)]
    if len(known) < 3:
        return []
    fall = known[0][1] - min(value for _, value in known)
    found = []
    for n in range(1, len(known) - 1):
        k, value = known[n]
        height = value - max(min(v for _, v in known[:n]), min(v for _, v in known[n + 1 :]))
        highest = value >= known[n - 1][1] and value > known[n + 1][1]
        if highest and height > max(PEAK * fall, VISIBLE * abs(value)):
            found.append(k)
    return found


def _risen_for_good(train: list[float | None]) -> int | None:
    """The lowest point of the training loss, where it ends far above that: the weights were thrown off."""
    known = [(k, value) for k, value in enumerate(train) if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return None
    lowest, low = min(known, key=lambda item: item[1])
    rise = known[-1][1] - low
    return lowest if rise > max(PEAK * (known[0][1] - low), VISIBLE * abs(low)) else None


def _above_the_start(points: list[Point], curves: Curves, start: float) -> int | None:
    """Where the training loss is first far above that of an untrained model: the weights were thrown off at once.

    The mean up to the first validation has untrained steps in it, and says nothing if the first saved loss
    is of later ones.
    """
    if curves.first_loss is None or not math.isfinite(curves.first_loss):
        return None
    limit = (1 + PEAK) * max(curves.first_loss, start)
    assert curves.first_step is not None  # read_curves sets it together with first_loss
    begin = 0 if curves.first_step <= points[0].step / 4 else 1
    above = (k for k, point in enumerate(points) if k >= begin and point.train is not None and point.train > limit)
    return next(above, None)


def _of_the_monitor(points: list[Point], best: int, config: dict[str, Any]) -> list[str]:
    """Where the run is judged by another figure than the loss, and that was best at another time."""
    stopping = config.get("early_stopping") or {}
    monitor = stopping.get("monitor", "val_loss")
    known = [(k, point.figures[monitor]) for k, point in enumerate(points) if monitor in point.figures]
    if not known:
        return []
    choose = max if stopping.get("mode") == "max" else min
    k, value = choose(known, key=lambda item: item[1])
    if k == best:
        return []
    return [
        f"{monitor}, which the run is judged by, was best in epoch {points[k].epoch}: {value:.4g} "
        f"({dict(known).get(best, math.nan):.4g} where the loss was lowest)."
    ]


def _overfitting(points: list[Point], best: int, start: float) -> tuple[int | None, list[str]]:
    """The epoch from which the run is overfitted, and how that is seen."""
    lowest, last = points[best], points[-1]
    said: list[str] = []
    since = None
    known = [point for point in points if point.gap is not None]
    wide = [point for point in known if (point.gap or 0.0) > max(LARGE_GAP * point.valid, OF_START * start)]
    if wide and wide[-1] is known[-1]:
        first = next(k for k in range(len(known)) if all(point in wide for point in known[k:]))
        since = known[first].epoch
        said.append(
            f"The training loss lies far below the validation loss: {last.learned:.4g} against {last.valid:.4g} at the "
            f"end, {(last.gap or 0.0) / last.valid:.0%} of it, and by more than {LARGE_GAP:.0%} since epoch {since}."
        )
    rise = last.valid - lowest.valid
    learning = lowest.learned is None or last.learned is None or last.learned < lowest.learned
    if rise > max(RISE * lowest.valid, OF_START / 2 * start) and learning:
        since = points[best + 1].epoch
        trained = (
            ""
            if None in (lowest.learned, last.learned)
            else f", while the training loss went from {lowest.learned:.4g} to {last.learned:.4g}"
        )
        said.append(
            f"From epoch {since} on the validation loss rose: from {lowest.valid:.4g} to {last.valid:.4g} "
            f"(+{rise / lowest.valid:.0%}){trained}."
        )
    return since, said


def _underfitting(points: list[Point], best: int, start: float, falling: str | None) -> tuple[int | None, list[str]]:
    """The epoch from which the run is underfitted, and how that is seen."""
    lowest = points[best]
    naive = {
        name.removesuffix("_persistence"): value
        for name, value in lowest.figures.items()
        if name.endswith("_persistence") and name.removesuffix("_persistence") in lowest.figures
    }
    worse = {name: value for name, value in naive.items() if lowest.figures[name] >= value}
    said = []
    if worse and len(worse) == len(naive):
        told = ", ".join(f"{name} {lowest.figures[name]:.4g} against {value:.4g}" for name, value in worse.items())
        said.append(f"The model is no better than carrying the last value on: {told}.")
    elif not naive and 1 - lowest.valid / start < LITTLE:
        trained = "" if lowest.learned is None else f", and the training loss of {lowest.learned:.4g} with it"
        gained = 1 - lowest.valid / start
        said.append(
            f"Little was learned: the best validation loss of {lowest.valid:.4g} is "
            f"{f'{gained:.1%} below' if gained > 0 else 'no lower than'} the {start:.4g} of the start{trained}."
        )
    since = points[0].epoch if said else None
    if falling is not None:
        said.append(falling)
        since = points[-1].epoch if since is None else since
    return since, said


def _still_falling(points: list[Point], best: int, summary: dict[str, Any]) -> str | None:
    """By how much the validation loss still fell when the run ended, in a sentence, where that is much."""
    last, quarter = points[-1], points[max(0, len(points) - 1 - max(1, len(points) // 4))]
    stop = summary.get("stop_reason") or ""
    fall = (quarter.valid - last.valid) / abs(quarter.valid) if quarter is not last else 0.0
    if best != len(points) - 1 or fall <= STILL_FALLING or "improve" in stop:
        return None
    return (
        f"The validation loss was still falling when the run ended{f' at {stop}' if stop else ''}: by {fall:.1%} from "
        f"epoch {quarter.epoch} to {last.epoch}."
    )


# Advice ---------------------------------------------------------------------------------------------------------------


class Options:
    """A run's options, and which others to try: each advice names the present value."""

    def __init__(self, config: dict[str, Any], summary: dict[str, Any]) -> None:
        model = config.get("model") or {}
        self.model = model.get("init_args") or {}
        self.trainer = config.get("trainer") or {}
        recurrent = self.model.get("recurrent") or "fused"
        long = recurrent.get("init_args") or {} if isinstance(recurrent, dict) else {}
        self.model = self.model | {name: value for name, value in long.items() if self.model.get(name) is None}
        self.layer = recurrent.get("class_path", "") if isinstance(recurrent, dict) else recurrent
        self.is_fused = self.layer == "fused" or self.layer.startswith("lstm_fused.")
        self.epochs = summary.get("epochs")

    def value(self, name: str) -> float:
        """A number; zero where it is off."""
        value = self.model.get(name)
        return float(value) if isinstance(value, (int, float)) else 0.0

    @property
    def in_training(self) -> str:
        """What makes a training loss higher than it would be in validation."""
        names = ("dropout", "recurrent_dropout", "word_dropout", "label_smoothing", "l2", "zoneout", "weight_dropout")
        return ", ".join(f"{name} {self.value(name):g}" for name in names if self.value(name))

    def more_regularization(self) -> list[str]:
        advice = [self._raise("dropout", 0.2, 0.6)]
        if self.is_fused:
            advice.append(self._raise("recurrent_dropout", 0.1, 0.4))
        decay = self.value("weight_decay")
        more = decay * 10 if decay else 1e-4
        advice.append(f"more weight decay: --model.weight_decay {more:g} (it is {decay:g})")
        if size := self.model.get("hidden_size"):
            advice.append(f"or a smaller layer: --model.hidden_size {max(1, size // 2)} (it is {size})")
        return [line for line in advice if line]

    def less_regularization(self, still_falling: bool) -> list[str]:
        advice = []
        if still_falling:
            limit = self.trainer.get("max_epochs") or self.epochs
            longer = "" if limit is None or limit < 0 else f": --trainer.max_epochs {2 * math.ceil(limit)}"
            advice.append(f"train longer{longer}" + (f" (it was {limit})" if longer else ""))
        for name in ("dropout", "recurrent_dropout", "zoneout", "word_dropout", "label_smoothing", "l2"):
            if rate := self.value(name):
                advice.append(f"less of it: --model.{name} {rate / 2:g} (it is {rate:g})")
        if (decay := self.value("weight_decay")) > 1e-3:
            advice.append(f"less weight decay: --model.weight_decay {decay / 10:g} (it is {decay:g})")
        if size := self.model.get("hidden_size"):
            advice.append(f"a larger layer: --model.hidden_size {2 * size} (it is {size})")
        if lr := self.value("lr"):
            advice.append(f"or a higher learning rate: --model.lr {3 * lr:.2g} (it is {lr:g})")
        return advice

    def steadier(self) -> list[str]:
        advice = []
        if not self.model.get("layer_norm") and not (self.is_fused and self.model.get("layer_norm") is None):
            how = "--model.layer_norm true" if self.is_fused else "--model.recurrent fused --model.layer_norm true"
            advice.append(f"layer norm, which is off: {how}")
        clip = self.trainer.get("gradient_clip_val")
        lower = clip / 4 if clip else 1.0
        advice.append(f"clip gradients at {lower:g}: --trainer.gradient_clip_val {lower:g} (it is {clip or 'off'})")
        if lr := self.value("lr"):
            advice.append(f"a lower learning rate: --model.lr {lr / 3:.2g} (it is {lr:g})")
        if not self.value("warmup_steps") and not self.model.get("lr_scheduler"):
            advice.append("or a slower start: --model.warmup_steps 100 (it is 0)")
        return advice

    def _raise(self, name: str, by: float, most: float) -> str:
        rate = self.value(name)
        more = min(most, rate + by)
        return f"more dropout: --model.{name} {more:g} (it is {rate:g})" if more > rate else ""


# The command ----------------------------------------------------------------------------------------------------------


def run(command: str, arguments: list[str]) -> int:
    parser = CommandParser(
        command,
        "Whether a run is overfitted, underfitted, unstable or fine, from which epoch on, and what to "
        "change: read from the run's own metrics.csv. Writes diagnosis.md and diagnosis.png.",
    )
    parser.add_argument("run", help="a run's folder, such as runs/char_lm/version_0")
    parser.add_argument("--output", help="the folder to write to; by default the run's")
    options = parser.parse_args(arguments)
    folder = Path(options.run).expanduser()
    output = folder if options.output is None else Path(options.output).expanduser()
    curves, summary = read_curves(folder), read_summary(folder)
    diagnosis = diagnose(curves, read_config(folder), summary)
    text = diagnosis.text()
    print(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "diagnosis.md").write_text(f"# {options.run}\n\n{text}\n", encoding="utf-8")
    if diagnosis.points and diagnosis.best is not None:
        diagnosis.draw(output / "diagnosis.png", summary.get("loss_unit", ""))
        print(f"\nThe picture is {output / 'diagnosis.png'}")
    return 0
