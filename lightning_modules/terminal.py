"""A terminal and a locale that end no run.

What is printed is for whoever looks; a run is its files. A character that the terminal's encoding lacks, a reader that
has gone (``lstm-fused fit ... | head``), a full disk behind a log, a stream that was closed from the beginning: none of
them is a reason to lose hours of training.
"""

import io
import locale
import os
import select
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Descriptor(io.FileIO):
    """Writes to a file descriptor until that fails, and from then on nowhere.

    Attributes:
        failure: the error that ended the writing.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # it must not block, as another program has left it
                select.select([], [self], [])
            return written
        except OSError as error:
            self.failure = error
            # The descriptor itself, since the processes started from here and C code write to it too.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return int(data.nbytes)


class Output:
    """What became of what was printed, while :func:`lenient_output` lasts."""

    def __init__(self) -> None:
        self.descriptors: dict[str, _Descriptor] = {}

    def failure(self) -> OSError | None:
        """Why standard output is not whole; ``None`` where it is, or where its reader has had enough."""
        descriptor = self.descriptors.get("stdout")
        sys.stdout.flush()
        failure = None if descriptor is None else descriptor.failure
        return None if isinstance(failure, BrokenPipeError) else failure


@contextmanager
def lenient_output() -> Iterator[Output]:
    """While it lasts, ``sys.stdout`` and ``sys.stderr`` raise nothing, and show what they cannot encode as ``\\xe4``.

    Streams without a file stay as they are, such as a notebook's (which reports the descriptor of the terminal that the
    notebook was started from).
    """
    for number in range(3):  # or the next file opened, a checkpoint perhaps, would be the standard output of C code
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free, this one
    output, before, now = Output(), (sys.stdout, sys.stderr), {}
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)  # None, where Python found it closed
        if not isinstance(stream, (io.TextIOWrapper, type(None))):
            continue
        try:
            descriptor = _Descriptor(number if stream is None else stream.fileno())
        except (OSError, ValueError):
            continue
        if stream is not None:
            with suppress(OSError):
                stream.flush()
        now[name] = io.TextIOWrapper(
            io.BufferedWriter(descriptor),
            encoding=getattr(stream, "encoding", None) or "utf-8",
            errors="backslashreplace",
            line_buffering=True,  # a log is read while the run goes on
            write_through=getattr(stream, "write_through", False),
        )
        output.descriptors[name] = descriptor
    for name, stream in now.items():
        setattr(sys, name, stream)
    try:
        yield output
    finally:
        for stream in now.values():
            stream.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def utf8_files() -> Iterator[None]:
    """While it lasts, files that are opened without naming an encoding are UTF-8, whatever the locale.

    (The configs are, which jsonargparse reads and writes, and Lightning's tables.) The terminal's encoding and that of
    the names of files stay what they are.
    """
    before = locale.setlocale(locale.LC_CTYPE)
    if locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        for name in ("C.UTF-8", "C.utf8", "en_US.UTF-8", "UTF-8"):  # as they are called on Linux, and elsewhere
            with suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                break
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


@contextmanager
def hangup_terminates() -> Iterator[None]:
    """While it lasts, a terminal that is closed ends a run as SIGTERM does: where it can go on exactly.

    Under nohup, where SIGHUP is ignored, it stays so.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def check_text(names: Iterable[str], what: str) -> None:
    """Raises ValueError for a name whose bytes are no text in the locale: no config and no table could hold it."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{what} must be text in {sys.getfilesystemencoding()}, this locale's encoding, got {name!a}: set "
                f"LC_ALL=C.UTF-8, or rename the file"
            ) from None
