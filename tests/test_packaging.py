"""What a build says about itself, what an import pulls in, and when the build backend refuses."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import lstm_fused_build as backend
import pytest

import lstm_fused

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT / "build_backend"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split("+")[0].split(".")[:2]))


# The record of the build


def test_build_info():
    info = lstm_fused.build_info()
    stub = ast.parse(Path(lstm_fused.__file__).with_name("_C.pyi").read_text())
    declared = next(node for node in stub.body if isinstance(node, ast.ClassDef))
    types = {field.target.id: ast.unparse(field.annotation) for field in declared.body}
    assert {key: "list[str]" if isinstance(v, list) else type(v).__name__ for key, v in info.items()} == types
    assert info["version"] == metadata.version("lstm-fused")
    assert numbers(info["torch"]) >= (2, 10)
    assert numbers(info["python"]) == sys.version_info[:2]
    assert info["compiler"].startswith(("GCC ", "Clang "))
    assert info["cpp_standard"] == "C++17"
    assert "-ffast-math" not in info["flags"]
    assert info["isas"][0] == "baseline"
    assert info["isa"] in info["isas"]
    assert info["cuda"] == (importlib.util.find_spec("lstm_fused._cuda") is not None)
    assert info["cuda_reason"]


@pytest.fixture(scope="module")
def in_a_new_process() -> dict[str, Any]:
    """The heavy modules that an import of the package loads, and what it says without the record of its build."""
    heavy = ("lightning", "pytorch_lightning", "wandb", "matplotlib", "torchmetrics", "lightning_modules")
    result = python(
        "import json, sys; sys.modules['lstm_fused._C'] = None\n"
        f"import torch, lstm_fused; loaded = [name for name in {heavy} if name in sys.modules]\n"
        "lstm_fused.FusedLSTM(2, 3)(torch.zeros(1, 1, 2))\n"
        "print(json.dumps({'loaded': loaded, 'build_info': lstm_fused.build_info()}))"
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_works_without_the_record_of_the_build(in_a_new_process):
    assert "lstm_fused._C" in in_a_new_process["build_info"]["missing"]


def test_import_is_light(in_a_new_process):
    assert in_a_new_process["loaded"] == []


# The sdist


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository. From an unpacked sdist these tests run too, but there nothing tells."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git, which knows the files of the repository")
    command = [git, "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def sdist(tracked, tmp_path_factory) -> Path:
    """Built from a copy, which it changes; unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in tracked:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), "source"]
    result = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    return folder / archive.name.removesuffix(".tar.gz")


def test_the_sdist_is_the_repository(tracked, sdist):
    """So nothing that a test, a build or a reader wants is missing; MANIFEST.in says what is in it."""
    inside = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    made = {name for name in inside if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert inside - made == set(tracked)


def test_the_sdist_collects_its_tests(sdist):
    """With the sdist's own Python files, and the extension modules that are installed."""
    package = sdist / "src" / "lstm_fused"
    for module in Path(lstm_fused.__file__).parent.glob("*.so"):
        shutil.copy(module, package)
    environment = os.environ | {"PYTHONPATH": str(sdist / "src")}
    code = (
        "import lstm_fused, pytest, sys; assert lstm_fused.__file__.startswith(sys.argv.pop(1)), lstm_fused.__file__\n"
        "sys.exit(pytest.main())"
    )
    # plain: asserts that are not run need not be rewritten, which takes as long as the imports.
    arguments = ["--collect-only", "-q", "-p", "no:cacheprovider", "--assert=plain", "-m", "slow or not slow"]
    result = subprocess.run(
        [sys.executable, "-c", code, package, *arguments], cwd=sdist, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    collected = {line.split("::")[0] for line in result.stdout.splitlines() if "::" in line}
    files = {path for path in (sdist / "tests").rglob("test_*.py") if "importorskip" not in path.read_text()}
    assert {path.relative_to(sdist).as_posix() for path in files} <= collected


# The build backend: which torch


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
@pytest.mark.parametrize("tells", ["VIRTUAL_ENV", "--python", "--python=", "-p", ".venv"])
def test_finds_the_environment_that_uv_installs_into(tells, tmp_path):
    """A process in the place of uv, told in each of the ways which environment is meant, starts the build."""
    target = tmp_path / ("project/.venv" if tells == ".venv" else "target")
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
    known = {"VIRTUAL_ENV": str(target) if tells == "VIRTUAL_ENV" else "", "CONDA_PREFIX": "", "UV_PYTHON": ""}
    result = python(uv, "pip", "install", *arguments.get(tells, []), ".", **known)
    assert result.stdout.strip() == str(target), result.stderr


# The build backend: refusals, as a front end sees them


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
    """By itself the package then builds without it and knows why; asked for, that is one sentence and the end."""
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
