"""Timing on a shared machine: all candidates in one process, interleaved, best and median of many."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

SAMPLE = 5e-3  # seconds; a sample has several shorter calls, with their weights in the caches as in a loop
LONG_CALL = 5.0  # seconds
MOST_ROUNDS = 100


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: best and median of the clock asked for, and the best of the wall clock."""

    best: float
    median: float
    wall: float
    page_faults: float  # per call, median: memory that malloc had returned


def calls_of_a_sample(run: Callable[[], object]) -> int:
    """From the best of several calls and by CPU time: after one call that had to wait for the core, every sample would
    be a single call with cold caches, several times as slow for short calls."""
    best, spent = math.inf, 0.0
    while spent < SAMPLE:
        before = time.process_time()
        run()
        took = max(time.process_time() - before, 1e-7)  # coarse clocks may return zero
        best, spent = min(best, took), spent + took
    return max(1, round(SAMPLE / best))


def interleaved(
    runs: dict[str, Callable[[], object]], seconds: float, rounds: int, clock: Callable[[], float]
) -> dict[str, Timing]:
    """Time the calls turn by turn for about `seconds`, at least `rounds` times each.

    A call that takes longer than `LONG_CALL` is timed once: some peers are a hundred times as slow as the others.
    """
    calls, once = {}, set()
    for name, run in runs.items():
        start = time.perf_counter()
        run()  # warm-up; TorchScript optimizes in the second call
        if time.perf_counter() - start > LONG_CALL:
            once.add(name)
        calls[name] = 1 if name in once else calls_of_a_sample(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    walls: dict[str, list[float]] = {name: [] for name in runs}
    faults: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= rounds and time.perf_counter() - start > seconds:
            break
        for name, run in runs.items():
            if done > 0 and name in once:
                continue
            faults_before, wall, before = page_faults(), time.perf_counter(), clock()
            for _ in range(calls[name]):
                run()
            times[name].append((clock() - before) / calls[name])
            walls[name].append((time.perf_counter() - wall) / calls[name])
            faults[name].append((page_faults() - faults_before) / calls[name])
    median = statistics.median
    return {n: Timing(min(times[n]), median(times[n]), min(walls[n]), median(faults[n])) for n in runs}


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
