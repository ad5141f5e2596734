"""Fixtures that all tests share."""

import os
import sys
import time
from pathlib import Path

# One thread, here and in every process that a test starts: problems of test size are no faster with more, and threads
# that wait for each other are slow on a busy core. A test of threads sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded

import pytest
import testing
import torch

if "LSTM_FUSED_EMULATED" in os.environ:  # this whole run tests the CUDA kernels, see tests/cuda
    sys.path.insert(0, str(Path(__file__).parent / "cuda"))
    from emulation import Emulator

    import lstm_fused  # noqa: F401  whose CPU kernels make way

    Emulator(Path(os.environ["LSTM_FUSED_EMULATED"])).schedule(int(os.environ.get("LSTM_FUSED_EMULATED_SEED", "0")))


# These files run first, in this order, so that no worker of `make test` has a long file left at the end.
LONGEST_FILES = (
    "cuda/test_cuda_kernels.py",
    "test_compile.py",
    "test_opcheck.py",
    "lightning/test_trainer_command.py",
    "lightning/test_inspections.py",
    "kernels/test_kernels_alone.py",
    "test_gradcheck.py",
    "lightning/test_stops.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_runtest_setup() -> None:
    """`make test-gpu` has a time limit: a test that would start after it (in time.time()) is skipped."""
    if time.time() > float(os.environ.get("LSTM_FUSED_TEST_UNTIL", "inf")):
        pytest.skip("no time was left")


torch.backends.cudnn.allow_tf32 = False  # float32 is float32 on a GPU too


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=testing.DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def nothing_compiled():
    """Forget what other tests compiled, which would count towards the limit of recompilations."""
    torch.compiler.reset()


@pytest.fixture
def poison():
    """Tensors that an op allocates start as NaN, so that a value never written, or used before it is, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
