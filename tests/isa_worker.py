"""Run as a program: what the kernels of the instruction set in LSTM_FUSED_ISA compute, saved to the file given."""

import sys

import torch
from testing import DTYPES, EVERYTHING, NOT_OF_A_CELL, cell_case, layer_case, run

from lstm_fused import build_info, ops

SIZES = [(5, 4, 3, 7), (3, 9, 20, 70), (2, 2, 1, 1)]  # T, B, I, H
OPTIONS = [
    (),
    ("initial_state", "lengths"),
    ("layer_norm",),
    EVERYTHING,
    (*EVERYTHING, "eval"),
    (*EVERYTHING, "recompute"),
]


def results() -> dict[str, dict[str, torch.Tensor]]:
    """Of every case, by a name that says which."""
    found = {}
    for dtype in (*DTYPES, torch.bfloat16):
        for on in OPTIONS:
            # A norm of one unit makes whatever bfloat16 rounds as large as it likes.
            for sizes in SIZES if dtype != torch.bfloat16 else SIZES[:-1]:
                named = dict(zip("TBIH", sizes, strict=True))
                found[f"layer {dtype} {on} {named}"] = run(ops.lstm_layer, *layer_case(on, **named, dtype=dtype))
            found[f"cell {dtype} {on}"] = run(ops.lstm_cell, *cell_case(set(on) - NOT_OF_A_CELL, dtype=dtype))
    return found


if __name__ == "__main__":
    torch.save({"isa": build_info()["isa"], "results": results()}, sys.argv[1])
