"""An LSTM with layer norm, recurrent dropout and zoneout inside one fused kernel; a drop-in ``torch.nn.LSTM``."""

from __future__ import annotations

from typing import Any

from . import convert, cuda, flops, ops, reference, vmap  # noqa: F401  flops and vmap register what they have
from .drop_in import LSTM, LSTMCell
from .lstm import FusedLSTM, FusedLSTMCell
from .trace import Trace

__all__ = [
    "LSTM",
    "FusedLSTM",
    "FusedLSTMCell",
    "LSTMCell",
    "Trace",
    "build_info",
    "convert",
    "cuda",
    "ops",
    "reference",
]


def build_info() -> dict[str, Any]:
    """How the kernels were built and which ones run here: versions, compiler, instruction sets, CUDA or why not."""
    try:
        from . import _C
    except ImportError as error:
        return {"missing": f"lstm_fused._C, the record of the build, cannot be imported: {error}"}
    return _C.build_info()
