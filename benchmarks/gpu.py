"""Time a training step on a GPU: layer norm and dropout against cuDNN's plain LSTM and a TorchScript LN-LSTM.

    python -m benchmarks.gpu --out FOLDER [--seconds N]   gpu.csv, gpu.md and gpu.svg
    python -m benchmarks.gpu --out FOLDER --first-light   four shapes, half a minute
    python -m benchmarks.gpu --out FOLDER --dry-run       tiny shapes on the CPU, to test that it runs

All candidates of a shape take turns in one process, and are validated before anything is timed. Times are medians
between CUDA events; ratios are of one run. What N seconds are not enough for, and what does not fit into memory, is
named in gpu.md. Everything measured is written after each shape: what stops it costs that shape.
"""

from __future__ import annotations

import argparse
import html
import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lstm_fused import FusedLSTM, build_info, cuda, reference

from .cases import Shape, layer_flops, shape_text, training
from .models import FULL, PEER, RATE, SCRIPT, full
from .peers import LayerNormLSTM
from .report import group_tables, write_csv
from .rows import Row, geometric_mean
from .validation import SEED, compare, results

SCRIPTED = ((128, 64, 256), (128, 64, 512), (512, 64, 256))  # on which the slow TorchScript peer runs too
MIDDLE = tuple((512, B, H) for B, H in ((16, 128), (64, 512), (256, 1024)))
GRID = tuple((T, B, H) for T in (128, 1024) for B in (16, 64, 256) for H in (128, 256, 512, 1024))
SHAPES = tuple(dict.fromkeys(SCRIPTED + MIDDLE + GRID))  # in this order, in case time runs out
FIRST_LIGHT = ((1024, 16, 768), (256, 64, 512), (35, 32, 650), (128, 128, 256))  # those of the estimates
STEPS = "plain, our kernels"
GRAPHED = f"{FULL}, CUDA graph"
FIVE_TIMES = 5.0  # the target against the TorchScript peer
# By name: the dtype, and whether TF32 is allowed, which is torch's setting for float32 products.
NUMBERS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),  # alone, cuDNN keeps the weights on the chip above 128 units: lstm_fused.cuda
    "float32 with TF32": (torch.float32, True),
}


def allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def on_our_kernels(run: Callable[[], None]) -> Callable[[], None]:
    def step() -> None:
        cuda.use_cudnn("0")
        run()
        cuda.use_cudnn(None)

    return step


def candidates(
    T: int, B: int, H: int, dtype: torch.dtype, device: str, scripted: bool
) -> dict[str, Callable[[], None]]:
    x = torch.randn(T, B, H, device=device, dtype=dtype).requires_grad_()
    weight = torch.randn(T, B, H, device=device, dtype=dtype)
    peer = nn.LSTM(H, H)
    models: dict[str, nn.Module] = {PEER: peer, STEPS: FusedLSTM.from_torch(peer), FULL: full(H)}
    if scripted:
        models[SCRIPT] = torch.jit.script(LayerNormLSTM(H, H, RATE, RATE))
    runs = {name: training(model.to(device, dtype), x, weight) for name, model in models.items()}
    runs[STEPS] = on_our_kernels(runs[STEPS])
    if device == "cuda":
        try:
            runs[GRAPHED] = graphed(runs[FULL])
        except RuntimeError as error:  # the others are still measured
            print(f"{GRAPHED} is skipped: {str(error).splitlines()[0]}", flush=True)
    return runs


def graphed(run: Callable[[], None]) -> Callable[[], None]:
    """The same work launched as one graph, without the launch overhead of the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # warm-up
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def validate(device: str) -> None:
    """Outputs and gradients on this device: plain against nn.LSTM, layer norm and dropout against the specification."""
    allow_tf32(False)
    T, B, H = 12, 6, 32
    x, weight = torch.randn(T, B, H, device=device), torch.randn(T, B, H, device=device)
    peer = nn.LSTM(H, H).to(device)
    cuda.use_cudnn("0")
    compare(results(FusedLSTM.from_torch(peer), x, weight), results(peer, x, weight), 1e-3)
    cuda.use_cudnn(None)
    layer, seed = full(H).to(device), torch.tensor(SEED, device=device)
    got = results(layer, x, weight, seed=seed)
    leaf, zeros, weights = x.clone().requires_grad_(), x.new_zeros(B, H), list(layer.lstm.parameters())
    output = reference.lstm_layer(leaf, zeros, zeros, *weights, seed=seed, **layer.options)[0]
    compare(got, [output, *torch.autograd.grad(output, [leaf, *weights], weight)], 1e-3)


def milliseconds(runs: dict[str, Callable[[], None]], device: str, seconds: float) -> dict[str, list[float]]:
    """Times of single calls, interleaved for about `seconds`, at least 5 of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):  # TorchScript optimizes at the second
            run()
    start = time.perf_counter()
    while len(next(iter(times.values()))) < 5 or time.perf_counter() - start < seconds:
        for name, run in runs.items():
            times[name].append(one_call(run, device))
    return times


