"""The CUDA backend compiled for the CPU: csrc/cuda as it is, with the emulator in the place of CUDA's header.

``torch.ops.load_library(build())`` puts it in the place of the CPU's kernels for the rest of the process, so whoever
calls :mod:`lstm_fused.ops` with CPU tensors runs the CUDA kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CXX = shlex.split(os.environ.get("CXX") or "c++")  # program and options

# CUDA's "#pragma unroll" is unknown here, and the compiler does not see that a thread which reads what it has kept of a
# row is one that has kept it.
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
# Line numbers only here: they take a third of the time to compile.
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def compiler_version() -> str:
    return subprocess.run([*CXX, "--version"], capture_output=True, text=True, check=True).stdout


def build(name: str = "plain", csrc: Path = ROOT / "csrc", flags: tuple[str, ...] = ()) -> Path:
    """Compile the backend in ``csrc`` and link it into a library; returns its path. Unchanged sources: the last one."""
    folder = ROOT / "build" / "cuda_emulated" / name
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*sorted((csrc / "cuda").glob("*.cu")), *sorted((csrc / "cuda").glob("*.cpp"))]
    sources = [source for source in sources if source.name != "module.cpp"]  # which registers for CUDA
    sources += [HERE / "emulated_ops.cpp", HERE / "emulator" / "emulator.cpp"]
    compile_ = [
        *(*CXX, "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", *WARNINGS, *flags),
        *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
        *(f"-I{HERE / 'emulator'}", f"-I{csrc}"),
        *(f"-isystem{path}" for path in cpp_extension.include_paths()),
    ]
    link = [*CXX, "-shared", *flags, "-Wl,-Bsymbolic"]
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu"]
    headers = [*csrc.rglob("*.h"), *(HERE / "emulator").glob("*.h")]
    state = hashlib.sha256(repr((compile_, link, torch.__version__, compiler_version())).encode())
    for path in sorted([*sources, *headers]):
        state.update(path.read_bytes())
    library, stamp = folder / "cuda_emulated.so", folder / "state"
    if library.exists() and stamp.exists() and stamp.read_text() == state.hexdigest():
        return library
    stamp.unlink(missing_ok=True)  # of a build that ends halfway nothing stays

    def compile_object(source: Path) -> str:
        target = str(folder / f"{source.name}.o")
        subprocess.run([*compile_, "-x", "c++", "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_object, sources))
    subprocess.run([*link, *objects, "-o", str(library), *libraries], check=True)
    stamp.write_text(state.hexdigest())
    return library


class Emulator:
    """The library, loaded: what runs, and how it is scheduled."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        self.library = ctypes.CDLL(str(library))
        for count in ("launches", "direct_products", "wide_products"):
            getattr(self.library, f"lstm_fused_emulator_{count}").restype = ctypes.c_int64
        self.library.lstm_fused_emulator_chunk(ctypes.c_int64(128))  # one step, two or all of them

    def schedule(self, seed: int) -> None:
        """0: threads and blocks in order; otherwise shuffled."""
        self.library.lstm_fused_emulator_seed(seed)

    def launches(self) -> int:
        """Kernels run so far."""
        return self.library.lstm_fused_emulator_launches()

    def products(self) -> tuple[int, int]:
        """Matrix products so far: without the dispatcher, and of half precision in float32."""
        return self.library.lstm_fused_emulator_direct_products(), self.library.lstm_fused_emulator_wide_products()

    def use_dispatcher(self, always: bool) -> None:
        """For matrix products, as on a torch that has no other way."""
        self.library.lstm_fused_emulator_by_dispatcher(always)


def sanitizer_environment() -> dict[str, str]:
    """For a process that loads a library built with SANITIZE."""
    library = subprocess.run([*CXX, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return os.environ | {
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's
        "PYTHONMALLOC": "malloc",
    }


if __name__ == "__main__":
    print(build().relative_to(ROOT))
