"""The package installed in each of the usual ways, beside a torch that is already there, and sdist -> wheel -> import.

Slow, and the isolated builds fetch the build tools: run by `make test-all`.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import lstm_fused_flags as flags
import pytest

ROOT = Path(__file__).resolve().parents[1]
SMOKE_TEST = ROOT / "tests" / "compat" / "smoke.py"
NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}"
    return result.stdout


def needs(name: str, found: set[str]) -> set[str]:
    """The distributions that one needs here, itself included."""
    if name not in found:
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            return found
        found.add(name)
        for requirement in requires:
            if "extra ==" not in requirement:
                needs(re.match(r"[\w.-]+", requirement).group(), found)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The interpreter of an environment with pip and a copy of this torch. A copy: an installer may write over it."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, folder=folder)
    (target,) = folder.glob("lib/python*/site-packages")
    for name in needs("torch", set()):
        for file in metadata.files(name) or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), target / file)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "lstm_fused", ignore=NOT_SOURCES)


PIP = ("{python}", "-m", "pip", "install")
UV = (pytest.importorskip("uv").find_uv_bin(), "pip", "install", "--python", "{python}")


# Editable first: what it leaves among the sources must not disturb those after it.
@pytest.mark.parametrize(
    "command",
    [
        (*PIP, "-e", "."),
        (*PIP, "."),
        (*UV, "."),
        (*PIP, "--no-build-isolation", "--no-deps", "."),
    ],
    ids=["pip-editable", "pip", "uv", "pip-offline"],
)
def test_install(command, environment, source, tmp_path):
    if "--no-build-isolation" in command:
        run(environment, "-m", "pip", "install", "setuptools>=77", "pybind11", "ninja", folder=tmp_path)
    run(*(part.format(python=environment) for part in command), folder=source)
    said = run(environment, SMOKE_TEST, folder=tmp_path)
    # The torch that was there is the one built against, and it is still there.
    torch = metadata.version("torch")
    assert f"passed on torch {torch}; built against torch {torch}" in said
    run(environment, "-c", "import lightning_modules", folder=tmp_path)
    where = run(environment, "-c", "import lstm_fused; print(lstm_fused.__file__)", folder=tmp_path)
    assert (str(source) in where) == ("-e" in command)
    run(environment, "-m", "pip", "uninstall", "-y", "lstm-fused", folder=tmp_path)


def test_sdist_to_wheel_to_import(environment, source, tmp_path):
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, source, folder=tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    stale = unpacked / "build" / f"lib.{flags.PLATFORM}-cpython-{sys.version_info[0]}{sys.version_info[1]}" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, unpacked, folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata_name = next(name for name in names if name.endswith("/METADATA"))
        requires = re.findall(r"^Requires-Dist: ([^;\n]*)$", archive.read(metadata_name).decode(), re.MULTILINE)
    assert requires == ["torch>=2.10"]
    assert {"lstm_fused/_ops.abi3.so", "lstm_fused/_C.pyi", "lstm_fused/py.typed"} <= names
    configs = {f"lightning_modules/configs/{path.name}" for path in (ROOT / "lightning_modules/configs").glob("*.yaml")}
    assert configs
    assert configs <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lstm_fused", "lightning_modules"}

    run(environment, "-m", "pip", "install", "--no-deps", wheel, folder=tmp_path)
    assert "passed" in run(environment, SMOKE_TEST, folder=tmp_path)


def test_kernels_keep_their_instructions_to_themselves(tmp_path):
    """The linker keeps one copy of an inline function: one that several objects share could be the AVX-512 one."""
    nm = shutil.which("nm")
    if not nm:
        pytest.skip("needs nm")
    isa, options = list(flags.ISAS.items())[-1]
    compiled = tmp_path / "kernels.o"
    command = ["c++", *flags.FLAGS, *options, f"-DLSTM_FUSED_ISA_NAME={isa}", "-Icsrc"]
    run(*command, "-c", "csrc/cpu/kernels.cpp", "-o", compiled, folder=ROOT)
    defined = [line.split(maxsplit=2) for line in run(nm, "-C", "--defined-only", compiled, folder=ROOT).splitlines()]
    shared = [name for _, kind, name in defined if kind in "WVuTBD"]
    assert shared
    assert [name for name in shared if f"::{isa}::" not in name] == []
