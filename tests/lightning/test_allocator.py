"""Memory that is freed is kept for the next step."""

import os
import platform
import subprocess
import sys

import pytest
from testing import PATIENCE

# Page faults of writing to 64 MB ten times, each freed before the next is allocated: 16,384 pages of 4 KB each.
FAULTS = """
import ctypes, resource
from lightning_modules.allocator import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def write():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
kept = keep_freed_memory()
write()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    write()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
@pytest.mark.parametrize("given", [{}, {"MALLOC_ARENA_MAX": "4"}])
def test_freed_memory_is_kept_unless_the_environment_says_how(given: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC"))}
    result = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env=environment | given,
    )
    kept, faults = map(int, result.stdout.split())
    assert kept == (not given)
    assert (faults < 100) == (not given), faults
