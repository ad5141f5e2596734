"""Timing on a shared machine: all candidates in one process, interleaved, best and median of many."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import lstm_fused

HERE = Path(__file__).resolve().parent


@dataclass
class Timing:
    """Seconds of one call."""

    best: float
    median: float


def interleaved(candidates: dict[str, Callable[[], object]], seconds: float, most: int = 40) -> dict[str, Timing]:
    """Time the candidates turn by turn for about `seconds`, at least 5 rounds (3 where a round takes seconds)."""
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for done in range(most):
        for name, run in candidates.items():
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)
        spent = time.perf_counter() - start
        if done + 1 >= (3 if spent > 4 * seconds else 5) and spent > seconds:
            break
    return {name: Timing(min(values), statistics.median(values)) for name, values in times.items()}


def ceiling() -> Callable[[], float]:
    """A function that measures the matrix ceiling of one core now, in GFLOP/s: see ceiling.cpp."""
    folder = Path(tempfile.mkdtemp(prefix="lstm_fused_bench_"))
    library = folder / "ceiling.so"
    command = [
        os.environ.get("CXX", "c++"),
        "-O3",
        "-std=c++17",
        "-march=native",
        "-ffp-contract=fast",
        "-shared",
        "-fPIC",
    ]
    command.append(f"-I{HERE.parent / 'csrc'}")
    if platform.machine() == "x86_64":
        command.append("-mprefer-vector-width=512")
    subprocess.run([*command, str(HERE / "ceiling.cpp"), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).ceiling_gflops
    function.restype = ctypes.c_double
    return function


def machine(threads: int) -> dict[str, str]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = lines[0] if lines else name
    info = lstm_fused.build_info()
    return {
        "CPU": name,
        "threads": str(threads),
        "instruction set": str(info.get("isa", "unknown")),
        "lstm_fused": str(info.get("version", "unknown")),
        "torch": torch.__version__,
        "compiler": str(info.get("compiler", "unknown")),
        "Python": platform.python_version(),
    }
