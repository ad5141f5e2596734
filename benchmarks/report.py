"""Writes the results as a CSV file and as a Markdown page that starts with the targets."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from .memory import GROUP as MEMORY
from .models import PEER
from .rows import Row, geometric_mean
from .targets import Target
from .timing import LONG_CALL

HOW = f"""\
All candidates of a shape run interleaved in one process. Before timing, outputs and gradients of every kind of
candidate are validated against `{PEER}` or the specification. A training step is forward and backward, with gradients
of the input and of all parameters; I = H. Times are per call. On one thread they are CPU time of the process, which
excludes time used by other processes; on two threads they are wall time, which is meaningful only if the load before
the run was near zero. Ratios and shares use the best times. A call of more than {LONG_CALL:g} seconds is timed once.

- *speed*: time of `{PEER}` divided by that of the candidate; higher is faster.
- *cost*: time (or memory) of the candidate divided by that of the named baseline; lower is better.
- *GFLOP/s*: of the matrix products only.
- *share*: fraction of the core's float32 multiply-add peak, measured before and after each shape by a loop on registers
  only; on two threads, of twice that.
- *tile*: the fraction that our register tile alone reaches, on operands in the L2 cache.
- *matrix products only*: a call that computed its products at the peak and nothing else; no kernel can be faster.
- *faults*: median page faults per call. Freed memory is kept, for all candidates alike. With `--freed-memory default`,
  malloc decides, and the page faults of a candidate depend on what ran before."""

MEMORY_HOW = """\
Each candidate runs in its own process: peak resident memory over three steps, minus the resident memory before them,
when all code is loaded and model and input exist. It includes activations, gradients and retained scratch memory."""

# Columns of a table: heading, field of the row, format of its values.
COLUMNS = (
    ("shape", "shape", "{}"),
    ("candidate", "candidate", "{}"),
    ("threads", "threads", "{}"),
    ("clock", "clock", "{}"),
    ("best ms", "best_ms", "{:.3f}"),
    ("median ms", "median_ms", "{:.3f}"),
    ("GFLOP/s", "gflops", "{:.1f}"),
    ("share", "share_of_peak", "{:.3f}"),
    ("tile", "tile_share", "{:.3f}"),
    ("speed", "speed_vs_nn_lstm", "{:.3f}"),
    ("faults", "page_faults", "{:.0f}"),
    ("peak MiB", "peak_mib", "{:.1f}"),
    ("cost", "cost", "{:.3f}"),
    ("of", "baseline", "{}"),
)
# Groups with float32 products of whole sequences only.
BOUND_BY_PRODUCTS = ("training step", "inference", "training step, two threads")
# Decimals in the CSV; otherwise 3.
PRECISION = {"best_ms": 4, "median_ms": 4, "best_wall_ms": 4, "gflops": 1, "page_faults": 0, "peak_mib": 1}


def write_csv(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        for row in rows:
            values = dataclasses.asdict(row)
            floats = {key: round(v, PRECISION.get(key, 3)) for key, v in values.items() if isinstance(v, float)}
            writer.writerow(values | floats)


def write_markdown(
    rows: list[Row], targets: list[Target], facts: dict[str, str], path: Path, with_picture: bool
) -> None:
    verdict = {True: "yes", False: "**no**", None: "-"}
    lines = [f"# Measured on a CPU: {facts['instruction set']}", ""]
    lines += [f"![The results as a picture]({path.stem}.png)", ""] if with_picture else []
    lines += table(
        ["target", "bound", "measured", "met"], [[t.what, t.bound, t.measured, verdict[t.met]] for t in targets]
    )
    lines += ["Every shape must meet a bound; the worst is shown. *Geometric mean* is over the shapes.", ""]
    lines += [*(f"- {key}: {value}" for key, value in facts.items()), "", HOW, ""]
    for group in dict.fromkeys(row.group for row in rows):
        lines += [f"## {group[0].upper()}{group[1:]}", ""]
        lines += [MEMORY_HOW, ""] if group == MEMORY else []
        lines += group_tables([row for row in rows if row.group == group])
    path.write_text("\n".join(lines).rstrip() + "\n")


def group_tables(rows: list[Row]) -> list[str]:
    """A table of all rows and, for several shapes, a table of the candidates' geometric means."""
    columns = [column for column in COLUMNS if any(getattr(row, column[1]) is not None for row in rows)]
    cells = [[text(getattr(row, field), form) for _, field, form in columns] for row in rows]
    lines = table([heading for heading, _, _ in columns], cells)
    if len({row.shape for row in rows}) > 1:
        kinds = [c for c in columns if c[1] in ("speed_vs_nn_lstm", "cost")]
        means = []
        for name in dict.fromkeys(row.candidate for row in rows):
            of_name = [row for row in rows if row.candidate == name]
            means.append([name, *(mean_text([getattr(row, field) for row in of_name]) for _, field, _ in kinds)])
        if rows[0].group in BOUND_BY_PRODUCTS:
            bound = geometric_mean([1 / row.share_of_peak for row in rows if row.candidate == PEER])
            means.append(
                ["*matrix products only*", *(f"{bound:.3f}" if heading == "speed" else "" for heading, *_ in kinds)]
            )
        lines += table(["geometric mean", *(heading for heading, _, _ in kinds)], means)
    return lines


def text(value: object, form: str) -> str:
    return "" if value is None else form.format(value)


def mean_text(values: list[float | None]) -> str:
    return "" if None in values else f"{geometric_mean(values):.3f}"


def table(headings: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]
