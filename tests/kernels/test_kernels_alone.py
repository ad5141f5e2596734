"""The kernels' own checks, with no torch, on every instruction set that this CPU has: see test_kernels.cpp."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from testing import CPU_ISAS, ISAS

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def program() -> str:
    """Compiled once; the kernels in it are those of the package."""
    spec = importlib.util.spec_from_file_location("kernels_run", HERE / "run.py")
    kernels_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels_run)
    if shutil.which(kernels_run.CXX[0]) is None:
        pytest.skip(f"there is no {kernels_run.CXX[0]}")
    isas = {isa: flags for isa, flags in kernels_run.ISAS.items() if isa in CPU_ISAS}
    return kernels_run.build("packaged", kernels_run.CXX, isas, ["-O2"], packaged=True)


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_alone(isa, program):
    if isa not in CPU_ISAS:
        pytest.skip(f"this CPU has no {isa}")
    environment = os.environ | {"LSTM_FUSED_ISA": isa}
    result = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"instruction set: {isa}\n" in result.stdout
    assert ", 0 failed" in result.stdout


def test_a_case_runs_alone(program):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    names = run("--list").stdout.splitlines()[1:-1]
    assert len(names) == len(set(names)) > 100
    assert "late helpers" in names
    one = run("--case", "philox")
    assert (one.returncode, one.stdout.splitlines()[-1]) == (0, "3 passed, 0 failed")
    none = run("--case", "filox")
    assert none.returncode == 1
    assert "no case begins with 'filox'" in none.stderr
    assert run("philox").returncode == 2
