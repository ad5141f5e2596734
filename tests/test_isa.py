"""csrc/cpu/isa.cpp: each instruction set of this build runs and agrees with the others; old memory changes no bit."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import isa_worker
import pytest
import torch
from isa_worker import OLD_MEMORY
from testing import CPU_ISAS, ISAS, assert_close, assert_same_bits

from lstm_fused import build_info

BUILT = build_info()["isas"]
UNKNOWN = "mmx"


@pytest.fixture(scope="module")
def expected() -> dict:
    return isa_worker.results()


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    """A folder with what each process found, all of them started by one."""
    folder = tmp_path_factory.mktemp("answers")
    names = [*(isa for isa in CPU_ISAS if isa in BUILT), *[OLD_MEMORY] * (platform.libc_ver()[0] == "glibc"), UNKNOWN]
    result = subprocess.run(
        [sys.executable, isa_worker.__file__, str(folder), *names],
        env=os.environ | {"LSTM_FUSED_ISA": build_info()["isa"], "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_set(isa, expected, answers):
    if isa not in CPU_ISAS:
        pytest.skip(f"this CPU has no {isa}")
    if isa not in BUILT:
        pytest.skip(f"this build has no {isa} kernels, its compiler could not make them")
    answer = torch.load(answers / f"{isa}.pt")
    assert answer["isa"] == isa
    assert_close(answer["results"], expected)


def test_the_best_instruction_set_is_used():
    wanted = os.environ.get("LSTM_FUSED_ISA") or [isa for isa in CPU_ISAS if isa in BUILT][-1]
    assert build_info()["isa"] == wanted


def test_unknown_instruction_set(answers):
    """One sentence, at the first use of the kernels and from the record of the build."""
    usable = ", ".join(isa for isa in CPU_ISAS if isa in BUILT)
    sentence = f"LSTM_FUSED_ISA is 'mmx', but the instruction sets that this build and this CPU share are: {usable}"
    errors = torch.load(answers / f"{UNKNOWN}.pt")["errors"]
    assert [error.splitlines()[0] for error in errors] == [sentence] * 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can fill the memory it gives")
def test_old_memory_does_not_matter(expected, answers):
    """Scratch memory too starts as huge numbers here: the same bits."""
    answer = torch.load(answers / f"{OLD_MEMORY}.pt")
    for name, results in expected.items():
        assert_same_bits(answer["results"][name], results)
