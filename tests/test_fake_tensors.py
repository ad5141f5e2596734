"""Meta and fake tensors: shapes and dtypes without numbers."""

import pytest
import torch
from testing import EVERYTHING, layer_case
from torch._subclasses.fake_tensor import FakeTensorMode

from lstm_fused import ops


def test_meta_tensors():
    """Shapes without numbers."""
    tensors, options = layer_case(EVERYTHING, T=3, B=2, H=5)
    output, h_n, c_n = ops.lstm_layer(**{name: x.to("meta") for name, x in tensors.items()}, **options)
    assert output.is_meta
    assert (output.shape, h_n.shape, c_n.shape) == ((3, 2, 5), (2, 5), (2, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("T", [0, 1, 7, 9])
def test_fake_tensors_of_what_is_kept(T, steps, dtype):
    """Shapes and types are those of the tensors that the kernel makes."""
    tensors, _ = layer_case(("projection", "dropout"), T=T, B=2, H=5, dtype=dtype)
    given = {name: x.detach() for name, x in tensors.items()}
    options = {"dropout": 0.3, "recompute": steps}
    real = torch.ops.lstm_fused.lstm_layer(**given, **options)
    with FakeTensorMode() as mode:
        fake = torch.ops.lstm_fused.lstm_layer(**{name: mode.from_tensor(x) for name, x in given.items()}, **options)
    assert [(x.shape, x.dtype) for x in fake] == [(x.shape, x.dtype) for x in real]
