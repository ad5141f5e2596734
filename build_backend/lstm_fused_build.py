"""The PEP 517 build backend: setuptools, compiling against the torch of the environment the package goes to.

A front end builds in an isolated environment and would download a second, perhaps different torch for it. pip runs
that build with the interpreter of the target environment, whose own site-packages are merely hidden: we look there for
torch, and ask for one only when there is none. Should we look in the wrong place, no harm is done: the binary runs on
every torch from 2.10 on.
"""

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import setuptools
from setuptools import build_meta

TORCH_MINIMUM = (2, 10)  # the first with the stable C++ interface that the ops are written in
TORCH_RUNTIME = "torch>=2.10"  # one binary serves them all
TORCH_TESTED = "torch>=2.10,<2.14"  # what to fetch where there is none


def stop(sentence: str):
    raise SystemExit(f"lstm-fused: {sentence}")


def uv_prefix() -> str | None:
    """The environment that uv installs into.

    uv builds in an environment of its own and does not tell for which other, but on Linux its process can be asked.
    """
    process = Path(f"/proc/{os.getppid()}")
    try:
        arguments = process.joinpath("cmdline").read_text().split("\0")
        variables = dict(re.findall(r"(\w+)=([^\0]*)", process.joinpath("environ").read_text()))
        folder = process.joinpath("cwd").resolve()
    except OSError:
        return None
    named = re.search(r"\0(?:--python[=\0]|-p\0?)([^\0]+)", "\0".join(arguments))
    python = named.group(1) if named else variables.get("UV_PYTHON")
    if python:  # an interpreter, an environment, or a version, which tells nothing
        path = folder / python
        return str(path.parent.parent if path.is_file() else path)
    if "--system" in arguments or variables.get("UV_SYSTEM_PYTHON"):
        return sys.base_prefix
    environments = [variables.get("VIRTUAL_ENV"), variables.get("CONDA_PREFIX")]
    environments += [str(parent / ".venv") for parent in (folder, *folder.parents)]
    return next((prefix for prefix in environments if prefix and os.path.isdir(prefix)), None)


def target_folders() -> list[str]:
    """The site-packages folders of the environment the package will be installed in."""
    prefix = (uv_prefix() if "UV" in os.environ else None) or sys.prefix
    settings = Path(prefix, "pyvenv.cfg")
    folders = site.getsitepackages([prefix])
    sees_system = r"include-system-site-packages\s*=\s*true"
    if not settings.exists() or re.search(sees_system, settings.read_text(), re.IGNORECASE):
        folders += [*site.getsitepackages([sys.base_prefix, sys.base_exec_prefix]), site.getusersitepackages()]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def torch_version(path: list[str]) -> str | None:
    """The version of the torch found in these folders."""
    return next((found.version for found in metadata.distributions(name="torch", path=path)), None)


