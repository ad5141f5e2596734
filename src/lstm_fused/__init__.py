"""An LSTM with layer norm, recurrent dropout and zoneout inside one fused kernel; a drop-in ``torch.nn.LSTM``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _flops, _vmap, convert, cuda, ops, reference  # noqa: F401  _flops and _vmap register what they have
from .drop_in import LSTM, LSTMCell
from .lstm import FusedLSTM, FusedLSTMCell
from .trace import Trace

if TYPE_CHECKING:
    from ._C import BuildInfo

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


def build_info() -> BuildInfo:
    """How the kernels were built and which ones run here: versions, compiler, instruction sets, CUDA or why not."""
    try:
        from ._C import build_info
    except ImportError:  # a wheel for every Python, or a build for another one
        from ._ops import build_info
    return build_info()
