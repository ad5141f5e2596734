"""Compile the kernels alone under the address and undefined-behaviour sanitizers, and run their test on each
instruction set: ``python tests/kernels/run.py``. Needs a C++ compiler and nothing else."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))
from lstm_fused_flags import FLAGS, HAVE, ISAS  # noqa: E402

BUILD = ROOT / "build" / "kernels"
CXX = os.environ.get("CXX", "c++")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
KERNELS = ROOT / "csrc" / "cpu" / "kernels.cpp"
NEEDS_TORCH = ROOT / "csrc" / "cpu" / "ops.cpp"


def compile_object(source: Path, name: str, flags: list[str]) -> str:
    """-O1 and -g after the package's own flags: bearable to wait for, with line numbers in the reports."""
    target = str(BUILD / f"{name}.o")
    include = f"-I{ROOT / 'csrc'}"
    subprocess.run([CXX, *FLAGS, "-O1", "-g", *SANITIZERS, *flags, include, "-c", source, "-o", target], check=True)
    return target


def main() -> int:
    BUILD.mkdir(parents=True, exist_ok=True)
    others = [*(ROOT / "csrc" / "cpu").glob("*.cpp"), *(ROOT / "tests" / "kernels").glob("*.cpp")]
    jobs = [(KERNELS, f"kernels-{isa}", [*flags, f"-DLSTM_FUSED_ISA_NAME={isa}"]) for isa, flags in ISAS.items()]
    jobs += [(source, source.stem, HAVE) for source in others if source not in (KERNELS, NEEDS_TORCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: compile_object(*job), jobs))
    program = str(BUILD / "test_kernels")
    subprocess.run([CXX, *SANITIZERS, *objects, "-pthread", "-o", program], check=True)

    failed = []
    for isa in ISAS:
        print(f"-- {isa}", flush=True)
        run = subprocess.run([program], env=os.environ | {"LSTM_FUSED_ISA": isa}, stderr=subprocess.PIPE, text=True)
        if "LSTM_FUSED_ISA is" in run.stderr:  # not a failure of the kernels
            print(f"not run: this CPU has no {isa}")
        elif run.returncode:
            print(run.stderr)
            failed.append(isa)
    print(f"kernels under the sanitizers: {'failed on ' + ', '.join(failed) if failed else 'passed'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
