"""Time lstm_fused against ``nn.LSTM`` and hand-written layer-normed LSTMs on this CPU.

    python -m benchmarks                      everything: CSV, Markdown and a picture in benchmarks/results/
    python -m benchmarks --scale quick        fewer shapes and rounds
    python -m benchmarks --only bfloat16 training

On a shared machine, compare ratios and the share of the multiply-add peak of the same run, not absolute times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import cases, compiled, machine, memory, options, others, report, rows
from .picture import picture
from .targets import NOT_MEASURED, targets
from .validation import accuracy, validate

# By name, in the order in which they run: two threads last, because torch's second thread keeps spinning for a while.
GROUPS: dict[str, Callable[[cases.Scale], Iterator[cases.Case]]] = {
    "training": cases.training_grid,
    "inference": cases.forward_grid,
    "streaming": cases.streaming,
    "structures": options.structures,
    "packed": options.packed,
    "lengths": options.lengths,
    "dropout": options.dropouts,
    "recompute": options.recompute,
    "bfloat16": options.bfloat16,
    "compiled": compiled.compiled,
    "others": others.others,
    "threads": cases.two_threads,
}
MEMORY = "memory"


def measure(names: list[str], scale: cases.Scale) -> list[rows.Row]:
    measure_limits, found = machine.limits(), []
    for name in (name for name in GROUPS if name in names):
        if name == "threads" and machine.cores() < 2:
            print("threads is skipped: this process has one core", flush=True)
            continue
        torch.manual_seed(0)
        for case in GROUPS[name](scale):
            found += show(rows.timed(case, scale, measure_limits))
    if MEMORY in names:
        for shape, mib in memory.peaks(scale):
            found += show(rows.peaks(shape, mib))
    return found


def show(of_a_case: list[rows.Row]) -> list[rows.Row]:
    print(f"{of_a_case[0].group}, {of_a_case[0].shape}", flush=True)
    for row in of_a_case:
        value = f"{row.peak_mib:.1f} MiB" if row.best_ms is None else f"{row.best_ms:.3f} ms"
        speed = "" if row.speed_vs_nn_lstm is None else f"{row.speed_vs_nn_lstm:8.2f}x"
        cost = "" if row.cost is None else f"   {row.cost:.3f} of {row.baseline}"
        print(f"    {row.candidate:56} {value:>14}{speed}{cost}", flush=True)
    return of_a_case


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=cases.SCALES, default="full", help="smoke: only checks that it runs")
    parser.add_argument("--only", nargs="+", choices=[*GROUPS, MEMORY], help="some groups only")
    parser.add_argument(
        "--freed-memory",
        choices=["kept", "default"],
        default="kept",
        help="default: malloc may return it to the system, and times depend on what ran before",
    )
    parser.add_argument("--out", type=Path, default=machine.HERE / "results", help="folder for the results")
    chosen = parser.parse_args()

    start = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    validate()
    names = chosen.only or [*GROUPS, MEMORY]
    kept = chosen.freed_memory == "kept" and machine.keep_freed_memory()
    facts = machine.facts() | {"freed memory": "kept by malloc" if kept else "as malloc does by default"}
    print(", ".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    found = measure(names, cases.SCALES[chosen.scale])
    reached = targets(found, accuracy(cases.SCALES[chosen.scale].accuracy), facts["instruction set"])
    if chosen.only:
        reached = [target for target in reached if target.measured != NOT_MEASURED]
    for target in reached:
        verdict = {True: "met", False: "NOT MET", None: "-"}[target.met]
        print(f"{verdict:8} {target.what}, {target.bound}: {target.measured}")

    chosen.out.mkdir(parents=True, exist_ok=True)
    kind = facts["instruction set"].removesuffix("_bf16")  # one page per kind of CPU
    name = "_".join([f"cpu-{kind}", *([] if chosen.scale == "full" else [chosen.scale]), *(chosen.only or [])])
    report.write_csv(found, chosen.out / f"{name}.csv")
    drawn = picture(found, facts, chosen.out / f"{name}.png")
    report.write_markdown(found, reached, facts, chosen.out / f"{name}.md", with_picture=drawn)
    print(f"written in {time.perf_counter() - start:.0f} s: {chosen.out / name}.*")


if __name__ == "__main__":
    main()
