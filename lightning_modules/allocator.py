"""Training on a CPU without asking the system for the same memory again at every step."""

import ctypes
import os

# The numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed for the next step, and returns whether it took it.

    By itself it maps every block of over 32 MB anew and gives it back when it is freed. The activations of a training
    step are such blocks: at every step the system clears the same pages and the process faults them in, a third of the
    time of a word model's step. The price is that the process stays as large as it has been.

    Nothing is changed where there is no glibc, or where the environment says how malloc is to behave.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - musl has a mallopt too, of another meaning
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # another libc, or another system
        return False
    return all(mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28)))
