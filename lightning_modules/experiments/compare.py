"""``lstm-fused compare``: LSTM, layer-normed LSTM, GRU, plain RNN and other shapes of the LSTM on the same data."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from lightning_modules.experiments.base import Config, Experiment, count_parameters
from lightning_modules.experiments.plan import Variants
from lightning_modules.experiments.report import number
from lightning_modules.experiments.statistics import mean

if TYPE_CHECKING:
    from lightning_modules.experiments.report import Report
    from lightning_modules.tasks import RecurrentTask

# The options that choose each cell. What only one of them has is off, so that they differ in nothing else.
FUSED = "--model.recurrent=fused"
CELLS = {
    "lstm": [FUSED, "--model.layer_norm=false"],
    "lstm_layer_norm": [FUSED, "--model.layer_norm=true"],
    "gru": ["--model.recurrent=gru", "--model.layer_norm=null", "--model.forget_bias=null"],
    "rnn": ["--model.recurrent=rnn", "--model.layer_norm=null", "--model.forget_bias=null"],
}
EQUAL = "_equal"  # ends the names of variants with as many parameters as the LSTM


class Compare(Experiment):
    verb = "compare"
    help = (
        "The fused LSTM, the same with layer norm, torch's GRU and its plain RNN on one config: at the same hidden "
        "size, and, as 'gru_equal' and so on, at the hidden size with the LSTM's number of parameters. To be chosen "
        "with --variants: the LSTM with a layer more ('deeper'), with 'peepholes', and 'bidirectional' "
        "('one_direction' where the config is bidirectional), each as 'deeper_equal' and so on too. Options that only "
        "one of them has (recurrent dropout, zoneout, ...) are off; all others are the config's."
    )
    shows_samples = True

    def variants(self, config: Config) -> Variants:
        from lightning_modules.injection import is_off  # imports torch

        off = []
        for name in ("recurrent_dropout", "zoneout"):
            if not is_off(config.task.hparams[name]):
                off.append(config.option(name, 0))
        of_layer = config.task.hparams.recurrent["init_args"]
        of_lstm = [] if is_off(of_layer.get("weight_dropout")) else ["--model.recurrent.weight_dropout=0"]
        both = bool(of_layer.get("bidirectional"))
        shapes = {
            "deeper": [config.option("num_layers", (config.task.hparams.num_layers or 1) + 1)],
            "peepholes": ["--model.recurrent.peephole=true"],
            "one_direction" if both else "bidirectional": [f"--model.recurrent.bidirectional={str(not both).lower()}"],
        }
        shapes = {name: [*CELLS["lstm"], *words] for name, words in shapes.items()}
        cells = {
            name: [*words, *off, *(of_lstm if words[0] == FUSED else [])] for name, words in (CELLS | shapes).items()
        }
        lstm = Config([*config.arguments, *cells["lstm"]]).built_task
        sizes = {name: lstm.hparams[name] for name in (*lstm.size_names(), "embedding_size") if name in lstm.hparams}
        target = count_parameters(lstm)
        tied = bool(lstm.hparams.get("tied"))  # the embedding is as large as the layer then
        variants = dict(cells)
        for name, words in cells.items():
            task = lstm if name == "lstm" else Config([*config.arguments, *words]).task

            @cache
            def count(size: int, task: "RecurrentTask" = task) -> int:
                changed = {"hidden_size": size} | ({"embedding_size": size} if tied else {})
                return count_parameters(task, **sizes | changed)

            try:
                size = size_for(count, target, task.hparams.hidden_size)
            except ValueError:  # a task whose layer must not see what comes
                del variants[name]
                continue
            if size != task.hparams.hidden_size:
                own = [config.option("hidden_size", size)] + ([f"--model.embedding_size={size}"] if tied else [])
                variants[f"{name}{EQUAL}"] = [*words, *own]
        return variants

    def default(self, variants: Variants, quick: bool = False) -> Sequence[str]:
        return [name for name in variants if name.removesuffix(EQUAL) in CELLS]

    def findings(self, report: "Report") -> list[str]:
        found = report.findings()
        times = {}
        for variant in report.variants:
            if values := [r.times["ms_a_step"] for r in report.of(variant) if "ms_a_step" in r.times]:
                times[variant] = mean(values)
        if report.baseline in times and len(times) > 1:
            base = times.pop(report.baseline)
            parts = [f"{name} {value:.1f} ms ({value / base:.2f} times)" for name, value in times.items()]
            found.append(
                f"A step takes {base:.1f} ms with {report.baseline}, {', '.join(parts)}: medians, which other "
                f"processes on the machine lengthen."
            )
        counts = [f"{v} {number(row.mean)}" for v in report.variants if (row := report.row(v, "parameters")).values]
        return [*found, f"Parameters: {', '.join(counts)}."] if counts else found


def size_for(count: Callable[[int], int], target: int, guess: int) -> int:
    """The hidden size at which ``count`` is nearest to ``target``; it grows with the size, about as its square.

    A net is built for every count: the square roots, which are nearly a line, say where to look.
    """
    low, high = 1, max(guess, 2)
    while count(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        at_low, at_high, wanted = (math.sqrt(number) for number in (count(low), count(high), target))
        middle = low + round((high - low) * (wanted - at_low) / max(at_high - at_low, 1e-9))
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return min((low, high), key=lambda size: abs(count(size) - target))
