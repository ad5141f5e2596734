"""The real CUDA module, built as setup.py builds it, alone and beside the package.

    python tests/cuda/build_module.py [--report FILE]        for sm_80, sm_90 and sm_100

Needs nvcc and no GPU. Prints what ptxas says of every kernel: registers, and bytes that do not fit into them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))
from lstm_fused_build import cuda_toolkit  # noqa: E402

FOLDER = ROOT / "build" / "cuda_module"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
HOT = ("plain_kernel", "layer_norm_kernel", "project_kernel")  # one launch a step each


@dataclass
class Kernel:
    architecture: str
    source: str
    name: str
    registers: int
    spilled: int  # bytes

    @property
    def hot(self) -> bool:
        """Not the variant for rows that do not fit into registers."""
        return self.name.startswith(HOT) and "false" not in self.name


def setup_with_the_cuda_module_alone(folder: Path) -> None:
    """setup.py in this process, without its other extension modules, into ``folder``."""
    import setuptools

    whole = setuptools.setup

    def setup(ext_modules=(), **arguments):
        return whole(ext_modules=[e for e in ext_modules if e.name == "lstm_fused._cuda"], **arguments)

    setuptools.setup = setup
    sys.argv = ["setup.py", "-q", "build_ext", f"--build-lib={folder}", f"--build-temp={folder / 'objects'}"]
    runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")


def build(architectures: tuple[str, ...] = ARCHITECTURES) -> tuple[Path, str]:
    """The module's path, and everything the compilers said about what is in it. Unchanged sources: the last one.

    Each architecture takes about as long as all the rest.
    """
    folder = FOLDER / "_".join(architectures)
    log, stamp = folder / "compilers.log", folder / "state"
    state = hashlib.sha256()
    for path in sorted([ROOT / "setup.py", *(ROOT / "build_backend").glob("*.py"), *(ROOT / "csrc").rglob("*.*")]):
        state.update(path.read_bytes())
    if not stamp.exists() or stamp.read_text() != state.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)  # all anew: who compiles but a part says nothing of the rest
        folder.mkdir(parents=True)
        versions = ";".join(f"{name[3:-1]}.{name[-1]}" for name in architectures)  # sm_100: 10.0
        result = subprocess.run(
            [sys.executable, __file__, "--setup", folder],
            cwd=ROOT,
            env=os.environ | {"LSTM_FUSED_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{versions}+PTX"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if result.returncode:
            raise RuntimeError(f"the CUDA module does not build:\n{result.stdout[-5000:]}")
        log.write_text(result.stdout)
        stamp.write_text(state.hexdigest())
    (module,) = folder.rglob("_cuda*.so")
    return module, log.read_text()


def kernels(said: str) -> list[Kernel]:
    """What ptxas said of each kernel."""
    names = re.findall(r"Compiling entry function '(\w+)' for 'sm_\w+'", said)
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    readable = dict(zip(names, plain.splitlines(), strict=True))
    pattern = (
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    found = []
    for name, architecture, stores, loads, registers in re.findall(pattern, said, re.DOTALL):
        short = re.sub(r"^void |lstm_fused::cuda::|\(anonymous namespace\)::|\(.*\)$", "", readable[name])
        source = (
            "backward" if "BackwardStep" in readable[name] else "forward" if "ForwardStep" in readable[name] else ""
        )
        short = re.sub(r"\(.*", "", short)
        found.append(Kernel(architecture, source, short, int(registers), int(stores) + int(loads)))
    return found


def table(found: list[Kernel]) -> str:
    lines = ["| kernel | " + " | ".join(ARCHITECTURES) + " |", "|---|" + "---|" * len(ARCHITECTURES)]
    cells = {(k.source, k.name, k.architecture): k for k in found}
    for source, name in dict.fromkeys(
        (k.source, k.name) for k in sorted(found, key=lambda k: (not k.hot, k.source, k.name))
    ):
        row = [cells.get((source, name, architecture)) for architecture in ARCHITECTURES]
        texts = ["" if k is None else f"{k.registers}" + (f", {k.spilled} B spilled" if k.spilled else "") for k in row]
        lines.append(f"| {source} `{name}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="where to write the table, as Markdown")
    parser.add_argument("--setup", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.setup:
        return setup_with_the_cuda_module_alone(arguments.setup)
    start = time.time()
    module, said = build()
    found = kernels(said)
    text = table(found)
    print(f"{text}\n\n{module.relative_to(ROOT)}, {module.stat().st_size >> 10} KB, {time.time() - start:.0f} s")
    if arguments.report:
        head = f"""\
# Registers of the CUDA kernels

What ptxas of nvcc {cuda_toolkit()[1]} says (`python tests/cuda/build_module.py`): registers of a thread, and bytes that
did not fit into them. The first rows are those of the kernels that run every step.

"""
        arguments.report.write_text(head + text + "\n")
    return None


if __name__ == "__main__":
    main()
