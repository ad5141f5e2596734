"""The command ``lstm-fused``: its subcommands and its exit codes.

Nothing heavy is imported until it is known that it is needed: ``lstm-fused --help`` answers at once, and without the
extra ``train``. Every failure is one sentence on stderr and an exit code above 0; ``--debug`` shows the traceback.
"""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lightning_modules.experiments import VERBS as EXPERIMENTS
from lightning_modules.terminal import check_text, hangup_terminates, lenient_output, utf8_files

USAGE = """\
usage: lstm-fused COMMAND ...

  fit         train a model, then test the best weights
                lstm-fused fit -c char_lm --data.path my.txt --trainer.max_epochs 20
  validate    figures of a checkpoint on the valid data
  test        figures of a checkpoint on the test data
                lstm-fused test -c runs/char_lm/version_0 --ckpt_path best
  predict     what a model says of new data (--data.predict) or of the test data, as files in the run's folder
  sample      text from a language model, a piece from a model of music
                lstm-fused sample runs/char_lm/version_0 --prompt "The " --temperature 0.8

  ablate      what each regularizer of a config gives: runs over variants and seeds, tables, pictures, findings
                lstm-fused ablate -c sentiment --seeds 5
  compare     LSTM, layer-normed LSTM, GRU and RNN, at the same size and at equal parameters
  memory      over how many steps LSTM, GRU and RNN remember: lstm-fused memory -c remember
  open-gates  what each gate of an LSTM is good for, seen by holding it open

  diagnose    whether a run is overfitted, underfitted, unstable or fine, from which epoch, and what to change
                lstm-fused diagnose runs/char_lm/version_0
  weights     histograms of the weights of runs, what dropout drops and layer norm does
  gates       what the gates of a run's LSTM do on its data: heatmaps, units that follow a token
  gradients   how the gradient fades over distance, by cell and forget bias, or in a run's layer
  export      a run's model for other programs: ONNX, or a program of torch.export

-c takes a bundled config by its bare name, a YAML file or a run's folder; several are laid over one another,
such as -c char_lm -c wandb. 'lstm-fused COMMAND --help' lists a command's options.
--debug (or LSTM_FUSED_DEBUG=1) shows where an error comes from. --version, --help."""

# The module of each command, whose ``run(command, arguments)`` gives the exit code.
MODULES = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), "trainer_command"),
    "sample": "sample_command",
    **dict.fromkeys(EXPERIMENTS, "experiments.command"),
    **{name: f"inspections.{name}" for name in ("diagnose", "weights", "gates", "gradients", "export")},
}
# The classes of errors that are made for a user to read.
TOLD = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
INTERRUPTED, TERMINATED = 130, 143  # the shell's exit codes for SIGINT and SIGTERM: 128 + the signal's number


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        arguments: as on the command line; ``None`` takes ``sys.argv``.
    """
    if arguments is None:  # a process of its own: its pictures are files, whatever backend the environment names
        os.environ["MPLBACKEND"] = "agg"
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("LSTM_FUSED_DEBUG", "0") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Threads that wait do so without burning their core: on a machine that others use too, a step is several times
    # faster. OpenMP reads it when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with lenient_output() as output, utf8_files(), hangup_terminates():
        code = _end(arguments, debug)
        if code == 0 and (failure := output.failure()):
            print(f"lstm-fused: error: standard output is not whole: {failure.strerror}", file=sys.stderr)
            code = 1
    return code


def _end(arguments: list[str], debug: bool) -> int:
    """The exit code of the command, after a message if it failed."""
    try:
        check_text(arguments, "an argument")
        return _run(arguments)
    except (SystemExit, KeyboardInterrupt) as end:
        code = exit_code(end)
        if code in (INTERRUPTED, TERMINATED):
            print(f"lstm-fused: {'interrupted' if code == INTERRUPTED else 'terminated'}", file=sys.stderr)
        return code
    except Exception as error:
        if debug:
            traceback.print_exc()
        if debug or is_first_to_fail():
            print(f"lstm-fused: error: {sentence(error)}", file=sys.stderr)
        return 1


def is_first_to_fail() -> bool:
    """Whether no other of the processes that train together has failed before this one.

    What ends one of them ends all: each finds the same fault, or misses the one that has found it.
    """
    # Until torchrun's have met, all of them do the same. Those that Lightning starts come after a first that has done
    # it without a fault; when one of them fails, Lightning kills all of them without a word.

    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" not in os.environ
    try:
        failed: int = distributed.distributed_c10d._get_default_store().add("lstm_fused: failed", 1)
        return failed == 1
    except RuntimeError:  # process 0, which has the store, is gone
        return False


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    command = arguments[0]
    if command == "--version":
        from importlib.metadata import version

        print(f"lstm-fused {version('lstm-fused')}")
        return 0
    if command not in MODULES:
        *names, last = MODULES
        raise ValueError(f"there is no command '{command}'; want {', '.join(names)} or {last}")
    try:
        os.getcwd()
    except FileNotFoundError:  # torch's own libraries would end the process
        raise FileNotFoundError("the current folder has been removed: go to one that is there") from None
    try:
        run = import_module(f"lightning_modules.{MODULES[command]}").run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "lightning_modules", "lstm_fused"):
            raise
        raise ModuleNotFoundError(
            f"'lstm-fused {command}' needs the package '{package}': pip install 'lstm-fused[train]'"
        ) from error
    status: int = run(command, arguments[1:])
    return status


def exit_code(end: Any) -> int:
    """Lightning turns Ctrl-C into exit code 1 and SIGTERM into 0: the codes that a shell expects for them instead."""
    if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
        return INTERRUPTED
    if type(end).__name__ == "SIGTERMException":
        return TERMINATED
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
        return 1
    return end.code or 0


def sentence(error: Exception) -> str:
    """What went wrong, in one line; the kind of error is named where it was not made for the user to read."""
    text = " ".join(str(error).split()) or "no message"
    # What a class says of its arguments comes wrapped in everything else that jsonargparse has tried.
    for wrapping in (r"Problem with given class_path '[^']*': ", r"Subtypes: .*? Errors: - "):
        if said := re.search(wrapping + r"(.+?)(?: - Expected a <|$)", text):
            return said[1]
    if isinstance(error, TOLD) or type(error).__name__ == "MisconfigurationException":
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"
