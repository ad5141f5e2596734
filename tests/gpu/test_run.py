"""`make test-gpu` where there is no GPU."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import lstm_fused_build as backend
import pytest
import run as gpu_run
import torch
from testing import PATIENCE

RUN = Path(__file__).with_name("run.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(RUN)])
    with pytest.raises(SystemExit) as stopped:
        gpu_run.main()
    assert stopped.value.code == 2
    assert "sees no GPU here; --dry-run does what can be done without one" in capsys.readouterr().err


def report_in(folder):
    return json.loads((folder / "report.json").read_text())


def test_what_takes_too_long_is_stopped_and_the_rest_still_runs(tmp_path):
    run = gpu_run.Run(dry=False, out=tmp_path, machine={"GPU": "none"})
    run.stage = "correctness"
    slow = run.do("slow", "-c", "import subprocess; subprocess.run(['sleep', '600'])", seconds=0)
    quick = run.do("quick", "-c", "print('done')", seconds=PATIENCE)
    assert [step["ok"] for step in report_in(tmp_path)["steps"]] == [False, True]
    assert re.fullmatch(r"stopped after \d+ s", slow.summary)
    assert quick.summary == "done"
    assert "**FAILED**" in (tmp_path / "report.md").read_text()


def test_nothing_is_lost_where_the_machine_is_taken_away(tmp_path):
    """In the middle of a step: the steps before it are in the report, and what it has printed is in its log."""
    script = f"""
import sys; sys.path[:0] = {[str(RUN.parent), str(RUN.parents[1])]!r}
import os, pathlib, run as gpu_run
run = gpu_run.Run(dry=False, out=pathlib.Path({str(tmp_path)!r}), machine={{}})
run.stage = "first-light"
run.do("first", "-c", "print('seen')", seconds={PATIENCE})
run.do("second", "-c", "print('begun'); import os, signal; os.kill(os.getppid(), signal.SIGKILL)", seconds={PATIENCE})
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    first, second = report_in(tmp_path)["steps"]
    assert (first["ok"], first["summary"]) == (True, "seen")
    assert (second["ok"], second["summary"]) == (False, gpu_run.INTERRUPTED)
    assert (tmp_path / "logs" / "first_light_second.log").read_text() == "begun\n"
    assert "| first-light | second | **FAILED** |" in (tmp_path / "report.md").read_text()


def test_a_stage_keeps_what_the_others_have_found(tmp_path):
    machine = {"GPU": "one"}
    for stage, stages in (
        ("first-light", gpu_run.STAGES),
        ("benchmark", ("benchmark",)),
        ("benchmark", ("benchmark",)),
    ):
        run = gpu_run.Run(False, tmp_path, machine, stages)
        run.stage = stage
        run.do("step", "-c", "print('done')", seconds=PATIENCE)
    assert [step["stage"] for step in report_in(tmp_path)["steps"]] == ["first-light", "benchmark"]
    assert gpu_run.Run(False, tmp_path, {"GPU": "another"}, ("benchmark",)).steps == []


def test_an_unchanged_package_is_not_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "INSTALLED", tmp_path / "installed")
    monkeypatch.setenv("PYTHONPATH", "")
    built = []

    def do(run, name, *command, **more):
        built.append(name)
        gpu_run.INSTALLED.mkdir(exist_ok=True)
        return gpu_run.Step("build", name, "", ok=True)

    monkeypatch.setattr(gpu_run.Run, "do", do)
    run = gpu_run.Run(False, tmp_path, {"torch": "2.13"})
    run.stage = "build"
    assert run.build()
    assert run.build()
    assert built == ["build"]
    run.machine = {"torch": "2.12"}
    assert run.build()
    assert built == ["build", "build"]


def test_tests_for_which_no_time_is_left_are_not_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "GRACE", PATIENCE)  # on a busy machine pytest takes a minute to start
    run = gpu_run.Run(dry=False, out=tmp_path, machine={})
    run.stage = "correctness"
    run.test("too late", ["tests/test_cuda.py"], 0)
    (step,) = run.steps
    assert not step.ok
    assert step.passed == 0
    assert step.skipped
    assert set(step.skipped.values()) == {gpu_run.NO_TIME}


@pytest.mark.slow
@pytest.mark.skipif(backend.cuda_toolkit()[0] is None, reason="there is no CUDA toolkit to build the module with")
def test_the_dry_run(tmp_path):
    result = subprocess.run([sys.executable, RUN, "--dry-run", "--out", tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    report = report_in(tmp_path)
    assert report["dry_run"]
    assert [step["stage"] for step in report["steps"]] == [
        "build", "first-light", "first-light", "correctness", "correctness", "sanitizer", "benchmark"
    ]  # fmt: skip
    assert all(step["ok"] for step in report["steps"])
    for page in ("report.md", "gpu.md", "gpu.csv", "gpu.svg", "first_light/gpu.md"):
        assert (tmp_path / page).stat().st_size > 0
