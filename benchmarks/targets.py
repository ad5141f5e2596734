"""What the CPU kernels are meant to reach, and whether they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from . import compiled
from .machine import has_bfloat16_products
from .memory import GROUP as MEMORY
from .models import COMPILED, DROPOUTS, FULL, NORM, ONNXRUNTIME, PEER, PLAIN, SCRIPT
from .rows import Row, geometric_mean
from .validation import Accuracy


@dataclass(frozen=True)
class Goals:
    """That depend on the instruction set. Of each pair the first is for every shape, the second for the mean."""

    plain: tuple[float, float]  # speed of a training step, plain nn.LSTM = 1
    full: tuple[float, float]  # the same of FULL
    share: float  # mean, of the multiply-add peak, plain


AVX2, AVX512 = Goals((1.1, 1.3), (1.0, 1.15), 0.72), Goals((1.03, 1.15), (0.97, 1.06), 0.85)

NOT_MEASURED = "not measured"
NOISE = 0.05  # tolerance for two threads to measure slower than one

Ratios = dict[str, float]  # by shape


@dataclass(frozen=True)
class Target:
    what: str
    bound: str
    measured: str
    met: bool | None  # None: not measured, or no target on this machine


def at_least(what: str, bound: float, ratios: Ratios) -> Target:
    """On every shape; what is shown is the worst."""
    return target(what, f"at least {bound:g}", *worst(ratios, min), lambda value: value >= bound)


def at_most(what: str, bound: float, ratios: Ratios) -> Target:
    return target(what, f"at most {bound:g}", *worst(ratios, max), lambda value: value <= bound)


def mean_at_least(what: str, bound: float, ratios: Ratios) -> Target:
    mean = geometric_mean(list(ratios.values())) if ratios else None
    return target(f"{what}, geometric mean", f"at least {bound:g}", mean, "", lambda value: value >= bound)


def worst(ratios: Ratios, worst_of: Callable[..., str]) -> tuple[float | None, str]:
    if not ratios:
        return None, ""
    shape = worst_of(ratios, key=ratios.get)
    return ratios[shape], f" ({shape})"


def target(what: str, bound: str, value: float | None, where: str, reached: Callable[[float], bool]) -> Target:
    if value is None:
        return Target(what, bound, NOT_MEASURED, None)
    return Target(what, bound, f"{value:.3f}{where}", reached(value))


def targets(rows: Iterable[Row], accuracy: Accuracy, isa: str) -> list[Target]:
    goals = AVX512 if isa.startswith("avx512") else AVX2
    by_name = {(row.group, row.shape, row.candidate): row for row in rows}

    def of(group: str, candidate: str, field: str) -> Ratios:
        return {s: getattr(row, field) for (g, s, c), row in by_name.items() if (g, c) == (group, candidate)}

    def speed(group: str, candidate: str, peer: str = PEER) -> Ratios:
        ours, theirs = of(group, candidate, "best_ms"), of(group, peer, "best_ms")
        return {shape: theirs[shape] / ours[shape] for shape in ours if shape in theirs}

    step, forward, cell = "training step", "inference", "one step, one sequence"
    both, half = f"{step}, two threads", "lengths that average half of T"
    found = []
    for name, (least, mean) in ((PLAIN, goals.plain), (FULL, goals.full)):
        what = f"training, {name}: speed, plain nn.LSTM = 1"
        found += [at_least(what, least, speed(step, name)), mean_at_least(what, mean, speed(step, name))]
    what = f"training, {FULL}: speed, {SCRIPT} = 1"
    found += [
        at_least(what, 1.5, speed(step, FULL, SCRIPT)),
        mean_at_least(what, 3, speed(step, FULL, SCRIPT)),
        mean_at_least("training, plain: share of the multiply-add peak", goals.share, of(step, PLAIN, "share_of_peak")),
        mean_at_least("forward alone, plain: speed, nn.LSTM = 1", 1.2, speed(forward, PLAIN)),
    ]
    for group, ours in ((forward, PLAIN), (cell, "FusedLSTM")):
        what = f"{group}, {ours}: speed, {ONNXRUNTIME} = 1"
        found += [
            at_least(what, 1, speed(group, ours, ONNXRUNTIME)),
            mean_at_least(what, 1.2, speed(group, ours, ONNXRUNTIME)),
        ]
    for name, (least, mean) in ((PLAIN, goals.plain), (FULL, goals.full)):
        alone = inverse(of(both, name, "cost"))
        found.append(at_least(f"two threads, training, {name}: speed, its own on one thread = 1", 1 - NOISE, alone))
        what = f"two threads, training, {name}: speed, plain nn.LSTM on two = 1"
        found += [at_least(what, least, speed(both, name)), mean_at_least(what, mean, speed(both, name))]
    found.append(bfloat16(inverse(of("bfloat16", f"{PLAIN}, bfloat16", "cost"))))
    for ours, theirs in (("FusedLSTM", PEER), ("FusedLSTMCell", "nn.LSTMCell")):
        found.append(at_least(f"one step of one sequence, {ours}: speed, {theirs} = 1", 2, speed(cell, ours, theirs)))
    for name in (PLAIN, FULL):
        costs = of(half, f"{name}, half the steps", "cost")
        found.append(at_most(f"lengths that average half of T, {name}: time, full batch = 1", 0.6, costs))
    for name, most in ((PLAIN, 1), (NORM, 1.6), (FULL, 1.6)):
        costs = of(MEMORY, name, "cost")
        found.append(at_most(f"peak memory of a training step, {name}: plain nn.LSTM = 1", most, costs))
    for name in DROPOUTS:
        costs = of("dropout on top of layer norm", name, "cost")
        found.append(at_most(f"{name}: time, the layer-normed step without = 1", 1.1, costs))
    for group, models in compiled.MODELS.items():
        for name in (name for name in models if name != PEER):
            costs = of(group, name + COMPILED, "cost")
            found.append(at_most(f"{group}, {name}: time, eager = 1", 1.05, costs))
    return [*found, *exactness(accuracy)]


def bfloat16(speeds: Ratios) -> Target:
    found = at_least("training in bfloat16, plain, H >= 256: speed, our float32 = 1", 1.6, speeds)
    if speeds and not has_bfloat16_products():
        return replace(found, measured=f"{found.measured}; this CPU has no AVX-512-BF16", met=None)
    return found


def exactness(accuracy: Accuracy) -> list[Target]:
    return [
        target("error against float64: nn.LSTM's = 1", "at most 1.3", accuracy.error, "", lambda value: value <= 1.3),
        Target("same bits on one and on two threads", "yes", "yes" if accuracy.same_bits else "no", accuracy.same_bits),
    ]


def inverse(ratios: Ratios) -> Ratios:
    return {shape: 1 / value for shape, value in ratios.items()}
