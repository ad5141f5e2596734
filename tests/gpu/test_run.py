"""`make test-gpu` where there is no GPU."""

import json
import re
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


def test_what_takes_too_long_is_stopped_and_the_rest_still_runs(tmp_path):
    run = gpu_run.Run(dry=False, out=tmp_path, machine={"GPU": "none"})
    slow = run.do("slow", "-c", "import subprocess; subprocess.run(['sleep', '600'])", until=0)
    quick = run.do("quick", "-c", "print('done')", until=PATIENCE)
    run.report()
    report = json.loads((tmp_path / "report.json").read_text())
    assert [step["ok"] for step in report["steps"]] == [False, True]
    assert re.fullmatch(r"stopped after \d+ s", slow.summary)
    assert quick.summary == "done"
    assert "**FAILED**" in (tmp_path / "report.md").read_text()


def test_tests_for_which_no_time_is_left_are_not_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "GRACE", PATIENCE)  # on a busy machine pytest takes a minute to start
    run = gpu_run.Run(dry=False, out=tmp_path, machine={})
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
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dry_run"]
    assert len(report["steps"]) == 4
    assert all(step["ok"] for step in report["steps"])
    for page in ("report.md", "gpu.md", "gpu.csv", "gpu.svg"):
        assert (tmp_path / page).stat().st_size > 0
