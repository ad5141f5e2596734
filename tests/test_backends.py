"""Every instruction set of this build really runs and agrees with the others; threads and old memory change no bit."""

import os
import subprocess
import sys
from pathlib import Path

import isa_worker
import pytest
import torch
from testing import DTYPES, EVERYTHING, assert_close, assert_same_bits, label, layer_case, run

from lstm_fused import build_info, ops

ISAS = ("baseline", "avx2", "avx512", "avx512_bf16")
# What torch finds this CPU to have.
CPU_ISAS = {"AVX2": ISAS[:2], "AVX512": ISAS[:3]}.get(torch.backends.cpu.get_cpu_capability(), ISAS[:1])
if len(CPU_ISAS) == 3 and torch.cpu._is_avx512_bf16_supported():
    CPU_ISAS = ISAS


def run_worker(path: Path, **environment: str) -> dict:
    result = subprocess.run(
        [sys.executable, isa_worker.__file__, str(path)],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return torch.load(path)


@pytest.fixture(scope="module")
def expected() -> dict:
    return isa_worker.results()


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_set(isa, expected, tmp_path):
    if isa not in CPU_ISAS:
        pytest.skip(f"this CPU has no {isa}")
    if isa not in build_info()["isas"]:
        pytest.skip(f"this build has no {isa} kernels, its compiler could not make them")
    answer = run_worker(tmp_path / "results.pt", LSTM_FUSED_ISA=isa)
    assert answer["isa"] == isa
    assert_close(answer["results"], expected)


def test_the_best_instruction_set_is_used():
    wanted = os.environ.get("LSTM_FUSED_ISA") or [isa for isa in CPU_ISAS if isa in build_info()["isas"]][-1]
    assert build_info()["isa"] == wanted


def test_unknown_instruction_set(tmp_path):
    """One sentence, when the kernels are first asked for."""
    code = "import lstm_fused, torch; lstm_fused.FusedLSTM(2, 3)(torch.ones(1, 1, 2))"
    environment = os.environ | {"LSTM_FUSED_ISA": "mmx", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "LSTM_FUSED_ISA is 'mmx', but the instruction sets that this build and this CPU share are: " in result.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc can fill the memory it gives")
def test_old_memory_does_not_matter(expected, tmp_path):
    """Scratch memory too starts as huge numbers here: the same bits."""
    answer = run_worker(tmp_path / "results.pt", MALLOC_PERTURB_="1", LSTM_FUSED_ISA=build_info()["isa"])
    for name, results in expected.items():
        assert_same_bits(answer["results"][name], results)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("on", [("initial_state",), EVERYTHING], ids=label)
@pytest.mark.parametrize(
    "sizes",
    [(12, 37, 5, 9), (40, 31, 3, 17), (3, 300, 2, 5), (20, 3, 40, 70), (2, 1, 3, 4), (11, 1, 30, 200), (6, 5, 20, 200)],
    ids=str,
)
def test_threads_do_not_change_a_bit(sizes, on, dtype):
    """The last two: so few rows and so many units that threads share those of a step."""
    tensors, options = layer_case(on, **dict(zip("TBIH", sizes, strict=True)), dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.get_num_threads() == threads
            results.append(run(ops.lstm_layer, tensors, options))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])
