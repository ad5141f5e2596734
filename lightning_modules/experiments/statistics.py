"""Mean, deviation, and the interval of a difference over pairs of runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Difference(NamedTuple):
    """The mean difference of pairs, and its 95 % interval."""

    mean: float
    low: float  # NaN for a single pair, as the next
    high: float
    pairs: int

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; NaN of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95
) -> Difference | None:
    """``values - baseline`` over the seeds that both have, with Student's interval; ``None`` where there is no pair.

    Runs of one seed begin with the same random numbers, so that a part of what chance does is in both, and not in
    their difference.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return None
    center, count = mean(differences), len(differences)
    if count == 1:
        return Difference(center, math.nan, math.nan, 1)
    half = student_quantile(0.5 + level / 2, count - 1) * deviation(differences) / math.sqrt(count)
    return Difference(center, center - half, center + half, count)


def student_quantile(probability: float, freedom: int) -> float:
    """The value that a variable of Student's t distribution is below with this probability (at least one half)."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_cdf(value: float, freedom: int) -> float:
    """The probability of being below ``value``, for whole degrees of freedom (Abramowitz & Stegun, 26.7.3 and 4)."""
    angle = math.atan(value / math.sqrt(freedom))
    cosine_squared = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine_squared * (k - 1) / k
        total += term
    within = math.sin(angle) * total  # the probability of being within +-value
    if odd:
        within = 2 / math.pi * (angle + within)
    return (1 + within) / 2
