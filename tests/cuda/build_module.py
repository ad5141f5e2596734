"""The real CUDA module, built as setup.py builds it, alone and beside the package.

    python tests/cuda/build_module.py [--report FILE]        for sm_80, sm_90 and sm_100

Needs nvcc and no GPU. Prints what ptxas says of every kernel: registers, and bytes that do not fit into them; where
there is nvdisasm, also into how many groups its loads fall.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))
from emulation import compiler_version  # noqa: E402
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
        return self.name.startswith(HOT) and ", false" not in self.name.replace("true, false", "")


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
    tools = (cuda_toolkit(), metadata.version("torch"), os.environ.get("CXX"), compiler_version())
    state = hashlib.sha256(repr(tools).encode())
    for path in sorted([ROOT / "setup.py", *(ROOT / "build_backend").glob("*.py"), *(ROOT / "csrc").rglob("*.*")]):
        state.update(path.read_bytes())
    if not stamp.exists() or stamp.read_text() != state.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)  # a partial rebuild would report only a part
        folder.mkdir(parents=True)
        versions = ";".join(f"{name[3:-1]}.{name[-1]}" for name in architectures)  # sm_100: 10.0
        result = subprocess.run(
            [sys.executable, __file__, "--setup", folder],
            cwd=ROOT,
            env=os.environ
            | {"LSTM_FUSED_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{versions}+PTX"}
            | {"NVCC_APPEND_FLAGS": "--no-compress"},  # device code to be read, see `cubins`
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
        found.append(Kernel(architecture, *short_name(readable[name]), int(registers), int(stores) + int(loads)))
    return found


def short_name(readable: str) -> tuple[str, str]:
    """The source and the name of a kernel."""
    source = "backward" if "BackwardStep" in readable else "forward" if "ForwardStep" in readable else ""
    short = re.sub(r"^void |lstm_fused::cuda::|\(anonymous namespace\)::", "", readable)
    return source, re.sub(r"\(.*", "", short)


def nvdisasm() -> str | None:
    """Beside nvcc, on PATH, or of the package nvidia-cuda-nvdisasm."""
    folders = [sysconfig.get_path("purelib") + f"/nvidia/{kind}/bin" for kind in ("cu13", "cuda_nvdisasm")]
    toolkit, _ = cuda_toolkit()
    folders += [str(toolkit / "bin")] if toolkit else []
    return shutil.which("nvdisasm", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


CUDA_MACHINE = 190  # of an ELF file


def cubins(module: Path) -> list[bytes]:
    """The programs for GPUs in a library: ELF files in it, not compressed."""
    content, found = module.read_bytes(), []
    for start in (match.start() for match in re.finditer(rb"\x7fELF\x02", content)):
        (machine,) = struct.unpack_from("<H", content, start + 18)
        if machine != CUDA_MACHINE:
            continue
        programs, sections = struct.unpack_from("<QQ", content, start + 32)
        program_size, programs_number, section_size, sections_number = struct.unpack_from("<HHHH", content, start + 54)
        end = max(programs + program_size * programs_number, sections + section_size * sections_number)
        for number in range(sections_number):
            kind, offset, size = struct.unpack_from("<4xI16xQQ", content, start + sections + number * section_size)
            end = max(end, offset + size if kind != 8 else 0)  # 8: takes no place in the file
        found.append(content[start : start + end])
    return found


@dataclass
class Code:
    architecture: str
    source: str
    name: str
    groups: int  # of loads that overlap
    float64: int  # instructions


MOST_GROUPS = 4  # of loads in a kernel that runs once a step
FLOAT64 = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b|(F2F|F2I|I2F)\S*\.F64|MUFU\.\w*64H")


def code_of(module: Path) -> list[Code]:
    """What the instructions of each kernel show."""
    found = []
    for cubin in cubins(module):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            text = subprocess.run([nvdisasm(), "-c", file.name], capture_output=True, text=True, check=True).stdout
        (architecture,) = set(re.findall(r"\.target\s+(sm_\d+)", text))
        parts = re.split(r"^//-+ \.text\.(\w+) -+\s*$", text, flags=re.MULTILINE)[1:]
        names = subprocess.run(["c++filt"], input="\n".join(parts[::2]), capture_output=True, text=True, check=True)
        for readable, body in zip(names.stdout.splitlines(), parts[1::2], strict=True):
            lines = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*(.*?) ;", body, flags=re.MULTILINE)
            ways = "\n".join(lines).split("\nEXIT")  # a row that has ended goes a way of its own
            usual = max(ways, key=lambda way: way.count("LDG.E")).splitlines()
            float64 = sum(bool(FLOAT64.match(line)) for line in lines)
            found.append(Code(architecture, *short_name(readable), load_groups(usual), float64))
    return found


def load_groups(instructions: list[str]) -> int:
    """Into how many groups the loads of vectors fall, whether they are taken or not.

    A load begins a group when a number of the group before it was used before: the kernel then has waited for that one,
    hundreds of cycles. What decides a branch counts for no use: whether there are lengths, or a seed, is asked first.
    """
    groups, loaded, used = 0, set(), True
    for instruction in instructions:
        registers = [int(number) for number in re.findall(r"\bR(\d+)\b", instruction)]
        load = re.match(r"LDG\.E\S*\.(64|128)\b", instruction)
        if load:
            if used:
                groups, loaded, used = groups + 1, set(), False
            loaded |= set(range(registers[0], registers[0] + int(load[1]) // 32))
        elif registers and not re.match(r"LDG|STG|ISETP|BRA|BSSY|BSYNC", instruction):
            used = used or bool(loaded & set(registers[1:]))
            loaded.discard(registers[0])  # another number from here on
    return groups


# Cycles of an H100 at 1.75 GHz. A load that the L2 cache has, 280, is from published microbenchmarks; all others are
# guesses, to be corrected by the first measurement.
GHZ, TRIP, MEMORY, SUM, FIXED = 1.75, 280, 350, 330, 900
ARITHMETIC = {  # sums over the row, and cycles of arithmetic
    ("forward", "layer_norm_kernel"): (4, 600),
    ("backward", "layer_norm_kernel"): (2, 900),
    ("forward", "plain_kernel"): (0, 500),
    ("backward", "plain_kernel"): (0, 700),
}


def estimates(codes: list[Code]) -> str:
    """Microseconds that a step's kernel would take on an H100, by the groups of loads in its instructions."""
    lines = ["| kernel | groups of loads | computed, us a step |", "|---|---|---|"]
    for code in sorted(codes, key=lambda code: (code.source, code.name)):
        name = code.name.split("<")[0]
        if code.architecture != "sm_90" or (code.source, name) not in ARITHMETIC or not measures_groups(code):
            continue
        sums, cycles = ARITHMETIC[code.source, name]
        total = FIXED + code.groups * TRIP + MEMORY + sums * SUM + cycles
        lines.append(f"| {code.source} `{code.name}` | {code.groups} | {total / GHZ / 1e3:.1f} |")
    return "\n".join(lines)


def measures_groups(code: Code) -> bool:
    """Whether it keeps all that it reads in registers, and reads vectors of 64 bits and more.

    Not of a projection: its loop over the vectors of a row is unrolled, and each turn waits for its own.
    """
    return code.groups > 0 and "false" not in code.name and not code.name.startswith("project")


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
    if nvdisasm():
        text += f"""

## Estimates

Nothing here was measured: no GPU has run these kernels. A group is what is loaded before anything waits for it.
Constants, in cycles at {GHZ} GHz: {FIXED} to start and end, {TRIP} a group, {MEMORY} more for what is not in the L2
cache, {SUM} a sum over the row, and arithmetic. A step takes its matrix product and two launches besides.

{estimates(code_of(module))}"""
        print(text.partition("## Estimates")[2])
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
