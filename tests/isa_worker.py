"""Run as a program: what the kernels compute in processes that differ in their environment, saved to the folder given.

    python tests/isa_worker.py FOLDER NAME...

A name is that of an instruction set, for LSTM_FUSED_ISA, or "old memory": there malloc fills what it gives with huge
numbers. Torch is imported once; each name is a fork, because a process reads the variable but once.
"""

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from testing import DTYPES, EVERYTHING, NOT_OF_A_CELL, cell_case, layer_case, run

from lstm_fused import _ops, build_info, ops

SIZES = [(5, 4, 3, 7), (3, 9, 20, 70), (2, 2, 1, 1)]  # T, B, I, H
OPTIONS = [
    (),
    ("initial_state", "lengths"),
    ("layer_norm",),
    EVERYTHING,
    (*EVERYTHING, "eval"),
    (*EVERYTHING, "recompute"),
]
OLD_MEMORY = "old memory"
M_PERTURB = -6  # of glibc's mallopt()


def results() -> dict[str, dict[str, torch.Tensor]]:
    """Of every case, by a name that says which."""
    found = {}
    for dtype in (*DTYPES, torch.bfloat16):
        for on in OPTIONS:
            # A norm of one unit amplifies bfloat16's rounding without bound.
            for sizes in SIZES if dtype != torch.bfloat16 else SIZES[:-1]:
                named = dict(zip("TBIH", sizes, strict=True))
                found[f"layer {dtype} {on} {named}"] = run(ops.lstm_layer, *layer_case(on, **named, dtype=dtype))
            found[f"cell {dtype} {on}"] = run(ops.lstm_cell, *cell_case(set(on) - NOT_OF_A_CELL, dtype=dtype))
    return found


def answer(name: str) -> dict[str, Any]:
    """What this process finds, which is of its own for ``name``: the instruction set and results, or the error."""
    if name == OLD_MEMORY:
        assert ctypes.CDLL(None).mallopt(M_PERTURB, 1) == 1
    else:
        os.environ["LSTM_FUSED_ISA"] = name
    try:
        return {"results": results(), "isa": build_info()["isa"]}
    except RuntimeError as error:
        return {"errors": [str(error), error_of(build_info), error_of(_ops.build_info)]}


def error_of(f: Callable[[], Any]) -> str:
    try:
        return f"no error, but {f()}"
    except RuntimeError as error:
        return str(error)


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    torch.set_num_threads(1)  # a fork has no other threads
    failed = []
    for name in names:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.save(answer(name), Path(folder) / f"{name}.pt")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if os.waitpid(child, 0)[1]:
            failed.append(name)
    sys.exit(f"these processes failed: {', '.join(failed)}" if failed else 0)
