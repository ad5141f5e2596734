"""The benchmarks on tiny shapes: every group runs and is reported; and whether a target is met is judged rightly."""

import csv
import platform
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from benchmarks import gpu, machine, memory
from benchmarks.__main__ import GROUPS
from benchmarks.models import FULL, ONNXRUNTIME, PEER, PLAIN
from benchmarks.picture import picture
from benchmarks.report import write_csv
from benchmarks.rows import Row
from benchmarks.targets import targets
from benchmarks.timing import SAMPLE, interleaved
from benchmarks.validation import Accuracy

ROOT = Path(__file__).resolve().parents[1]


def test_every_group_runs(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--scale", "smoke", "--out", str(tmp_path), "--only", *GROUPS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (table,) = tmp_path.glob("*.csv")
    rows = list(csv.DictReader(table.open()))
    assert all(float(row["best_ms"]) > 0 for row in rows)
    assert any(row["candidate"] == ONNXRUNTIME for row in rows) == (find_spec("onnxruntime") is not None)
    assert all(row["clock"] == ("wall" if "two threads" in row["group"] else "CPU") for row in rows)
    groups = {row["group"] for row in rows}
    page = table.with_suffix(".md").read_text()
    assert all(f"\n## {group[0].upper()}{group[1:]}\n" in page for group in groups)
    skipped = [line for line in result.stdout.splitlines() if " is skipped: " in line]  # with the reason
    assert len(groups) + len(skipped) == len(GROUPS) + 1  # "structures" makes two


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory():
    """At least the gates, cells and output that backward needs, and the gradients; not another order of magnitude."""
    T, B, H = 128, 64, 64
    floats = T * B * (4 * H + H + H + H)  # the last: the gradient of the input
    assert 0.9 < memory.in_a_process(PLAIN, (T, B, H)) * 2**20 / (4 * floats) < 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_freed_memory_is_kept():
    """64 MiB again and again: soon without the 16384 page faults that they always cost by default. Not at once, because
    glibc's aligned blocks do not always fit where one just was. In a process of its own: the setting stays."""
    lines = (
        "import torch; from benchmarks import machine, timing; assert machine.keep_freed_memory()",
        "def faults(): before = timing.page_faults(); torch.ones(2**24); return timing.page_faults() - before",
        "print(min(faults() for _ in range(20)))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) < 1000


def test_a_call_that_waits_for_the_core_does_not_shorten_the_samples():
    calls = 0

    def run():
        nonlocal calls
        calls += 1
        if calls == 2:
            time.sleep(4 * SAMPLE)

    interleaved({"short": run}, seconds=0, rounds=1, clock=time.process_time)
    assert calls > 100  # of a microsecond or so; a sample of one call would end at three


ROW = Row("training step", "T=64 B=32 H=256", PEER, best_ms=10.0, share_of_peak=0.85)


def reached(rows, isa="avx2"):
    found = targets(rows, Accuracy(error=1.5, same_bits=True), isa)
    return {(t.what, t.bound): t for t in found}


def test_targets_are_judged_by_the_worst_shape_and_by_the_mean():
    rows = [
        replace(ROW, shape=shape, candidate=name, best_ms=ms, share_of_peak=share)
        for shape, times in {"T=1 B=1 H=8": (10, 4, 12), "T=1 B=1 H=256": (10, 10, 8)}.items()
        for (name, ms), share in zip(zip((PEER, PLAIN, FULL), times, strict=True), (0.1, 0.91, 0.1), strict=True)
    ]
    found = reached(rows)
    plain, full = f"training, {PLAIN}: speed, plain nn.LSTM = 1", f"training, {FULL}: speed, plain nn.LSTM = 1"
    assert (found[plain, "at least 1.1"].met, found[plain, "at least 1.1"].measured) == (
        False,
        "1.000 (T=1 B=1 H=256)",
    )
    assert (found[f"{plain}, geometric mean", "at least 1.3"].measured) == "1.581"
    assert found[f"{plain}, geometric mean", "at least 1.3"].met
    assert not found[full, "at least 1"].met
    assert not found[f"{full}, geometric mean", "at least 1.15"].met
    share = found["training, plain: share of the multiply-add peak, geometric mean", "at least 0.72"]
    assert (share.measured, share.met) == ("0.910", True)
    assert not found["error against float64: nn.LSTM's = 1", "at most 1.3"].met
    assert (plain, "at least 1.03") in reached(rows, "avx512_bf16")


def test_targets_of_costs():
    group, name = "dropout on top of layer norm", "zoneout"
    for cost, met in ((1.1, True), (1.11, False)):
        rows = [replace(ROW, group=group, candidate=name, baseline="layer norm", cost=cost)]
        assert reached(rows)[f"{name}: time, the layer-normed step without = 1", "at most 1.1"].met is met


def test_what_is_not_measured_is_neither_met_nor_missed():
    found = reached([])
    assert {t.met for t in found.values() if t.measured == "not measured"} == {None}
    assert [t.measured for t in found.values() if t.met is not None] == ["1.500", "yes"]


def test_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "bar", lambda self, places, heights, *_, **options: drawn.append(options["label"]))
    rows = [replace(ROW, candidate=name, speed_vs_nn_lstm=1.0) for name in (PEER, PLAIN, FULL)]
    rows += [replace(ROW, group=memory.GROUP, candidate=name, peak_mib=9.0) for name in (PEER, PLAIN)]
    picture(rows, machine.facts(), tmp_path / "picture.png")
    assert drawn == [PLAIN, FULL, PEER, PLAIN]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_csv(tmp_path):
    write_csv([replace(ROW, best_ms=1.23456789)], tmp_path / "table.csv")
    (row,) = csv.DictReader((tmp_path / "table.csv").open())
    assert (row["candidate"], row["best_ms"], row["peak_mib"]) == (PEER, "1.2346", "")


def test_what_fails_on_a_gpu_costs_its_shape_alone(tmp_path, monkeypatch):
    """Everything measured before the failure is written."""

    def measured(numbers, shape, plan):
        if shape == BIG:
            raise RuntimeError("torch could not allocate a tensor of shape [9]: CUDA out of memory.\nmore")
        if numbers == "float16":
            raise KeyboardInterrupt
        return [replace(ROW, group=numbers, median_ms=1.0, speed_vs_nn_lstm=1.0)]

    BIG, small = (9, 9, 9), (1, 1, 1)
    monkeypatch.setattr(gpu, "measure_shape", measured)
    plan = gpu.Plan("cpu", (BIG, small), (), 0.0, 1e9)
    with pytest.raises(KeyboardInterrupt):
        gpu.measure(plan, lambda rows, left_out: gpu.write(rows, left_out, {"GPU": "none", "torch": "2"}, tmp_path))
    page = (tmp_path / "gpu.md").read_text()
    assert "- float32, T=9 B=9 H=9: torch could not allocate a tensor of shape [9]: CUDA out of memory.\n" in page
    assert "## Bfloat16" in page
    assert len((tmp_path / "gpu.csv").read_text().splitlines()) == 3
