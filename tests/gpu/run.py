"""Build, test and time everything on a machine with a GPU, and write a report: in stages, in about 10 minutes, offline.

    python tests/gpu/run.py [--stage NAME ...] [--out FOLDER]
        first-light   build; a case of every kernel and dtype, the masks; four shapes against cuDNN: two minutes
        correctness   all tests of ops, derivatives and modules, and what only a GPU can show
        sanitizer     kernels under compute-sanitizer
        benchmark     the grid of shapes
    python tests/gpu/run.py --dry-run [--stage NAME ...]
        what can be done of it without a GPU: the real module is built, the kernels run on the CPU, and the benchmark
        times tiny shapes there

Without --stage: all, in this order. Every stage builds first, unless nothing has changed since the last build. Its
results stay until it runs again, and are written as they come: the report before and after every step, what a step
prints while it runs, the figures after each shape. Nothing is lost where a machine is taken away.

Written: report.json, report.md, gpu.csv, gpu.md and gpu.svg (first_light/gpu.* of that stage), and logs/.
Needs torch's CUDA build, the nvcc of its major version, a C++ compiler, pip, setuptools, pybind11 and pytest. What else
is missing (ninja, lightning, jsonargparse, compute-sanitizer) leaves out what it would have done, with the
reason in the report.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))
from lstm_fused_build import cuda_toolkit  # noqa: E402

INSTALLED = ROOT / "build" / "gpu_installed"
STAGES = ("first-light", "correctness", "sanitizer", "benchmark")
# Seconds after which a step of a stage is stopped, so that none takes the time of those that follow.
LIMITS = {"build": 240, "first-light": 90, "correctness": 160, "sanitizer": 90, "benchmark": 150}
GRACE = 30  # seconds for the test or the shape that is running when the time is up
CUDA = {"LSTM_FUSED_TEST_DEVICE": "cuda", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # cuBLAS: the same bits in every run
NO_CUDNN = CUDA | {"LSTM_FUSED_CUDNN": "0"}  # our kernels for plain layers too
GPU_TESTS = "tests/gpu/test_gpu.py"
FIRST_LIGHT = [GPU_TESTS, "-k", "first_light or masks or this_build"]
NO_TIME = "no time was left"  # says tests/conftest.py
INTERRUPTED = "interrupted"  # of a step that has begun: what ended it ended this too
TESTS = {  # what pytest is given, and the environment; they run beside each other, each kind in a process of its own
    "what only a GPU can show": ([GPU_TESTS, "-k", "not sanitizer"], CUDA),
    "ops against the specification, masks": (
        ["tests/test_ops.py", "tests/test_dropout.py", "tests/test_half_precision.py"],
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
    stage: str
    name: str
    command: str
    ok: bool = False
    seconds: float = 0
    summary: str = INTERRUPTED
    passed: int | None = None  # tests; None: this is none
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # by name: why
    output: str = ""  # the end of it

    @property
    def verdict(self) -> str:
        return "**FAILED**" if not self.ok else "skipped" if self.passed == 0 else "passed"


class Run:
    def __init__(self, dry: bool, out: Path, machine: dict[str, str], stages: tuple[str, ...] = STAGES) -> None:
        self.dry, self.out, self.machine, self.stages = dry, out, machine, stages
        self.stage = ""
        self.lock = threading.RLock()
        self.running: set[subprocess.Popen] = set()
        self.steps = self.earlier()
        (out / "logs").mkdir(parents=True, exist_ok=True)

    def earlier(self) -> list[Step]:
        """What stages that do not run now have left in the report of the same machine."""
        try:
            report = json.loads((self.out / "report.json").read_text())
        except (OSError, ValueError):
            return []
        if (report.get("machine"), report.get("dry_run")) != (self.machine, self.dry):
            return []
        return [Step(**step) for step in report["steps"] if step.get("stage") not in (None, *self.stages, "build")]

    def do(self, name: str, *command: str | Path, seconds: float, **environment: str) -> Step:
        """One command, stopped with all that it started where its time is up. What it prints is in logs/ at once."""
        start, text = time.monotonic(), " ".join(map(str, command))
        step = Step(self.stage, name, f"python {text}")
        with self.lock:
            self.steps.append(step)
            self.report()
        path = self.out / "logs" / f"{slug(self.stage)}_{slug(name)}.log"
        with path.open("w") as log:  # no pipe: what was left running would keep it open
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
            said = ""
            self.running.add(process)
            try:
                process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                said = f"\nstopped after {time.monotonic() - start:.0f} s"
            finally:
                stop(process)
                process.wait()
                self.running.discard(process)
        output = path.read_text(errors="replace") + said
        step.ok, step.seconds = process.returncode == 0, round(time.monotonic() - start, 1)
        step.output = output[-6000:]
        step.summary = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        self.report()
        print(f"{'passed' if step.ok else 'FAILED':6} {step.seconds:6.1f} s  {name}: {step.summary}", flush=True)
        return step

    def stop(self, *_: object) -> None:
        """When the machine is taken away: everything that was started ends too."""
        for process in list(self.running):
            stop(process)
        sys.exit("stopped")

    def test(self, name: str, arguments: list[str], seconds: float, **environment: str) -> None:
        """Tests that would begin after ``seconds`` are skipped, and say so; one that does not end is stopped later."""
        page = self.out / "logs" / f"{slug(self.stage)}_{slug(name)}.xml"
        environment |= {"LSTM_FUSED_TEST_UNTIL": str(time.time() + seconds)}
        step = self.do(
            name, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--junitxml={page}", *arguments,
            seconds=seconds + GRACE, **environment,
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
        self.report()

    def everything(self) -> None:
        self.stage = "build"
        if not self.build():
            return
        for stage in self.stages:
            self.stage = stage
            getattr(self, slug(stage))()

    def seconds(self) -> float:
        return 3600.0 if self.dry else LIMITS[self.stage]

    def build(self) -> bool:
        if self.dry:
            emulated = self.do("compile the kernels for the CPU", "tests/cuda/emulation.py", seconds=self.seconds())
            self.emulated = {"LSTM_FUSED_EMULATED": emulated.summary}
            return emulated.ok
        # Into a separate folder, independent of this Python's packages and their permissions.
        stamp, state = INSTALLED / "state", self.built_from()
        if not (stamp.exists() and stamp.read_text() == state):
            install = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--upgrade")
            offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "LSTM_FUSED_CUDA": "1"}
            step = self.do("build", *install, "--target", INSTALLED, ".", seconds=self.seconds(), **offline)
            if not step.ok:
                return False
            stamp.write_text(state)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INSTALLED), os.environ.get("PYTHONPATH")]))
        return True

    def built_from(self) -> str:
        state = hashlib.sha256(repr(sorted(self.machine.items())).encode())
        for folder in ("csrc", "src", "build_backend"):
            for path in sorted((ROOT / folder).rglob("*")):
                if path.suffix in (".h", ".cpp", ".cu", ".py"):
                    state.update(path.read_bytes())
        for name in ("setup.py", "pyproject.toml"):
            state.update((ROOT / name).read_bytes())
        return state.hexdigest()

    def first_light(self) -> None:
        environment = self.emulated if self.dry else NO_CUDNN
        self.test("a case of every kernel and dtype", FIRST_LIGHT, self.seconds(), **environment)
        self.benchmark("first_light", "--first-light")

    def correctness(self) -> None:
        if self.dry:
            name = "build the CUDA module for three architectures"
            self.do(name, "tests/cuda/build_module.py", seconds=self.seconds())
            arguments = [GPU_TESTS, "-k", "not sanitizer and not first_light"]
            self.test("what an emulated GPU can show", arguments, self.seconds(), **self.emulated)
            return
        with ThreadPoolExecutor(len(TESTS)) as pool:
            list(pool.map(lambda part: self.test(part[0], part[1][0], self.seconds(), **part[1][1]), TESTS.items()))

    def sanitizer(self) -> None:
        environment = self.emulated if self.dry else CUDA
        self.test("compute-sanitizer", [GPU_TESTS, "-k", "sanitizer"], self.seconds(), **environment)

    def benchmark(self, folder: str = "", *arguments: str) -> None:
        """Alone, so that nothing else is timed."""
        kind = ["--dry-run"] if self.dry else ["--seconds", f"{self.seconds():.0f}"]
        command = ("-m", "benchmarks.gpu", "--out", self.out / folder, *arguments, *kind)
        self.do("benchmark", *command, seconds=self.seconds() + GRACE)

    def report(self) -> None:
        with self.lock:
            self.write_report()

    def write_report(self) -> None:
        order = ("build", *STAGES)
        steps = sorted(self.steps, key=lambda step: order.index(step.stage))
        written = {"machine": self.machine, "dry_run": self.dry, "steps": [asdict(step) for step in steps]}
        replace_text(self.out / "report.json", json.dumps(written, indent=2) + "\n")
        lines = ["# Everything on a GPU", ""]
        if self.dry:
            lines += ["**A dry run without a GPU: it shows that the pieces run, and nothing about a GPU.**", ""]
        lines += [*(f"- {key}: {value}" for key, value in self.machine.items()), ""]
        lines += ["| stage | step | | seconds | |", "|---|---|---|---|---|"]
        lines += [f"| {s.stage} | {s.name} | {s.verdict} | {s.seconds} | {s.summary} |" for s in steps]
        for folder in ("", "first_light/"):
            if (self.out / folder / "gpu.md").exists():
                lines += ["", f"The figures: [{folder}gpu.md]({folder}gpu.md), [{folder}gpu.csv]({folder}gpu.csv)."]
            if (self.out / folder / "gpu.svg").exists():
                lines += ["", f"![Speed of a training step]({folder}gpu.svg)"]
        for step in steps:
            if not step.ok:
                lines += ["", f"## Failed: {step.name}", "", f"`{step.command}`", ""]
                lines += [*(f"- {name}" for name in step.failed), "", "```", *step.output.splitlines()[-60:], "```"]
        skipped = {name: why for step in steps for name, why in step.skipped.items()}
        if skipped:
            lines += ["", "## Skipped", "", *(f"- {name}: {why}" for name, why in skipped.items())]
        replace_text(self.out / "report.md", "\n".join(lines) + "\n")


def stop(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # it, or what it started, may be running still
        os.killpg(process.pid, signal.SIGKILL)


def slug(name: str) -> str:
    return re.sub(r"[^a-z]+", "_", name.lower())


def replace_text(path: Path, text: str) -> None:
    """The old text or the new one, whenever this is interrupted."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


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
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this; may be given again (default: all)")
    parser.add_argument("--out", type=Path, help="folder of the report (default: benchmarks/results/gpu)")
    chosen = parser.parse_args()
    import torch

    if not chosen.dry_run and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no GPU here; --dry-run does what can be done without one")
    out = chosen.out or ROOT / ("build/gpu_dry_run" if chosen.dry_run else "benchmarks/results/gpu")
    out.mkdir(parents=True, exist_ok=True)
    stages = tuple(stage for stage in STAGES if stage in (chosen.stage or STAGES))
    for stage, folder in (("first-light", out / "first_light"), ("benchmark", out)):
        if stage in stages:  # figures of an earlier run
            for name in ("gpu.csv", "gpu.md", "gpu.svg"):
                (folder / name).unlink(missing_ok=True)
    run = Run(chosen.dry_run, out.resolve(), facts(), stages)
    signal.signal(signal.SIGTERM, run.stop)
    run.everything()
    print(f"written: {out}/report.md")
    return 0 if all(step.ok for step in run.steps if step.stage in (*stages, "build")) else 1


if __name__ == "__main__":
    sys.exit(main())
