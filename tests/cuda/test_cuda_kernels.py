"""The CUDA kernels without a GPU: run by the emulator against the reference, and compiled by nvcc for real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import build_module
import emulation
import lstm_fused_build as backend
import pytest

HERE = Path(__file__).resolve().parent
OPS_TESTS = ("test_ops.py", "test_dropout.py", "test_gradcheck.py", "test_random_cases.py")


def run(*command: str | Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *command], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    return result.stdout


compiles = pytest.mark.skipif(shutil.which(emulation.CXX[0]) is None, reason=f"there is no {emulation.CXX[0]}")


@compiles
def test_small_cases():
    """In a process of their own: there the emulated kernels take the place of the CPU's. In order, and shuffled."""
    assert "passed" in run(HERE / "cases.py", emulation.build(), "--seeds", "0", "1")


@compiles
@pytest.mark.slow
def test_small_cases_under_the_address_sanitizer():
    library = emulation.build("sanitized", flags=tuple(emulation.SANITIZE))
    seeds = ("--seeds", "0", "1", "2", "3")
    assert "passed" in run(HERE / "cases.py", library, *seeds, **emulation.sanitizer_environment())


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "7"])
@pytest.mark.parametrize("file", OPS_TESTS)
def test_the_ops_tests_with_the_emulated_kernels(file, seed):
    """Every pair of options, odd sizes, odd tensors, masks, derivatives: the tests of the CPU's kernels, on these."""
    emulated = {"LSTM_FUSED_EMULATED": str(emulation.build()), "LSTM_FUSED_EMULATED_SEED": seed}
    assert "passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", HERE.parent / file, **emulated)


def test_loads_that_wait_for_each_other_are_counted():
    first, second = "LDG.E.64 R2, desc[UR4][R8.64]", "LDG.E.128.CONSTANT R4, desc[UR4][R10.64+0x8]"
    use, other, overwritten = "PRMT R12, R3, 0x7632, R3", "FADD R12, R13, R14", "IADD3 R3, R13, R14, RZ"
    assert build_module.load_groups([first, other, second, use]) == 1
    assert build_module.load_groups([first, use, second, use]) == 2
    assert build_module.load_groups([first, overwritten, use, second]) == 1


@pytest.mark.parametrize(
    "architectures",
    [build_module.ARCHITECTURES[:1], pytest.param(build_module.ARCHITECTURES, marks=pytest.mark.slow)],
    ids="+".join,
)
def test_the_module_builds(architectures):
    """With no GPU and a torch for the CPU; the kernels of the steps keep to their registers."""
    folder, reason = backend.cuda_toolkit()
    if folder is None:
        pytest.skip(f"the CUDA module was not built: {reason}")
    module, said = build_module.build(architectures)
    assert module.stat().st_size > 0
    hot = [kernel for kernel in build_module.kernels(said) if kernel.hot]
    assert {kernel.architecture for kernel in hot} == set(architectures)
    # Forward and backward; plain, layer norm, projection; vectors of 4, 2 and 1, float64 of 2 and 1. Of float32 the
    # backward layer norm has two with vectors of 2 and none of 4.
    assert len(hot) == len(architectures) * 2 * 3 * (3 * 3 + 2)
    assert [kernel for kernel in hot if kernel.spilled] == []
    if build_module.nvdisasm() is None:
        pytest.skip("built, but its instructions were not read: there is no nvdisasm")
    codes = [code for code in build_module.code_of(module) if code.name.startswith(build_module.HOT)]
    assert {code.architecture for code in codes} == set(architectures)
    assert len(codes) > len(hot)
    usual = [code for code in codes if build_module.measures_groups(code)]
    assert len(usual) >= len(architectures) * 2 * 2 * 4
    assert [code for code in usual if code.groups > build_module.MOST_GROUPS] == []
    assert [code for code in codes if code.float64 and "double" not in code.name] == []
