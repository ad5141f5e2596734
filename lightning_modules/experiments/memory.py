"""``lstm-fused memory``: over how many steps each cell remembers the first character."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_modules.experiments.base import Config, Experiment
from lightning_modules.experiments.plan import Variants
from lightning_modules.experiments.statistics import mean

if TYPE_CHECKING:
    from lightning_modules.experiments.plan import Run
    from lightning_modules.experiments.report import Report

GRU_OR_RNN = ["--model.layer_norm=null", "--model.forget_bias=null"]
FUSED = ["--model.recurrent=fused"]
# A forget gate's bias of 5 keeps half of a cell's state over 100 steps, sigmoid(5)^100 = 0.51; one of 1 keeps 2e-14.
CELLS = {
    "lstm": [*FUSED, "--model.layer_norm=false", "--model.forget_bias=5"],
    "lstm_forget_bias_1": [*FUSED, "--model.layer_norm=false", "--model.forget_bias=1"],
    "lstm_forget_bias_0": [*FUSED, "--model.layer_norm=false", "--model.forget_bias=0"],
    "lstm_layer_norm": [*FUSED, "--model.layer_norm=true", "--model.forget_bias=5"],
    "gru": ["--model.recurrent=gru", *GRU_OR_RNN],
    "rnn": ["--model.recurrent=rnn", *GRU_OR_RNN],
}
DISTANCES = (5, 10, 20, 50, 100, 200, 500, 1000)
TRAINED_ON = (0.3, 0.5, 1.0)  # times the distance, in turn: on 100 steps alone an LSTM stays at chance
LEARNING_RATES = (0.003, 0.01)
ENOUGH = 0.9
QUICK = re.compile(r"(lstm|rnn)/distance_(5|50)/lr_0\.01")


class Point(NamedTuple):
    """What a variant is of."""

    cell: str
    distance: int
    learning_rate: str


def parse(variant: str) -> Point:
    cell, distance, rate = variant.split("/")
    return Point(cell, int(distance.removeprefix("distance_")), rate.removeprefix("lr_"))


class Remembered(NamedTuple):
    """The result of a cell at a distance, with the learning rate chosen by validation."""

    learning_rate: str
    accuracies: list[float]  # on the test split, by seed

    @property
    def accuracy(self) -> float:
        return mean(self.accuracies)


class Memory(Experiment):
    verb = "memory"
    help = (
        "The first character of a sequence is to be named after 5 to 1,000 steps of noise ('-c remember'). Each cell "
        "is trained for each distance anew, with the same number of steps at most (a run ends where it is always "
        "right) and the same learning rates to choose from, by the validation split. A cell that is below 90 % at a "
        "distance is not tried at longer ones."
    )
    seeds = 3
    common = (
        "--data.batch_size=32",
        "--data.train_size=3200",
        "--trainer.max_epochs=10",
        "--early_stopping.monitor=val_accuracy",
        "--early_stopping.mode=max",
        "--early_stopping.stopping_threshold=0.9999",
        "--early_stopping.patience=1000000",
    )
    compares = False

    def check(self, arguments: Sequence[str]) -> None:
        from lightning_modules.data import RememberDataModule
        from lightning_modules.injection import RECURRENT, import_class

        data = import_class(RECURRENT, Config(arguments).parsed.data.class_path)
        if not issubclass(data, RememberDataModule):
            raise ValueError(f"'memory' needs data over a distance, as '-c remember' has it, got {data.__name__}")

    def variants(self, config: Config) -> Variants:
        return {
            f"{cell}/distance_{distance}/lr_{lr}": [
                *words,
                f"--data.distances=[{distance}]",
                f"--data.train_distances={[int(share * distance) for share in TRAINED_ON]}",
                f"--model.lr={lr}",
            ]
            for distance in DISTANCES
            for cell, words in CELLS.items()
            for lr in LEARNING_RATES
        }

    def default(self, variants: Variants, quick: bool = False) -> Sequence[str]:
        return [name for name in variants if not quick or QUICK.fullmatch(name)]

    def turn(self, run: "Run") -> int:
        return parse(run.variant).distance

    def needless(self, run: "Run", report: "Report") -> str | None:
        cell, distance, _ = parse(run.variant)
        unfinished = {parse(missing.variant)[:2] for missing, _ in report.missing}
        for shorter, result in sorted(remembered(report).get(cell, {}).items()):
            if shorter < distance and result.accuracy < ENOUGH and (cell, shorter) not in unfinished:
                return f"{cell} is right in {result.accuracy:.1%} after {shorter} steps"
        return None

    def overview(self, report: "Report") -> str:
        from lightning_modules.inspections.report import format_table

        found = remembered(report)
        distances = sorted({distance for by_distance in found.values() for distance in by_distance})
        rows = []
        for cell, by_distance in found.items():
            cells = [
                f"{r.accuracy:.1%} (lr {r.learning_rate})" if (r := by_distance.get(distance)) else ""
                for distance in distances
            ]
            rows.append((cell, max(len(r.accuracies) for r in by_distance.values()), *cells))
        table = format_table(("cell", "seeds", *(f"{distance} steps" for distance in distances)), rows)
        return f"{table}\n\nThe test accuracy with the learning rate that is best on the validation split."

    def findings(self, report: "Report") -> list[str]:
        found = remembered(report)
        sentences = [span_in_words(cell, by_distance) for cell, by_distance in found.items()]
        spans = {cell: span(by_distance) for cell, by_distance in found.items()}
        if spans.get("lstm") and "rnn" in spans:
            lstm, rnn = spans["lstm"], spans["rnn"]
            ratio = f"{lstm / rnn:.3g} times the plain RNN's {rnn}" if rnn else "the plain RNN over none"
            sentences.append(f"Of the distances tried, the LSTM remembers over {lstm} steps, {ratio}.")
        return sentences

    def pictures(self, report: "Report") -> list[tuple[str, str]]:
        import matplotlib as mpl

        from lightning_modules.experiments.pictures import STYLE
        from lightning_modules.inspections.report import COLORS, STYLES, new_figure, save_figure

        with mpl.rc_context(STYLE):
            figure = new_figure(9, 4.6)
            axes = figure.subplots()
            for k, (cell, by_distance) in enumerate(remembered(report).items()):
                distances = sorted(by_distance)
                means = [by_distance[d].accuracy for d in distances]
                lows, highs = ([end(by_distance[d].accuracies) for d in distances] for end in (min, max))
                style: dict[str, Any] = {"linestyle": STYLES[k % 7], "color": COLORS[k % 7], "marker": "osD^v"[k % 5]}
                axes.plot(distances, means, label=cell, **style)
                axes.fill_between(distances, lows, highs, color=COLORS[k % 7], alpha=0.15, linewidth=0)
            axes.axhline(ENOUGH, color="gray", linestyle="--", linewidth=1, label="90 %")
            axes.set(xlabel="distance (steps of noise)", ylabel="test accuracy", xscale="log", ylim=(0, 1.04))
            ticks = sorted({d for by_distance in remembered(report).values() for d in by_distance})
            axes.set_xticks(ticks, [f"{d:,}" for d in ticks])
            axes.minorticks_off()
            axes.yaxis.set_major_formatter("{x:.0%}")
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
            save_figure(figure, report.folder / "accuracy_over_distance.png")
        return [("accuracy_over_distance.png", "Accuracy over distance: mean, least and most of the seeds")]


@lru_cache(maxsize=1)  # a report calls this once for every missing run
def remembered(report: "Report") -> dict[str, dict[int, Remembered]]:
    """By cell and distance, of the learning rate with the best mean validation accuracy."""
    found: dict[str, dict[int, Remembered]] = {}
    best: dict[tuple[str, int], float] = {}
    for variant in report.variants:
        cell, steps, rate = parse(variant)
        validated, tested = (report.row(variant, name) for name in ("val_accuracy", "test_accuracy"))
        if tested.values and validated.mean > best.get((cell, steps), -1.0):
            best[cell, steps] = validated.mean
            found.setdefault(cell, {})[steps] = Remembered(rate, list(tested.values.values()))
    return {cell: found[cell] for cell in CELLS if cell in found}


def span(by_distance: dict[int, Remembered]) -> int:
    """The longest distance up to which the accuracy is at least 90 % at all that were tried; 0 where there is none."""
    longest = 0
    for distance in sorted(by_distance):
        if by_distance[distance].accuracy < ENOUGH:
            break
        longest = distance
    return longest


def span_in_words(cell: str, by_distance: dict[int, Remembered]) -> str:
    longest = span(by_distance)
    beyond = [distance for distance in sorted(by_distance) if distance > longest]
    if not beyond:
        return f"{cell} is right in {by_distance[longest].accuracy:.1%} after {longest} steps, the most that was tried."
    fallen = f"falls below 90 % at {beyond[0]} steps ({by_distance[beyond[0]].accuracy:.1%})"
    return f"{cell} {fallen}; the longest distance before it is {longest or 'none of those tried'}."
