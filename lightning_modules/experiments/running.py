"""Runs of a plan as processes: several at a time, one display, an orderly end."""

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TextIO

from lightning_modules.experiments.plan import ERROR, Run
from lightning_modules.runs import read_summary

POLL = 0.1  # seconds
PROGRAM = (sys.executable, "-m", "lightning_modules")  # what lstm-fused is
PROMPT = "$ "  # before a command in a log
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Runner:
    """Runs what is not finished, ``jobs`` at a time.

    A failed run is reported, and the others continue; but if the first ones fail and none has ever succeeded, no more
    are started. At Ctrl-C or SIGTERM every process is signaled to end after its batch and keeps its results; a second
    signal ends them at once. If this process ends in any other way, theirs end too (on Linux).

    Args:
        runs: of a plan.
        jobs: processes at a time.
        needless: says of a run, when its turn comes, why it need not be made; ``None`` if it must be.
        out: where the display goes: a line for every run that begins and ends, in a terminal also one that says how
            far all of them are.

    Attributes:
        failed: the runs that have ended with an error, each with its last line.
        stopped_by: the signal that has ended all, if one has.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        jobs: int = 1,
        needless: Callable[[Run], str | None] = lambda run: None,
        out: TextIO | None = None,
    ) -> None:
        self.runs, self.jobs, self.needless, self.out = runs, jobs, needless, out or sys.stdout
        self.failed: dict[str, str] = {}
        self.stopped_by: int | None = None
        self._running: dict[Run, subprocess.Popen[bytes]] = {}
        self._done = self._succeeded = 0
        self._begun: dict[Run, float] = {}
        self._seconds: list[float] = []
        self._shown = ""

    def run(self) -> None:
        waiting = [run for run in self.runs if run.state != "finished"]
        self._done = self._succeeded = len(self.runs) - len(waiting)
        if self._done:
            self._say(f"{self._done} of {len(self.runs)} runs are finished already")
        with self._signals():
            while self._running or (waiting and not self._stops()):
                while waiting and len(self._running) < self.jobs and not self._stops():
                    run = waiting.pop(0)
                    if run.state == "finished":  # by another process, in the meantime
                        self._done += 1
                        self._succeeded += 1
                        self._say(f"[{self._done}/{len(self.runs)}] {run.name} is finished already")
                    elif (reason := self.needless(run)) is not None:
                        self._done += 1
                        self._say(f"[{self._done}/{len(self.runs)}] {run.name} is not needed: {reason}")
                    else:
                        self._begin(run)
                time.sleep(POLL)
                for run, process in list(self._running.items()):
                    if process.poll() is not None:
                        self._end(run, process.returncode)
                self._show()
        self._clear()

    def _stops(self) -> bool:
        return self.stopped_by is not None or bool(self.failed and not self._succeeded)

    # Processes ------------------------------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        command = run.command()
        self._say(f"{run.name} {'goes on' if '--ckpt_path' in command else 'begins'}")
        run.log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // self.jobs)))
        with open(run.log, "a", encoding="utf-8") as log:
            print(f"{PROMPT}{shlex.join(command)}", file=log, flush=True)
            # Its own session: Ctrl-C in the terminal reaches only this process, which signals the others.
            self._running[run] = subprocess.Popen(
                [*PROGRAM, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        if self.stopped_by is not None:  # a signal arrived while the process was starting and not yet listed as running
            self._running[run].send_signal(signal.SIGTERM)
        self._begun[run] = time.monotonic()

    def _end(self, run: Run, code: int) -> None:
        del self._running[run]
        folder = run.result()
        if folder is None and self.stopped_by is not None:
            self._say(f"{run.name} stopped")
            return
        self._done += 1
        if folder is None:
            by_signal = f"a signal ended it: {signal.strsignal(-code)}" if code < 0 else None  # it could not say so
            reason = by_signal or last_line(run) or f"it ended with the code {code}"
            if run.failure is None:  # which the report looks for
                with open(run.log, "a", encoding="utf-8") as log:
                    print(f"{ERROR}{reason}", file=log)
            self.failed[run.name] = reason
            self._say(f"[{self._done}/{len(self.runs)}] {run.name} failed: {self.failed[run.name]}")
            return
        self._succeeded += 1
        self._seconds.append(time.monotonic() - self._begun[run])
        self._say(f"[{self._done}/{len(self.runs)}] {run.name}: {describe_result(read_summary(folder))}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(signum: int, frame: Any) -> None:
            first, self.stopped_by = self.stopped_by is None, signum
            for process in self._running.values():
                process.send_signal(signal.SIGTERM if first else signal.SIGKILL)
            if first and self._running:
                self._say("Stopping when their batches are done; once more stops at once.")

        previous = {number: signal.signal(number, stop) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for process in self._running.values():  # after an error of this process
                process.terminate()

    # The display ----------------------------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        self._clear()
        print(line, file=self.out, flush=True)

    def _show(self) -> None:
        """In a terminal, one line that is written over and over."""
        if not self.out.isatty():
            return
        running = ", ".join(f"{run.name} {place(run)}".strip() for run in self._running)
        text = f"{self._done} of {len(self.runs)} runs done; {running}"
        if self._seconds:
            left = (len(self.runs) - self._done) * sum(self._seconds) / len(self._seconds) / self.jobs
            text = f"about {timedelta(seconds=round(left))} left; {text}"
        text = text[: shutil.get_terminal_size().columns - 1]
        if text != self._shown:
            self._clear()
            print(text, end="", file=self.out, flush=True)
            self._shown = text

    def _clear(self) -> None:
        if self._shown:
            print(f"\r{' ' * len(self._shown)}\r", end="", file=self.out)
            self._shown = ""


def usable_cpus() -> int:
    """The CPUs that this process may use: of a machine that a scheduler shares out, not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """SIGTERM when the parent process ends (prctl's PR_SET_PDEATHSIG), were it by SIGKILL."""
    libc: Any = _libc
    libc.prctl(1, signal.SIGTERM)


def describe_result(summary: dict[str, Any]) -> str:
    """The figure that a run was judged by, where it was best, and how long it took."""
    best, monitor = summary.get("best"), summary.get("monitor")
    figure = "nothing was validated"
    if best is not None:
        figure = f"{monitor} {best[monitor]:.4f} in epoch {best['epoch']}" if monitor in best else "done"
    return f"{figure}, {summary['seconds']:.0f} s"


def place(run: Run) -> str:
    """The progress of a run: the beginning of the last line about an epoch."""
    found = re.findall(r"^(epoch \d+(?:, step \d+)?):", run.end_of_log().rpartition(f"\n{PROMPT}")[2], re.MULTILINE)
    return found[-1] if found else ""


def last_line(run: Run) -> str:
    lines = [line.strip() for line in run.end_of_log().splitlines() if line.strip()]
    return "" if not lines or lines[-1].startswith(PROMPT) else lines[-1].removeprefix(ERROR)
