"""What the CPU kernels are meant to reach, and whether they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from . import compiled
from .machine import has_bfloat16_products
from .memory import GROUP as MEMORY
from .models import COMPILED, DROPOUTS, FULL, NORM, PEER, PLAIN, SCRIPT
from .rows import Row, geometric_mean
from .validation import Accuracy

NOT_MEASURED = "not measured"
NOISE = 0.05  # by which two threads may look slower than one

Ratios = dict[str, float]  # by shape


@dataclass(frozen=True)
class Target:
    what: str
    bound: str
    measured: str
    met: bool | None  # None: not measured, or nothing to reach on this machine


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


def targets(rows: Iterable[Row], accuracy: Accuracy) -> list[Target]:
    by_name = {(row.group, row.shape, row.candidate): row for row in rows}

    def of(group: str, candidate: str, field: str) -> Ratios:
        return {s: getattr(row, field) for (g, s, c), row in by_name.items() if (g, c) == (group, candidate)}

    def speed(group: str, candidate: str, peer: str = PEER) -> Ratios:
        ours, theirs = of(group, candidate, "best_ms"), of(group, peer, "best_ms")
        return {shape: theirs[shape] / ours[shape] for shape in ours if shape in theirs}

    step, forward, cell = "training step", "inference", "one step, one sequence"
    both, half = f"{step}, two threads", "lengths that average half of T"
    wide = {shape: v for shape, v in of(step, PLAIN, "share_of_ceiling").items() if hidden_size(shape) >= 256}
    found = []
    for name, least, mean in ((PLAIN, 1.05, 1.25), (FULL, 0.95, 1.1)):
        what = f"training, {name}: speed, plain nn.LSTM = 1"
        found += [at_least(what, least, speed(step, name)), mean_at_least(what, mean, speed(step, name))]
    what = f"training, {FULL}: speed, {SCRIPT} = 1"
    found += [
        at_least(what, 1.5, speed(step, FULL, SCRIPT)),
        mean_at_least(what, 3, speed(step, FULL, SCRIPT)),
        at_least("training, plain, H >= 256: share of the matrix ceiling", 0.9, wide),
        mean_at_least("forward alone, plain: speed, nn.LSTM = 1", 1.2, speed(forward, PLAIN)),
    ]
    for name, least, mean in ((PLAIN, 1.05, 1.25), (FULL, 0.95, 1.1)):
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
        target("error against float64: nn.LSTM's = 1", "at most 2", accuracy.error, "", lambda value: value <= 2),
        Target("same bits on one and on two threads", "yes", "yes" if accuracy.same_bits else "no", accuracy.same_bits),
    ]


def inverse(ratios: Ratios) -> Ratios:
    return {shape: 1 / value for shape, value in ratios.items()}


def hidden_size(shape: str) -> int:
    return int(shape.rsplit("H=", 1)[1])