def check_torch(version: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < TORCH_MINIMUM:
        stop(f"needs torch>=2.10, but this environment has torch {version}; upgrade it first: pip install -U torch")


def check_compiler() -> None:
    """Stop when there is no C++ compiler; otherwise let setuptools and torch agree on one through CXX."""
    named = os.environ.get("CXX")
    if named and not shutil.which(shlex.split(named)[0]):
        stop(f"CXX is '{named}', which is not a program on PATH; set it to a C++17 compiler or unset it")
    found = named or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if found is None:
        stop("needs a C++17 compiler, but there is no c++, g++ or clang++ on PATH; install one or set CXX")
    os.environ["CXX"] = found


def cuda_wanted() -> str:
    wanted = os.environ.get("LSTM_FUSED_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        stop(f"LSTM_FUSED_CUDA must be auto, 0 or 1, got '{wanted}'")
    return wanted


def cuda_toolkit() -> tuple[Path | None, str]:
    """The CUDA toolkit's folder and version; or None, and what is missing, to follow "there is no CUDA module: "."""
    on_path = shutil.which("nvcc")
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [Path(named)] if named else [Path("/usr/local/cuda")]
    if on_path and not named:  # what is on PATH may be a script somewhere else
        folders.insert(0, Path(on_path).resolve().parents[1])
    compilers = [folder / "bin" / "nvcc" for folder in folders if (folder / "bin" / "nvcc").exists()]
    if not compilers:
        return (
            None,
            f"there is no nvcc in {named}/bin" if named else "there is no nvcc on PATH and CUDA_HOME is not set",
        )
    for nvcc in compilers:
        folder = nvcc.parents[1]
        if (folder / "include" / "cuda_runtime.h").exists():
            told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.search(r"release (\d+\.\d+)", told)
            return (folder, version.group(1)) if version else (None, f"{nvcc} does not tell its version")
    return None, f"the CUDA toolkit in {compilers[0].parents[1]} has no headers (include/cuda_runtime.h)"


def cuda_build(torch_cuda: str | None) -> tuple[Path | None, str]:
    """The toolkit to build the CUDA module with and its version; or None, and why none is built.

    ``torch_cuda``: the CUDA that torch is built for. By itself (auto) the module is built for a CUDA torch, with a
    toolkit of the same major version; LSTM_FUSED_CUDA=1 builds it for a CPU torch too, to see that it can be.
    """
    wanted = cuda_wanted()
    if wanted == "0":
        return None, "LSTM_FUSED_CUDA=0"
    if wanted == "auto" and torch_cuda is None:
        return None, "torch is built without CUDA"
    folder, version = cuda_toolkit()
    reason = version
    if folder and torch_cuda and version.split(".")[0] != torch_cuda.split(".")[0]:
        reason = f"the CUDA toolkit in {folder} is version {version}, but torch is built for CUDA {torch_cuda}"
        folder = None
    if folder is None and wanted == "1":
        stop(
            f"LSTM_FUSED_CUDA=1 asks for a CUDA module, but {reason}; set CUDA_HOME to a toolkit that fits, or unset it"
        )
    return folder, reason


def runtime_requirement() -> str:
    """The torch that the wheel depends on.

    Any from 2.10 on, except while pip fills an environment without torch: it would then fetch the newest one, after the
    tested one that the build has just used. PIP_BUILD_TRACKER is how a build can tell that pip runs it.
    """
    fresh = "PIP_BUILD_TRACKER" in os.environ and torch_version(target_folders()) is None
    return TORCH_TESTED if fresh else TORCH_RUNTIME


def build_requirements() -> list[str]:
    """Check what can be checked before anything is fetched or compiled; name the torch to fetch, if one is needed."""
    has = setuptools.__version__
    if int(has.split(".")[0]) < 77:  # without build isolation nobody looks at build-system.requires
        stop(f"needs setuptools>=77 to build, but this environment has {has}; pip install -U setuptools")
    cuda_wanted()
    check_compiler()
    version = torch_version(sys.path) or torch_version(target_folders())
    if version is None:
        return [TORCH_TESTED]
    check_torch(version)
    return []


def prepare_build() -> None:
    """Make torch importable for setup.py."""
    if build_requirements():
        stop("there is no torch to build against; install torch>=2.10 first")
    if torch_version(sys.path) is None:
        sys.path.extend(target_folders())  # at the end: what the build asked for comes first


# The hooks that a front end calls. Those that end in a binary check first, so that a refusal is the only thing printed.

get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
build_sdist = build_meta.build_sdist


def get_requires_for_build_wheel(config_settings=None):
    return [*build_requirements(), *build_meta.get_requires_for_build_wheel(config_settings)]


def get_requires_for_build_editable(config_settings=None):
    return [*build_requirements(), *build_meta.get_requires_for_build_editable(config_settings)]


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    prepare_build()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    prepare_build()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    prepare_build()
    for stale in Path("build").glob("lib*"):  # setuptools would pack whatever lies there
        shutil.rmtree(stale)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    prepare_build()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