def one_call(run: Callable[[], None], device: str) -> float:
    if device == "cpu":
        before = time.perf_counter()
        run()
        return (time.perf_counter() - before) * 1e3
    torch.cuda.synchronize()
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after)


@dataclass
class Plan:
    device: str
    shapes: tuple[Shape, ...]
    scripted: tuple[Shape, ...]
    turns: float  # seconds of a shape's turns
    seconds: float  # of everything


def measure(plan: Plan, keep: Callable[[list[Row], list[str]], None]) -> list[Row]:
    """The rows. ``keep`` is called after each shape with the rows and with what was not measured."""
    start, rows, left_out = time.perf_counter(), [], []
    first = [(numbers, shape) for shape in plan.shapes for numbers in ("float32", "bfloat16", "float16")]
    for numbers, shape in first + [("float32 with TF32", shape) for shape in plan.shapes]:
        what = f"{numbers}, {shape_text(*shape)}"
        if time.perf_counter() - start > plan.seconds:
            left_out.append(f"{what}: no time was left")
            keep(rows, left_out)
            continue
        try:
            of_shape = measure_shape(numbers, shape, plan)
        except RuntimeError as error:  # the others are still measured
            left_out.append(f"{what}: {str(error).splitlines()[0]}")
            keep(rows, left_out)
            if plan.device == "cuda":
                torch.cuda.empty_cache()
            continue
        for row in of_shape:
            print(f"{what}: {row.candidate} {row.median_ms:.3f} ms, {row.speed_vs_nn_lstm:.2f}x", flush=True)
        rows += of_shape
        keep(rows, left_out)
    return rows


def measure_shape(numbers: str, shape: Shape, plan: Plan) -> list[Row]:
    dtype, tf32 = NUMBERS[numbers]
    torch.manual_seed(0)
    allow_tf32(tf32)
    runs = candidates(*shape, dtype, plan.device, shape in plan.scripted)
    times = milliseconds(runs, plan.device, plan.turns)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        Row(
            f"training step, {numbers}",
            shape_text(*shape),
            name,
            clock="wall" if plan.device == "cpu" else "CUDA events",
            best_ms=min(times[name]),
            median_ms=median,
            gflops=layer_flops(shape[0] * shape[1], shape[2]) / median / 1e6,
            speed_vs_nn_lstm=medians[PEER] / median,
        )
        for name, median in medians.items()
    ]


def against_script(rows: list[Row]) -> list[str]:
    """Speed of the step with layer norm and dropout relative to the TorchScript peer."""
    median = {(row.group, row.shape, row.candidate): row.median_ms for row in rows}
    lines = []
    for group, shape, name in median:
        if name == SCRIPT:
            ratio = median[group, shape, SCRIPT] / median[group, shape, FULL]
            verdict = "met" if ratio >= FIVE_TIMES else "NOT MET"
            lines.append(
                f"- {group}, {shape}: {ratio:.1f} times as fast; at least {FIVE_TIMES:.0f} is wanted: {verdict}"
            )
    return lines


def facts(device: str) -> dict[str, str]:
    name = "none: a dry run on the CPU, whose times mean nothing" if device == "cpu" else torch.cuda.get_device_name()
    info = build_info()
    return {
        "GPU": name,
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "CUDA kernels of this build": f"{info['cuda']}, {info['cuda_reason']}",
        "candidates": f"{PEER} is cuDNN's; '{STEPS}' is the same layer without cuDNN; I = H",
    }


