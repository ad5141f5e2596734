"""Description of the machine, and the peak of its matrix products."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import lstm_fused

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "build_backend"))
from lstm_fused_flags import FLAGS, ISAS  # noqa: E402


@dataclass(frozen=True)
class Limits:
    """Of one core, in GFLOP/s; see ceiling.cpp."""

    peak: float  # of multiply-adds; no product can be faster
    tile: float  # of the kernels' register tile on cached operands


def limits() -> Callable[[], Limits]:
    """A function that measures them, compiled with the flags of the kernels in use."""
    flags = [*FLAGS, *ISAS[str(lstm_fused.build_info()["isa"])]]
    command = [os.environ.get("CXX", "c++"), *flags, "-shared", "-fPIC", f"-I{HERE.parent / 'csrc'}"]
    with tempfile.TemporaryDirectory(prefix="lstm_fused_bench_") as folder:
        path = Path(folder) / "ceiling.so"
        subprocess.run([*command, str(HERE / "ceiling.cpp"), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))  # stays loaded
    for function in (library.peak_gflops, library.tile_gflops):
        function.restype = ctypes.c_double
    return lambda: Limits(library.peak_gflops(), library.tile_gflops())


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory; returns False if it is not glibc's.

    By default malloc may return large blocks to the system, and the next allocation costs page faults: for a step of
    T=128 B=64 H=128 a quarter of nn.LSTM's time or nothing, depending on what the process freed earlier.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # of malloc.h
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 2**30))


def load() -> str:
    """Load average over one minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _cpuinfo(key: str) -> str:
    """One entry of /proc/cpuinfo; empty on other systems than Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def has_bfloat16_products() -> bool:
    return "avx512_bf16" in _cpuinfo("flags").split()


def facts() -> dict[str, str]:
    info = lstm_fused.build_info()
    return {
        "CPU": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": str(cores()),
        "instruction set": str(info.get("isa", "unknown")),
        "AVX-512-BF16": "yes" if has_bfloat16_products() else "no",
        "threads": "1, unless the group says two",
        "load before the run": load(),
        "lstm_fused": str(info.get("version", "unknown")),
        "torch": torch.__version__,
        "compiler": str(info.get("compiler", "unknown")),
        "Python": platform.python_version(),
    }
