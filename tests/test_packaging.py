"""What a build records about itself, what an import loads, and what the sdist contains."""

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

import pytest

import lstm_fused

ROOT = Path(__file__).resolve().parents[1]


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
    assert numbers(info["python"]) >= (3, 10)
    assert info["compiler"].startswith(("GCC ", "Clang "))
    assert info["cpp_standard"] == "C++17"
    assert "-ffast-math" not in info["flags"]
    assert info["isas"][0] == "baseline"
    assert info["isa"] in info["isas"]
    assert info["cuda"] == (importlib.util.find_spec("lstm_fused._cuda") is not None)
    assert info["cuda_reason"]


@pytest.fixture(scope="module")
def in_a_new_process() -> dict[str, Any]:
    """The heavy modules that an import of the package loads, and its record of the build without lstm_fused._C."""
    heavy = ("lightning", "pytorch_lightning", "wandb", "matplotlib", "torchmetrics", "lightning_modules")
    code = (
        "import json, sys; sys.modules['lstm_fused._C'] = None\n"
        f"import torch, lstm_fused; loaded = [name for name in {heavy} if name in sys.modules]\n"
        "lstm_fused.FusedLSTM(2, 3)(torch.zeros(1, 1, 2))\n"
        "print(json.dumps({'loaded': loaded, 'build_info': lstm_fused.build_info()}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_wheel_for_every_python_has_the_record_too(in_a_new_process):
    """Without lstm_fused._C, which is for one Python."""
    assert in_a_new_process["build_info"] == lstm_fused.build_info()


def test_import_is_light(in_a_new_process):
    assert in_a_new_process["loaded"] == []


# The sdist


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository. In an unpacked sdist, which has no git, it is skipped."""
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
    """So no file that a test, a build or a reader needs is missing; MANIFEST.in lists its contents."""
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
