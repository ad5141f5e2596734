"""Files that are there whole, or as they were before."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """The path of a file to write, which takes the place of ``path`` in one step when it is whole.

    Whoever is stopped while writing, or finds the disk full, leaves the file that was there before.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")  # beside it: a rename between disks is a copy
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
