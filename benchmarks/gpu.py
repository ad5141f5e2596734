"""Time a training step on a GPU: layer norm and dropout against cuDNN's plain LSTM and a TorchScript LN-LSTM.

    python -m benchmarks.gpu --out FOLDER [--seconds N]   gpu.csv, gpu.md and, where there is matplotlib, gpu.png
    python -m benchmarks.gpu --out FOLDER --dry-run       tiny shapes on the CPU: does it run?

All candidates of a shape take turns in one process, and are validated before anything is timed. Times are medians
between CUDA events; ratios are of one run. What N seconds are not enough for, and what does not fit into memory, is
named in gpu.md.
"""

from __future__ import annotations

import argparse
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

SCRIPTED = ((128, 64, 256), (128, 64, 512), (512, 64, 256))  # where the TorchScript peer, which is slow, runs too
MIDDLE = tuple((512, B, H) for B, H in ((16, 128), (64, 512), (256, 1024)))
GRID = tuple((T, B, H) for T in (128, 1024) for B in (16, 64, 256) for H in (128, 256, 512, 1024))
SHAPES = tuple(dict.fromkeys(SCRIPTED + MIDDLE + GRID))  # in this order, should there be no time for all
STEPS = "plain, our kernels"
FIVE_TIMES = 5.0  # the target against the TorchScript peer
# How float32 products are computed is a choice of torch's; the name of each, its dtype, and whether TF32 is allowed.
NUMBERS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
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
    return runs | {STEPS: on_our_kernels(runs[STEPS])}


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
    leaf, zeros, weights = x.clone().requires_grad_(), x.new_zeros(B, H), layer.lstm.all_weights[0]
    output = reference.lstm_layer(leaf, zeros, zeros, *weights, seed=seed, **layer.options)[0]
    compare(got, [output, *torch.autograd.grad(output, [leaf, *weights], weight)], 1e-3)


def milliseconds(runs: dict[str, Callable[[], None]], device: str, seconds: float) -> dict[str, list[float]]:
    """Of single calls, turn by turn for about `seconds`, at least 5 of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):  # TorchScript optimises at the second
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


def measure(plan: Plan) -> tuple[list[Row], list[str]]:
    """The rows, and what was not measured."""
    start, rows, left_out = time.perf_counter(), [], []
    first = [(numbers, shape) for shape in plan.shapes for numbers in ("float32", "bfloat16")]
    for numbers, shape in first + [("float32 with TF32", shape) for shape in plan.shapes]:
        what = f"{numbers}, {shape_text(*shape)}"
        if time.perf_counter() - start > plan.seconds:
            left_out.append(f"{what}: no time was left")
            continue
        try:
            of_shape = measure_shape(numbers, shape, plan)
        except torch.OutOfMemoryError as error:
            left_out.append(f"{what}: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
            continue
        for row in of_shape:
            print(f"{what}: {row.candidate} {row.median_ms:.3f} ms, {row.speed_vs_nn_lstm:.2f}x", flush=True)
        rows += of_shape
    return rows, left_out


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
    """How many times as fast as the TorchScript peer the step with layer norm and dropout is."""
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
    try:
        import matplotlib
    except ImportError:
        print("no picture: there is no matplotlib here")
        return
    matplotlib.use("Agg")
    if rows:
        picture(rows, told, folder / "gpu.png")


def picture(rows: list[Row], told: dict[str, str], path: Path) -> None:
    """Speed against cuDNN, one panel for each kind of numbers, a point for each shape."""
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys(row.group for row in rows))
    shapes = list(dict.fromkeys(row.shape for row in rows))
    size = (max(12.0, 0.55 * len(shapes)), 3.2 * len(groups))
    figure, grid = plt.subplots(len(groups), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    axes = grid[:, 0]
    for group, axis in zip(groups, axes, strict=True):
        for name, colour in ((STEPS, "#1b6ca8"), (FULL, "#8fc93a"), (SCRIPT, "#9a9a9a")):
            speeds = {row.shape: row.speed_vs_nn_lstm for row in rows if (row.group, row.candidate) == (group, name)}
            places = [shapes.index(shape) for shape in speeds]
            axis.plot(places, list(speeds.values()), "o", color=colour, label=name)
        axis.axhline(1, color="#444444")
        axis.set_yscale("log")
        axis.set_ylabel(f"{group.partition(', ')[2]}\nspeed, {PEER} = 1")
        axis.set_xticks(range(len(shapes)), [shape.replace(" ", "\n") for shape in shapes], fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"Training step on {told['GPU']}, torch {told['torch']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=600, help="after which no other shape begins (default: 600)")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    chosen = parser.parse_args()
    if not chosen.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU; --dry-run needs none")
    plan = Plan("cuda", SHAPES, SCRIPTED, 0.3, chosen.seconds)
    if chosen.dry_run:
        plan = Plan("cpu", ((4, 3, 8), (5, 2, 16)), ((4, 3, 8),), 0.0, chosen.seconds)
    validate(plan.device)
    rows, left_out = measure(plan)
    for name in (STEPS, FULL):
        speeds = [row.speed_vs_nn_lstm for row in rows if row.candidate == name]
        if speeds:
            print(f"geometric mean of the speed against {PEER}: {name} {geometric_mean(speeds):.2f}x")
    write(rows, left_out, facts(plan.device), chosen.out)


if __name__ == "__main__":
    main()
