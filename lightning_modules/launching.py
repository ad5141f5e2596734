"""Strategies that start processes from this one (``ddp_spawn``, ``ddp_fork``, ``ddp_notebook``).

Lightning starts the processes of such a strategy anew for the fit and for the test, and of what they know when they end
brings back the weights alone. Here each process runs the whole command instead, as under ``ddp`` and torchrun: what the
callbacks know is there for the test, one process writes metrics.csv from beginning to end, and a signal is acted on
where the training is.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from lightning_modules.cli import TERMINATED, exit_code, sentence
from lightning_modules.terminal import hangup_terminates, lenient_output, utf8_files


class ProcessFailed(ChildProcessError):
    """What went wrong in one of the processes, in one sentence."""


def starts_processes(trainer: Trainer) -> bool:
    """Whether the trainer's strategy starts its processes from this one."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def run_in_processes(trainer: Trainer, model: LightningModule, command: Callable[[], None]) -> None:
    """Runs ``command`` in as many processes as the trainer's strategy wants, and waits for all of them.

    Args:
        trainer: one of which :func:`starts_processes` is true.
        model: what is trained; each process gets a copy of its own.
        command: can be pickled, for the start method ``spawn``.

    Raises:
        ProcessFailed: an error or a signal ended one of the processes; the others have been ended then.
        SystemExit: they were interrupted.
    """
    try:
        launcher: Any = trainer.strategy.launcher
        with _signals_passed_on(launcher):
            # The model is named beside the command since only modules among the arguments are copied: other tensors
            # that go to a spawned process share their memory with this one's.
            code = launcher.launch(_work, trainer, model, command)
    except ProcessRaisedException as error:
        raise ProcessFailed(str(error).rstrip().rpartition("\n")[2].partition(": ")[2]) from error
    except ProcessExitedException as error:
        raise ProcessFailed(f"process {error.error_index} ended by {error.signal_name or error.exit_code}") from error
    if code:
        raise SystemExit(code)


def _work(trainer: Trainer, model: LightningModule, command: Callable[[], None]) -> int:
    """What each process does; an interruption's exit code is returned, since any but 0 would have the others killed."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)  # a forked process has those of the one that waits
    trainer.strategy._launcher = None  # nothing is left to start
    with lenient_output(), utf8_files(), hangup_terminates():
        try:
            command()
        except (SystemExit, KeyboardInterrupt) as end:
            return exit_code(end)
        except Exception as error:
            raise ProcessFailed(sentence(error)) from error
    return 0


@contextmanager
def _signals_passed_on(launcher: _MultiProcessingLauncher) -> Iterator[None]:
    """While it lasts, the processes get SIGINT and SIGTERM that this one is sent, and this one waits for them."""

    def pass_on(number: int, frame: Any) -> None:
        processes: list[Any] = multiprocessing.active_children()
        if launcher.procs:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            return
        for process in processes:  # not all are there yet: nothing has begun
            process.kill()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
