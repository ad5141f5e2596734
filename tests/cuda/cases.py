"""Small cases for the emulated CUDA kernels, and the check of one: against the reference, with poisoned memory.

python tests/cuda/cases.py LIBRARY [--seeds 0 1 2]        all of them; see tests/cuda/emulation.py for the library
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from emulation import Emulator  # noqa: E402
from testing import EVERYTHING, EVERYTHING_ELSE, OPTIONS, assert_close, cell_case, label, layer_case, run  # noqa: E402

from lstm_fused import ops, reference  # noqa: E402

# Against the reference in float64 on the same numbers, as a share of the largest value.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
DTYPES = tuple(TOLERANCE)


@dataclass
class Case:
    name: str
    function: str  # of ops and of reference
    tensors: dict[str, Any]
    options: dict[str, Any]
    dtype: torch.dtype
    expected: dict[str, torch.Tensor]


def make(function: str, on: tuple[str, ...], dtype: torch.dtype, offset: bool = False, **sizes: int) -> Case:
    """``offset``: every tensor begins one element into its memory, so that no row lies where whole vectors could."""
    tensors, options = {"lstm_layer": layer_case, "lstm_cell": cell_case}[function](on, dtype=dtype, **sizes)
    exact = {name: x.detach().double() if x.is_floating_point() else x for name, x in tensors.items()}
    exact = {name: x.requires_grad_(tensors[name].requires_grad) for name, x in exact.items()}
    expected = run(getattr(reference, function), exact, options)
    if "lengths" in on:  # what is past a row's length must not matter
        past = torch.arange(sizes["T"]).unsqueeze(1) >= tensors["lengths"]
        tensors["input"] = tensors["input"].detach().masked_fill(past.unsqueeze(2), torch.nan).requires_grad_()
    if offset:
        for name, x in tensors.items():
            moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x.detach())
            tensors[name] = moved.requires_grad_(x.requires_grad)
    shape = "x".join(map(str, sizes.values()))
    name = f"{function} {label(on)} {shape} {str(dtype).removeprefix('torch.')}{' offset' * offset}"
    return Case(name, function, tensors, options, dtype, expected)


def cases() -> Iterator[Case]:
    f64, f32, f16, bf16 = DTYPES
    small = {"T": 3, "B": 3, "I": 3, "H": 5}
    for on in ((), *((name,) for name in OPTIONS), EVERYTHING, EVERYTHING_ELSE):
        yield make("lstm_layer", on, f64, **small)
    everything = [EVERYTHING, EVERYTHING_ELSE]
    everything += [("initial_state", "peephole", "zoneout_h", "zoneout_c", "lengths", "reverse", "dropout")]
    everything += [("projection", "lengths", "reverse", "reset", "peephole", "candidate_dropout")]
    for on in everything:
        for reverse in (on, tuple({*on} ^ {"reverse"})):
            yield make("lstm_layer", reverse, f32, T=4, B=5, I=2, H=8)  # whole vectors
            yield make("lstm_layer", reverse, f64, T=3, B=4, I=3, H=70)  # several warps, the last vector not whole
        yield make("lstm_layer", (*on, "eval"), f64, **small)
        yield make("lstm_layer", on, f32, True, T=2, B=3, I=4, H=8)
        for dtype in (f16, bf16):
            yield make("lstm_layer", on, dtype, T=3, B=2, I=3, H=12)
        yield make("lstm_layer", on, bf16, T=2, B=2, I=3, H=5)
        yield make("lstm_layer", on, f32, T=2, B=2, I=3, H=10)  # vectors of two
        yield make("lstm_layer", on, f16, T=2, B=2, I=3, H=6)
    for on in ((), EVERYTHING, EVERYTHING_ELSE):
        cell = tuple(name for name in on if name not in ("lengths", "reverse", "dropout", "variational"))
        for dtype in (f64, f32, bf16):
            yield make("lstm_cell", cell, dtype, B=3, I=2, H=6)
    for on in (EVERYTHING, EVERYTHING_ELSE, ("initial_state", "peephole", "reset")):
        yield make("lstm_layer", on, f64, T=2, B=2, I=2, H=520)  # more than a block's registers take, or than one block
    yield make("lstm_layer", EVERYTHING, f64, T=2, B=1, I=1, H=521)  # that, of single units
    yield make("lstm_layer", EVERYTHING, f32, T=2, B=1, I=1, H=1026)  # what is read does not stay in registers
    yield make("lstm_layer", ("carry", "initial_state"), f32, T=2, B=1, I=1, H=1540)  # backward nothing does
    yield make("lstm_layer", ("layer_norm", "lengths", "peephole"), f32, T=2, B=300, I=2, H=4)  # two chunks of rows
    for on in (*everything, ("initial_state",)):  # segments of 3 steps, two and a part of one
        for reverse in (on, tuple({*on} ^ {"reverse"})):
            yield make("lstm_layer", (*reverse, "recompute"), f64, T=7, B=4, I=3, H=5)
        yield make("lstm_layer", (*on, "recompute"), bf16, T=5, B=2, I=3, H=12)
    yield make("lstm_layer", ("layer_norm", "lengths", "recompute"), f32, T=5, B=100, I=2, H=4)  # with chunks of rows
    for on in (EVERYTHING, (*EVERYTHING, "recompute")):
        for T, B in ((0, 2), (2, 0)):
            yield make("lstm_layer", on, f64, T=T, B=B, I=2, H=3)


def check(case: Case) -> None:
    """Raises AssertionError when the emulated kernels do not give what the reference gives."""
    actual = run(getattr(ops, case.function), case.tensors, case.options)
    assert all(x.dtype == case.dtype for x in actual.values())
    for name, x in actual.items():
        assert_close(x.double(), case.expected[name], TOLERANCE[case.dtype], f"{case.name}: {name}")
    with torch.no_grad():  # another op, which keeps nothing
        results = getattr(ops, case.function)(**case.tensors, **case.options)
    for name, x in zip(("output", "h_n", "c_n")[-len(results) :], results, strict=True):
        what = f"{case.name}: {name} without gradients"
        assert_close(x.double(), case.expected[name], TOLERANCE[case.dtype], what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the schedules; 0 is the one in order")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaN
    torch.set_num_threads(1)  # for products this small threads cost more than all the rest
    emulator = Emulator(arguments.library)
    count, failed = 0, []
    for case in cases():
        for seed in arguments.seeds:
            emulator.schedule(seed)
            emulator.use_dispatcher(seed % 2 == 1)
            count += 1
            launches, (direct, wide) = emulator.launches(), emulator.products()
            try:
                check(case)
                something, half = case.tensors["input"].numel() > 0, case.dtype.itemsize == 2
                assert emulator.launches() > launches or not something, "no kernel was run"
                now_direct, now_wide = emulator.products()
                if something:
                    assert (now_direct > direct) == (seed % 2 == 0), "products did not go the way they should"
                    assert (now_wide > wide) == half, "weight gradients are summed in the wrong precision"
            except AssertionError as error:
                failed.append(f"{case.name}, schedule {seed}: {error}")
    print("\n\n".join(failed))
    print(f"{count - len(failed)} of {count} passed, {emulator.launches()} kernels run")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
