"""``lstm-fused open-gates``: what each gate of an LSTM is good for, seen by holding it open."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_modules.experiments.base import Config, Experiment
from lightning_modules.experiments.plan import Variants
from lightning_modules.experiments.report import format_difference
from lightning_modules.experiments.statistics import Difference

if TYPE_CHECKING:
    from lightning_modules.experiments.report import Report, Result

GATES = {"f": "forget", "i": "input", "o": "output"}
PUBLISHED = "Jozefowicz et al. (2015) and Greff et al. (2017)"


class OpenGates(Experiment):
    verb = "open-gates"
    help = (
        "The whole LSTM, and the same with the forget, the input or the output gate held open (at 1), with the same "
        "seeds, data and steps: losses, the steps to a loss that all of them reach, samples. '-c remember' shows what "
        "it does to memory over long distances."
    )
    seeds = 3
    shows_samples = True
    common = ("--early_stopping.patience=1000000",)  # the same steps for all

    def variants(self, config: Config) -> Variants:
        fused = "--model.recurrent=fused"
        return {"whole": [fused]} | {
            f"{gate}_open": [fused, f"--model.recurrent.open_gates=[{gate}]"] for gate in GATES
        }

    def more_figures(self, results: Sequence["Result"]) -> list[dict[str, float]]:
        """The steps until the validation loss reached the value that all variants of a seed reach."""
        lowest = [min((row["val_loss"] for row in r.curve if "val_loss" in row), default=None) for r in results]
        thresholds: dict[int, float] = {}
        for result, value in zip(results, lowest, strict=True):
            if value is not None:
                thresholds[result.run.seed] = max(thresholds.get(result.run.seed, value), value)
        return [
            {"steps_to_loss": next(r["step"] for r in result.curve if r.get("val_loss", threshold + 1) <= threshold)}
            if value is not None and (threshold := thresholds[result.run.seed]) is not None
            else {}
            for result, value in zip(results, lowest, strict=True)
        ]

    def findings(self, report: "Report") -> list[str]:
        found = report.findings()
        costs: dict[str, Difference] = {}
        sign = report.direction(report.monitor)
        for gate in GATES:
            if (row := report.row(f"{gate}_open", report.monitor)).difference is not None:
                costs[gate] = row.difference
        if len(costs) == len(GATES):
            found.append(which_matters(costs, sign, report.monitor))
        steps = [f"{v} {row.mean:.0f}" for v in report.variants if (row := report.row(v, "steps_to_loss")).values]
        if len(steps) > 1:
            found.append(f"Steps until the loss that all variants of a seed reach: {', '.join(steps)}.")
        return found


def which_matters(costs: dict[str, Difference], sign: int, figure: str) -> str:
    """Which gate costs most when it is held open, and whether that is what was published.

    Args:
        costs: of each gate, what ``figure`` changes by.
        sign: 1 where more of the figure is better, -1 where less is.
    """
    order = sorted(costs, key=lambda gate: costs[gate].mean * sign)
    first, second = order[:2]
    told = ", ".join(f"{gate} {format_difference(costs[gate])}" for gate in order)
    harmful = [gate for gate in order if costs[gate].is_told_apart and costs[gate].mean * sign < 0]
    if not harmful:
        return f"No gate's loss can be told from the whole cell by {figure}: {told}."
    if first not in harmful:
        return (
            f"Which gate matters most by {figure} cannot be told: the {GATES[first]} gate costs most in the mean, but "
            f"its interval has 0 in it: held open, {told}."
        )
    apart = (costs[first].high < costs[second].low) or (costs[first].low > costs[second].high)
    words = "by far" if apart else "though the intervals overlap"
    agrees = (
        f"as {PUBLISHED} found (the former not in language models)"
        if first == "f"
        else f"while {PUBLISHED} found the forget gate to matter most (the former not in language models)"
    )
    return f"The {GATES[first]} gate matters most by {figure}, {words}, {agrees}: held open, {told}."
