"""Build, test and time everything on a machine with a GPU, and write a report: in under 10 minutes, with no network.

    python tests/gpu/run.py [--out FOLDER]     report.json, report.md, gpu.csv, gpu.md and gpu.svg
    python tests/gpu/run.py --dry-run          what can be done without a GPU: the real module is built, the kernels run
                                               on the CPU, and the benchmark times tiny shapes there

Needs torch's CUDA build, the nvcc of its major version, a C++ compiler, pip, setuptools, pybind11 and pytest. What else
is missing (ninja, lightning, jsonargparse, compute-sanitizer) leaves out what it would have done, with the
reason in the report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))
from lstm_fused_build import cuda_toolkit  # noqa: E402

INSTALLED = ROOT / "build" / "gpu_installed"
# Seconds after the start at which a part is stopped, so that none takes the time of those that follow.
BUILT_BY, TESTED_BY, TIMED_BY, STOPPED_BY = 240, 400, 540, 570
GRACE = 30  # seconds for the test that is running when the time of its part is up
CUDA = {"LSTM_FUSED_TEST_DEVICE": "cuda", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # cuBLAS: the same bits in every run
NO_CUDNN = CUDA | {"LSTM_FUSED_CUDNN": "0"}  # our kernels for plain layers too
GPU_TESTS = "tests/gpu/test_gpu.py"
NO_TIME = "no time was left"  # says tests/conftest.py
RESULTS = ("report.json", "report.md", "gpu.csv", "gpu.md", "gpu.svg")
TESTS = {  # what pytest is given, and the environment; they run beside each other, each kind in a process of its own
    "what only a GPU can show": ([GPU_TESTS, "-k", "not sanitizer"], CUDA),
    "compute-sanitizer": ([GPU_TESTS, "-k", "sanitizer"], CUDA),
    "ops against the specification, masks": (
        ["tests/test_ops.py", "tests/test_masks.py", "tests/test_half.py"],
        NO_CUDNN,
    ),
    "derivatives": (["tests/test_gradcheck.py"], NO_CUDNN),
    "modules, opcheck, compile, export, rounding": (
        [*(f"tests/test_{name}.py" for name in ("torch", "lstm", "cell", "accuracy")), "-m", "slow or not slow"],
        CUDA,
    ),
}


@dataclass
class Step:
    name: str
    command: str
    ok: bool
    seconds: float
    summary: str = ""
    passed: int | None = None  # tests; None: this is none
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # by name: why
    output: str = ""  # the end of it

    @property
    def verdict(self) -> str:
        return "**FAILED**" if not self.ok else "skipped" if self.passed == 0 else "passed"


class Run:
    def __init__(self, dry: bool, out: Path, machine: dict[str, str]) -> None:
        self.dry, self.out, self.machine = dry, out, machine
        self.start = time.monotonic()
        self.steps: list[Step] = []

    def left(self, until: float) -> float:
        return until - (time.monotonic() - self.start)

    def do(self, name: str, *command: str | Path, until: float, **environment: str) -> Step:
        """One command, stopped with all that it started where its time is up."""
        start, text, said = time.monotonic(), " ".join(map(str, command)), ""
        with tempfile.TemporaryFile("w+", errors="replace") as log:  # no pipe: what was left running would keep it open
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=os.environ | environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                process.wait(max(1.0, self.left(until)))
            except subprocess.TimeoutExpired:
                said = f"\nstopped after {time.monotonic() - start:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):  # it, or what it started, may be running still
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            log.seek(0)
            output = log.read() + said
        step = Step(name, f"python {text}", process.returncode == 0, round(time.monotonic() - start, 1))
        step.output = output[-6000:]
        step.summary = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        self.steps.append(step)
        print(f"{'passed' if step.ok else 'FAILED':6} {step.seconds:6.1f} s  {name}: {step.summary}", flush=True)
        return step

    def test(self, name: str, arguments: list[str], until: float, **environment: str) -> None:
        """Tests that would begin after ``until`` are skipped, and say so; one that does not end is stopped later."""
        page = self.out / f"{re.sub(r'[^a-z]+', '_', name.lower())}.xml"
        environment |= {"LSTM_FUSED_TEST_UNTIL": str(time.time() + self.left(until))}
        step = self.do(
            name, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={page}", *arguments,
            until=until + GRACE, **environment,
        )  # fmt: skip
        step.passed = 0
        if page.exists():  # not where pytest itself was stopped or is missing
            for case in xml.etree.ElementTree.parse(page).iter("testcase"):
                label = f"{case.get('classname')}.{case.get('name')}"
                if case.find("failure") is not None or case.find("error") is not None:
                    step.failed.append(label)
                elif (skipped := case.find("skipped")) is not None:
                    step.skipped[label] = skipped.get("message", "")
                else:
                    step.passed += 1
            page.unlink()
        step.ok = step.ok and NO_TIME not in step.skipped.values()

    def everything(self) -> None:
        if self.dry:
            unhurried = 3600.0
            self.do("build the CUDA module for three architectures", "tests/cuda/build_module.py", until=unhurried)
            emulated = self.do("compile the kernels for the CPU", "tests/cuda/emulation.py", until=unhurried)
            self.test("what an emulated GPU can show", [GPU_TESTS], unhurried, LSTM_FUSED_EMULATED=emulated.summary)
            self.do("benchmark", "-m", "benchmarks.gpu", "--out", self.out, "--dry-run", until=unhurried)
            return
        # Into a folder of its own, whatever this Python's own packages are and whoever may write there.
        install = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--upgrade", "--target", INSTALLED, ".")
        offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "LSTM_FUSED_CUDA": "1"}
        built = self.do("build", *install, until=BUILT_BY, **offline)
        self.report()
        if not built.ok:
            return
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INSTALLED), os.environ.get("PYTHONPATH")]))
        with ThreadPoolExecutor(len(TESTS)) as pool:
            parts = TESTS.items()
            list(pool.map(lambda part: self.test(part[0], part[1][0], TESTED_BY, **part[1][1]), parts))
        self.report()
        self.do(  # alone, so that nothing else is timed
            "benchmark", "-m", "benchmarks.gpu", "--out", self.out, "--seconds", f"{self.left(TIMED_BY):.0f}",
            until=STOPPED_BY,
        )  # fmt: skip

    def report(self) -> None:
        seconds = round(time.monotonic() - self.start)
        everything = {"machine": self.machine, "dry_run": self.dry, "seconds": seconds}
        steps = [asdict(step) for step in self.steps]
        (self.out / "report.json").write_text(json.dumps(everything | {"steps": steps}, indent=2) + "\n")
        lines = ["# Everything on a GPU", ""]
        if self.dry:
            lines += ["**A dry run without a GPU: it shows that the pieces run, and nothing about a GPU.**", ""]
        lines += [*(f"- {key}: {value}" for key, value in self.machine.items()), f"- all of it took {seconds} s", ""]
        lines += ["| step | | seconds | |", "|---|---|---|---|"]
        lines += [f"| {s.name} | {s.verdict} | {s.seconds} | {s.summary} |" for s in self.steps]
        if (self.out / "gpu.md").exists():
            lines += ["", "The figures: [gpu.md](gpu.md), [gpu.csv](gpu.csv)."]
        lines += ["", "![Speed of a training step](gpu.svg)"] if (self.out / "gpu.svg").exists() else []
        for step in self.steps:
            if not step.ok:
                lines += ["", f"## Failed: {step.name}", "", f"`{step.command}`", ""]
                lines += [*(f"- {name}" for name in step.failed), "", "```", *step.output.splitlines()[-60:], "```"]
        skipped = {name: why for step in self.steps for name, why in step.skipped.items()}
        if skipped:
            lines += ["", "## Skipped", "", *(f"- {name}: {why}" for name, why in skipped.items())]
        (self.out / "report.md").write_text("\n".join(lines) + "\n")


def facts() -> dict[str, str]:
    import torch

    def tool(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "none"

    query = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    return {
        "GPU": tool("nvidia-smi", *query),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "nvcc": cuda_toolkit()[1],  # or why there is none
        "Python": platform.python_version(),
        "cores": str(os.cpu_count()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="what can be done without a GPU")
    parser.add_argument("--out", type=Path, help="folder of the report (default: benchmarks/results/gpu)")
    chosen = parser.parse_args()
    import torch

    if not chosen.dry_run and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no GPU here; --dry-run does what can be done without one")
    out = chosen.out or ROOT / ("build/gpu_dry_run" if chosen.dry_run else "benchmarks/results/gpu")
    out.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:  # of an earlier run
        (out / name).unlink(missing_ok=True)
    run = Run(chosen.dry_run, out.resolve(), facts())
    run.everything()
    run.report()
    print(f"written: {out}/report.md")
    return 0 if all(step.ok for step in run.steps) else 1


if __name__ == "__main__":
    sys.exit(main())