def write(rows: list[Row], left_out: list[str], told: dict[str, str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / "gpu.csv")
    lines = ["# Measured on a GPU", "", *(f"- {key}: {value}" for key, value in told.items()), ""]
    lines += ["## Layer norm and dropout against TorchScript", "", *against_script(rows), ""]
    for group in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == group]
        lines += [f"## {group[0].upper()}{group[1:]}", "", *group_tables(of_group)]
    if left_out:
        lines += ["## Not measured", "", *(f"- {what}" for what in left_out)]
    (folder / "gpu.md").write_text("\n".join(lines).rstrip() + "\n")
    if rows:
        (folder / "gpu.svg").write_text(picture(rows, told))


COLORS = {STEPS: "#1b6ca8", FULL: "#5f8f1a", GRAPHED: "#c46a1b", SCRIPT: "#9a9a9a"}
LEFT, TOP, COLUMN, PANEL, BELOW = 100, 70, 36, 170, 110  # pixels


def picture(rows: list[Row], told: dict[str, str]) -> str:
    """Speed relative to cuDNN, one panel per dtype, one point per shape, as SVG, which needs no package."""
    groups = list(dict.fromkeys(row.group for row in rows))
    shapes = sorted({row.shape for row in rows}, key=lambda shape: [int(size) for size in re.findall(r"\d+", shape)])
    logarithms = [math.log2(row.speed_vs_nn_lstm) for row in rows]
    low, high = math.floor(min(logarithms)), max(math.ceil(max(logarithms)), 1)
    width, height = max(LEFT + COLUMN * len(shapes) + 20, 800), TOP + (PANEL + 20) * len(groups) + BELOW

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{html.escape(words)}</text>'

    parts = [
        text(10, 20, f"Training step on {told['GPU']}, torch {told['torch']}: speed, {PEER} = 1", 'font-size="14"')
    ]
    for k, (name, color) in enumerate(COLORS.items()):
        parts.append(text(10 + 300 * k, 42, f"\u25cf {name}", f'fill="{color}"'))
    for k, group in enumerate(groups):
        top = TOP + k * (PANEL + 20)
        parts.append(text(LEFT, top - 4, group.partition(", ")[2]))
        for power in range(low, high + 1):
            y = top + PANEL * (high - power) / (high - low)
            color = "#444444" if power == 0 else "#dddddd"
            parts.append(f'<line x1="{LEFT}" x2="{width - 20}" y1="{y:.0f}" y2="{y:.0f}" stroke="{color}"/>')
            parts.append(text(LEFT - 6, y + 4, f"{2.0**power:g}", 'text-anchor="end"'))
        for row in rows:
            if row.group == group and row.candidate in COLORS:
                x = LEFT + COLUMN * (shapes.index(row.shape) + 0.5)
                y = top + PANEL * (high - math.log2(row.speed_vs_nn_lstm)) / (high - low)
                parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{COLORS[row.candidate]}"/>')
    for k, shape in enumerate(shapes):
        x, y = LEFT + COLUMN * (k + 0.5), height - BELOW + 6
        parts.append(text(x, y, shape, f'text-anchor="end" transform="rotate(-50 {x:.0f} {y})"'))
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=600, help="after which no other shape begins (default: 600)")
    parser.add_argument("--first-light", action="store_true", help="four shapes, a few turns of each")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    chosen = parser.parse_args()
    if not chosen.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU; --dry-run needs none")
    plan = Plan("cuda", SHAPES, SCRIPTED, 0.3, chosen.seconds)
    if chosen.first_light:
        plan = Plan("cuda", FIRST_LIGHT, (), 0.1, chosen.seconds)
    if chosen.dry_run:
        plan = Plan("cpu", ((4, 3, 8), (5, 2, 16)), ((4, 3, 8),), 0.0, chosen.seconds)
    validate(plan.device)
    told = facts(plan.device)
    rows = measure(plan, lambda rows, left_out: write(rows, left_out, told, chosen.out))
    for name in (STEPS, FULL):
        speeds = [row.speed_vs_nn_lstm for row in rows if row.candidate == name]
        if speeds:
            print(f"geometric mean of the speed against {PEER}: {name} {geometric_mean(speeds):.2f}x")


if __name__ == "__main__":
    main()
