"""Time lstm_fused against ``nn.LSTM`` and hand-written layer-normed LSTMs on this CPU.

    python -m benchmarks                 everything: CSV, Markdown and a picture in benchmarks/results/
    python -m benchmarks --quick         without the slow peers, fewer rounds
    python -m benchmarks --threads 2

Absolute times mean little on a shared machine; read the ratios, and the share of the matrix ceiling of the same run.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import matplotlib
import torch

from . import cases
from .timing import ceiling, interleaved, machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLUMNS = ["group", "shape", "candidate", "best_ms", "median_ms", "gflops", "speed_vs_nn_lstm", "share_of_ceiling"]


def measure(groups: list[cases.Case], seconds: float, threads: int) -> list[dict[str, object]]:
    """Rows of the table. The speed is that of ``nn.LSTM`` = 1, from the best times."""
    measure_ceiling, rows = ceiling(), []
    for case in groups:
        peak = threads * measure_ceiling()
        timings = interleaved(case.candidates, seconds)
        peak = max(peak, threads * measure_ceiling())
        peer = timings[cases.PEER].best
        for name, timing in timings.items():
            gflops = case.flops / timing.best / 1e9
            rows.append(
                {
                    "group": case.group,
                    "shape": case.shape,
                    "candidate": name,
                    "best_ms": round(timing.best * 1e3, 4),
                    "median_ms": round(timing.median * 1e3, 4),
                    "gflops": round(gflops, 1),
                    "speed_vs_nn_lstm": round(peer / timing.best, 3),
                    "share_of_ceiling": round(gflops / peak, 3),
                }
            )
        speeds = ", ".join(f"{row['candidate']} {row['speed_vs_nn_lstm']:.2f}x" for row in rows[-len(timings) + 1 :])
        print(f"{case.group}, {case.shape}: nn.LSTM {peer * 1e3:.2f} ms; {speeds}", flush=True)
    return rows


def geometric_means(rows: list[dict[str, object]]) -> dict[tuple[str, str], float]:
    """Speed against ``nn.LSTM`` of each candidate of each group that has more than one shape."""
    speeds: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        speeds.setdefault((str(row["group"]), str(row["candidate"])), []).append(float(row["speed_vs_nn_lstm"]))
    return {key: math.exp(sum(map(math.log, v)) / len(v)) for key, v in speeds.items() if len(v) > 1}


def write(rows: list[dict[str, object]], facts: dict[str, str], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)

    lines = ["# Measured", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines += ["Speed is relative to `nn.LSTM` in the same run (more is faster), from the best of interleaved runs.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[column]) for column in COLUMNS) + " |" for row in rows]
    lines += ["", "Geometric means of the speed:", "", "| group | candidate | speed_vs_nn_lstm |", "|---|---|---|"]
    lines += [f"| {group} | {name} | {mean:.3f} |" for (group, name), mean in geometric_means(rows).items()]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")

    picture(rows, facts, folder / f"{name}.png")


def picture(rows: list[dict[str, object]], facts: dict[str, str], path: Path) -> None:
    """Speed of a training step on every shape, a bar a candidate."""
    grid = [row for row in rows if row["group"] == "training step"]
    shapes = list(dict.fromkeys(str(row["shape"]) for row in grid))
    names = [name for name in dict.fromkeys(str(row["candidate"]) for row in grid) if name != cases.PEER]
    speed = {(row["candidate"], row["shape"]): float(row["speed_vs_nn_lstm"]) for row in grid}
    colours = ["#1b6ca8", "#3aa17e", "#8fc93a", "#c9c9c9", "#9a9a9a"]
    figure, axes = plt.subplots(figsize=(11, 4.2), layout="constrained")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        positions = [s + (index - (len(names) - 1) / 2) * width for s in range(len(shapes))]
        axes.bar(positions, [speed[name, shape] for shape in shapes], width, label=name, color=colours[index])
    axes.axhline(1, color="black", linewidth=1)
    axes.text(len(shapes) - 0.45, 1.02, "nn.LSTM", ha="right", va="bottom", fontsize=9)
    axes.set_xticks(range(len(shapes)), [shape.replace(" H", "\nH") for shape in shapes])
    axes.set_ylabel("speed of a training step\n(plain nn.LSTM = 1)")
    axes.set_title(f"{facts['CPU']}, {facts['instruction set']}, threads: {facts['threads']}, torch {facts['torch']}")
    figure.legend(loc="outside lower center", ncols=len(names), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="without the slow peers, fewer rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    cases.validate()
    facts = machine(arguments.threads)
    print(", ".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    groups = cases.training_grid(slow_peers=not arguments.quick)
    groups += cases.forward_grid() + cases.streaming() + cases.structures()
    rows = measure(groups, 1.0 if arguments.quick else 2.5, arguments.threads)
    for (group, name), mean in geometric_means(rows).items():
        print(f"geometric mean, {group}: {name} {mean:.2f}x")
    name = "cpu_quick" if arguments.quick else "cpu"
    if arguments.threads > 1:
        name += f"_{arguments.threads}_threads"
    write(rows, facts, arguments.out, name)
    print(f"written: {arguments.out / name}.csv, .md, .png")


if __name__ == "__main__":
    main()
