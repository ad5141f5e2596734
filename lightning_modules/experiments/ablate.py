"""``lstm-fused ablate``: what each regularizer of a config gives, alone and with the others."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_modules.experiments.base import Config, Experiment
from lightning_modules.experiments.plan import Variants
from lightning_modules.experiments.report import number

if TYPE_CHECKING:
    from lightning_modules.experiments.report import Report

# Each regularizer: the options of the model that it consists of.
REGULARIZERS = {
    "dropout": ("dropout", "layer_dropout", "input_dropout"),
    "embedding_dropout": ("embedding_dropout",),
    "word_dropout": ("word_dropout",),
    "recurrent_dropout": ("recurrent_dropout",),
    "zoneout": ("zoneout",),
    "weight_dropout": ("weight_dropout",),
    "layer_norm": ("layer_norm",),
    "weight_decay": ("weight_decay",),
    "l2": ("l2",),
    "label_smoothing": ("label_smoothing",),
    "activation_penalties": ("activation_penalty", "change_penalty"),
}
CLIPPING = "--trainer.gradient_clip_val"
LONG_ONLY = ("weight_dropout",)  # arguments of the layer alone


class Ablate(Experiment):
    verb = "ablate"
    help = (
        "What the regularizers of a config give. 'regularized' is the config as it is, 'baseline' the same without any "
        "of its regularizers (dropouts, layer norm, weight decay, clipping, ...), and each of these alone is the "
        "baseline with it. To be chosen with --variants: 'without_X', the config without one of them; 'clip_0.1', "
        "gradients clipped at 0.1; 'amp', in mixed precision. A regularizer that the config has not, an option such as "
        "--model.zoneout 0.1 adds."
    )
    common = ("--trainer.callbacks+=lightning_modules.callbacks.TrainFigures",)

    def variants(self, config: Config) -> Variants:
        off = switches(config)
        if not off:
            raise ValueError("'ablate' needs a config with a regularizer, and all of this one's are off")
        variants: Variants = {"baseline": [word for words in off.values() for word in words]}
        for name in off:
            variants[name] = [word for other, words in off.items() if other != name for word in words]
        variants["regularized"] = []
        variants |= {f"without_{name}": words for name, words in off.items()}
        return variants | {"clip_0.1": [f"{CLIPPING}=0.1"], "amp": ["--trainer.precision=bf16-mixed"]}

    def default(self, variants: Variants, quick: bool = False) -> Sequence[str]:
        names = list(variants)
        return names[: names.index("regularized") + 1]

    def findings(self, report: "Report") -> list[str]:
        return report.findings() + growing_gaps(report)


def growing_gaps(report: "Report") -> list[str]:
    """What became of the gap between the best weights and the last ones, the baseline beside all regularizers."""
    parts = []
    for variant in ("baseline", "regularized"):
        best, end = (report.row(variant, figure) for figure in ("gap", "gap_at_end"))
        if variant in report.variants and best.values and end.values:
            first, last = number(best.mean), number(end.mean)
            change = f"{'grows' if end.mean > best.mean else 'shrinks'} from {first} to {last}"
            parts.append(f"{change if first != last else f'stays at {first}'} in {variant}")
    if not parts:
        return []
    return [f"From the best weights to the last ones the gap {' and '.join(parts)}."]


def switches(config: Config) -> Variants:
    """Of each regularizer that is on, the arguments that put it out."""
    from lightning_modules.injection import is_off  # imports torch

    hparams: Any = config.task.hparams
    of_layer = hparams.recurrent["init_args"]
    found: Variants = {}
    for name, options in REGULARIZERS.items():
        values = {option: of_layer.get(option, hparams.get(option)) for option in options}
        words = []
        for option, value in values.items():
            if not is_off(value):
                off = "false" if option == "layer_norm" else 0
                words.append(f"--model.recurrent.{option}={off}" if option in LONG_ONLY else config.option(option, off))
        if words:
            found[name] = words
    if config.parsed.trainer.gradient_clip_val:
        found["clipping"] = [f"{CLIPPING}=0"]
    return found
