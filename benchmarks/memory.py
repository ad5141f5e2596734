"""Peak memory of a training step.

Every candidate runs in a process of its own, on one thread. A tiny step first loads what a first call loads. Then model
and input are made, and the peak of the resident memory over three steps is read, above what was resident before them:
everything that a step touches counts, whoever allocates it: activations, gradients, and the scratch memory that oneDNN
and our kernels keep.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from .cases import Scale, Shape, sequences, training
from .models import FULL, NORM, PEER, PLAIN, RECOMPUTE, RECOMPUTED, TRAINED

GROUP = "peak memory of a training step"
CANDIDATES: dict[str, Callable[[int], nn.Module]] = {name: TRAINED[name] for name in (PEER, PLAIN, NORM, FULL)}
CANDIDATES |= {name + RECOMPUTE: make for name, make in RECOMPUTED.items()}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peaks(scale: Scale) -> list[tuple[Shape, dict[str, float]]]:
    """MiB by candidate, for each shape."""
    if not _CLEAR.exists():
        print(f"{GROUP} is skipped: it is read from Linux's {_STATUS}", flush=True)
        return []
    shapes = (*scale.memory, *scale.long)
    return [(shape, {name: in_a_process(name, shape) for name in CANDIDATES}) for shape in shapes]


def in_a_process(name: str, shape: Shape) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", name, *map(str, shape)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def _kilobytes(key: str) -> int:
    """VmRSS: resident now; VmHWM: the peak since the last reset."""
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(key))


def peak_of_a_step(make: Callable[[int], nn.Module], T: int, B: int, H: int) -> float:
    training(make(8), *sequences(2, 2, 8))()
    step = training(make(H), *sequences(T, B, H))
    _CLEAR.write_text("5")  # resets the peak
    before = _kilobytes("VmRSS")
    for _ in range(3):
        step()
    return (_kilobytes("VmHWM") - before) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(peak_of_a_step(CANDIDATES[sys.argv[1]], *map(int, sys.argv[2:5])))
