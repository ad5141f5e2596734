"""The table of results: a row a candidate and shape."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from .cases import Case, Scale, Shape, shape_text
from .machine import Limits
from .memory import GROUP as MEMORY
from .models import PEER, RECOMPUTE
from .timing import interleaved


@dataclass(frozen=True)
class Row:
    """What is not measured in a row is None. The names are those of the CSV's columns."""

    group: str
    shape: str
    candidate: str
    threads: int = 1
    clock: str | None = None  # "CPU" (of the process) or "wall": the clock of best and median
    best_ms: float | None = None
    median_ms: float | None = None
    best_wall_ms: float | None = None
    gflops: float | None = None
    share_of_peak: float | None = None
    tile_share: float | None = None  # share of the peak that the register tile alone reaches at that time
    speed_vs_nn_lstm: float | None = None
    page_faults: float | None = None  # of one call, median
    peak_mib: float | None = None
    baseline: str | None = None  # the candidate of the same group and shape whose cost (time or memory) is 1
    cost: float | None = None


def timed(case: Case, scale: Scale, measure_limits: Callable[[], Limits]) -> list[Row]:
    """On one thread by the process's CPU time: it does not pass while another process has the core."""
    clock = "wall" if any(candidate.threads > 1 for candidate in case.candidates.values()) else "CPU"
    function = time.perf_counter if clock == "wall" else time.process_time
    before = measure_limits()
    runs = {name: candidate.run for name, candidate in case.candidates.items()}
    timings = interleaved(runs, scale.seconds, scale.rounds, function)
    after = measure_limits()
    peak, tile = max(before.peak, after.peak), max(before.tile, after.tile)
    rows = []
    for name, candidate in case.candidates.items():
        timing = timings[name]
        gflops = candidate.flops / timing.best / 1e9
        row = Row(
            case.group,
            case.shape,
            name,
            candidate.threads,
            clock,
            timing.best * 1e3,
            timing.median * 1e3,
            timing.wall * 1e3,
            gflops,
            gflops / (peak * candidate.threads),
            tile / peak,
            timings[PEER].best / timing.best if candidate.threads == case.candidates[PEER].threads else None,
            page_faults=timing.page_faults,
            baseline=candidate.baseline,
            cost=timing.best / timings[candidate.baseline].best if candidate.baseline else None,
        )
        rows.append(row)
    return rows


def peaks(shape: Shape, mib: dict[str, float]) -> list[Row]:
    """Costs are shares of nn.LSTM's memory; with recomputation, of the same model's without."""
    baselines = {name: name.removesuffix(RECOMPUTE) if name.endswith(RECOMPUTE) else PEER for name in mib}
    return [
        Row(MEMORY, shape_text(*shape), name, peak_mib=peak, baseline=baselines[name], cost=peak / mib[baselines[name]])
        for name, peak in mib.items()
    ]


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
