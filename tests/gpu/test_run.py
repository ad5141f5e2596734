"""`make test-gpu` where there is no GPU."""

import json
import subprocess
import sys
from pathlib import Path

import lstm_fused_build as backend
import pytest
import torch

RUN = Path(__file__).with_name("run.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    result = subprocess.run([sys.executable, RUN], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "sees no GPU here; --dry-run does what can be done without one" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(backend.cuda_toolkit()[0] is None, reason="there is no CUDA toolkit to build the module with")
def test_the_dry_run(tmp_path):
    result = subprocess.run([sys.executable, RUN, "--dry-run", "--out", tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dry_run"]
    assert len(report["steps"]) == 4
    assert all(step["ok"] for step in report["steps"])
    for page in ("report.md", "gpu.md", "gpu.csv", "gpu.png"):
        assert (tmp_path / page).stat().st_size > 0
