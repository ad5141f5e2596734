"""build_backend/: which torch and which compiler a build uses, when the CUDA module is built, what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lstm_fused_build as backend
import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT / "build_backend"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )


# Which torch


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Make the backend see an environment with this torch, or with none, and nothing else."""

    def pretend(version: str | None, isolated: bool = True) -> None:
        if version:
            folder = tmp_path / f"torch-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        monkeypatch.setattr(backend, "target_folders", lambda: [str(tmp_path)])
        monkeypatch.setattr(sys, "path", [] if isolated else [str(tmp_path)])

    monkeypatch.delenv("LSTM_FUSED_CUDA", raising=False)
    return pretend


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.15.0a0+git1234", "3.0"])
def test_builds_against_the_torch_that_is_there(version, isolated, environment):
    environment(version, isolated)
    assert backend.build_requirements() == []


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("version", ["2.9.1", "2.1.0+cu118", "1.13.1"])
def test_refuses_an_old_torch(version, isolated, environment):
    environment(version, isolated)
    with pytest.raises(SystemExit, match=f"needs torch>=2.10, but this environment has torch {version[:5]}"):
        backend.build_requirements()


def test_asks_for_a_torch_where_there_is_none(environment):
    environment(None)
    assert backend.build_requirements() == ["torch>=2.10,<2.14"]
    with pytest.raises(SystemExit, match="no torch to build against"):
        backend.prepare_build()


@pytest.mark.parametrize(
    ("torch", "pip", "wanted"),
    [
        ("2.15.0", True, "torch>=2.10"),
        ("2.15.0", False, "torch>=2.10"),
        (None, False, "torch>=2.10"),
        (None, True, "torch>=2.10,<2.14"),
    ],
)
def test_the_wheel_asks_for_any_torch_unless_pip_fills_an_empty_environment(
    torch, pip, wanted, environment, monkeypatch
):
    environment(torch)
    if pip:
        monkeypatch.setenv("PIP_BUILD_TRACKER", "somewhere")
    else:
        monkeypatch.delenv("PIP_BUILD_TRACKER", raising=False)
    assert backend.runtime_requirement() == wanted


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux shows the environment of a process")
@pytest.mark.parametrize("given_by", ["VIRTUAL_ENV", "--python", "--python=", "-p", ".venv"])
def test_finds_the_environment_that_uv_installs_into(given_by, tmp_path):
    """A stand-in for uv, given the environment in each of uv's ways, starts the build."""
    target = tmp_path / ("project/.venv" if given_by == ".venv" else "target")
    (target / "bin").mkdir(parents=True)
    interpreter = target / "bin" / "python"
    interpreter.touch()
    working = tmp_path / "project" / "below"
    working.mkdir(parents=True)
    arguments = {
        "--python": ["--python", str(interpreter)],
        "--python=": [f"--python={interpreter}"],
        "-p": ["-p", str(target)],
    }
    uv = (
        f"import os, subprocess, sys; os.chdir({str(working)!r})\n"
        "print(subprocess.run([sys.executable, '-c', 'import lstm_fused_build as b; print(b.uv_prefix())'],\n"
        "      capture_output=True, text=True).stdout)"
    )
    known = {"VIRTUAL_ENV": str(target) if given_by == "VIRTUAL_ENV" else "", "CONDA_PREFIX": "", "UV_PYTHON": ""}
    result = python(uv, "pip", "install", *arguments.get(given_by, []), ".", **known)
    assert result.stdout.strip() == str(target), result.stderr


# Refusals, as a front end prints them


def refusal(**environment: str) -> str:
    result = python("import lstm_fused_build as b; b.get_requires_for_build_wheel()", **environment)
    assert result.returncode == 1
    assert result.stdout == ""
    return result.stderr.removeprefix("lstm-fused: ").rstrip("\n")


@pytest.mark.parametrize("value", ["maybe", "yes", "", "2"])
def test_unknown_cuda_value(value):
    assert refusal(LSTM_FUSED_CUDA=value) == f"LSTM_FUSED_CUDA must be auto, 0 or 1, got '{value}'"


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A CUDA toolkit of this version, with or without headers; or none."""

    def pretend(version: str | None, headers: bool = True) -> Path:
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        (tmp_path / "bin").mkdir()
        (tmp_path / "include").mkdir()
        if version:
            nvcc = tmp_path / "bin" / "nvcc"
            nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {version}, V{version}.88\n")
            nvcc.chmod(0o755)
        if headers:
            (tmp_path / "include" / "cuda_runtime.h").touch()
        return tmp_path

    return pretend


@pytest.mark.parametrize(
    ("wanted", "torch_cuda", "built"),
    [("auto", "13.0", True), ("auto", "13.2", True), ("auto", None, False), ("1", None, True), ("0", "13.0", False)],
)
def test_when_the_cuda_module_is_built(wanted, torch_cuda, built, toolkit, monkeypatch):
    monkeypatch.setenv("LSTM_FUSED_CUDA", wanted)
    folder = toolkit("13.0")
    assert backend.cuda_build(torch_cuda)[0] == (folder if built else None)


NO_TOOLKIT = {
    "no nvcc": (None, True, "there is no nvcc in "),
    "no headers": ("13.0", False, " has no headers (include/cuda_runtime.h)"),
    "another major version": ("12.8", True, " is version 12.8, but torch is built for CUDA 13.0"),
}


@pytest.mark.parametrize("case", NO_TOOLKIT)
def test_why_no_cuda_module_is_built(case, toolkit, monkeypatch):
    """In auto mode the package builds without it and records why; if requested, it is an error of one sentence."""
    version, headers, sentence = NO_TOOLKIT[case]
    toolkit(version, headers)
    monkeypatch.setenv("LSTM_FUSED_CUDA", "auto")
    folder, reason = backend.cuda_build("13.0")
    assert folder is None
    assert sentence in reason
    monkeypatch.setenv("LSTM_FUSED_CUDA", "1")
    with pytest.raises(SystemExit) as stopped:
        backend.cuda_build("13.0")
    assert sentence in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_no_compiler(tmp_path):
    sentence = "needs a C++17 compiler, but there is no c++, g++ or clang++ on PATH; install one or set CXX"
    assert refusal(PATH=str(tmp_path), CXX="") == sentence


def test_wrong_compiler():
    sentence = "CXX is 'no-such-compiler -m64', which is not a program on PATH; set it to a C++17 compiler or unset it"
    assert refusal(CXX="no-such-compiler -m64") == sentence


def test_a_named_compiler_is_kept(monkeypatch):
    program = shutil.which("c++") or shutil.which("g++") or sys.executable
    monkeypatch.setenv("CXX", f"{program} -m64")
    backend.check_compiler()
    assert os.environ["CXX"] == f"{program} -m64"
