"""CUDA tensors: whether this build has kernels for them, and which backend a layer runs on, our kernels or cuDNN.

The rule, ``backend``: in eager mode cuDNN takes a layer that ``nn.LSTM`` could have computed too: no layer norm, no
mask, no zoneout, no peephole, no open gate, no projection, no recomputation, no lengths, no resets, forward direction.
Our step kernels, one matrix product and one kernel a step, take everything else, and everything that is compiled,
exported or under ``torch.func``.

cuDNN is not one algorithm. torch lets it keep the weights on the chip for a whole sequence ("persistent") for up to 128
hidden units, and in float16 where H and I are multiples of 128, H at most 1024 and B a multiple of 8 and at most 128,
on large GPUs. In float32 and bfloat16 with more than 128 units, and in float64, it runs a product and a kernel a step,
as ours do (its forward pass alone is persistent up to 192 units). bfloat16 goes to cuDNN 9.13 and later only: with
another one ``nn.LSTM`` runs one cell after the other, and such a layer stays here.

``auto``, the default, gives cuDNN every layer that it computes, so that a plain layer takes the time that ``nn.LSTM``
takes; that one of ours is faster somewhere has not been measured. ``LSTM_FUSED_CUDNN=0`` (or ``use_cudnn("0")``) keeps
all layers here, which double backward needs: cuDNN has none. ``1`` is what ``auto`` does now, and will stay so.
``last_backend`` tells what ran.

TF32: torch allows it to cuDNN (``torch.backends.cudnn.allow_tf32``) and not to the products of our kernels
(``torch.backends.cuda.matmul.allow_tf32``). So with torch's defaults a plain float32 layer multiplies numbers with
10 bits of fraction, as ``nn.LSTM`` does, and one with an option multiplies float32. Set both alike to compare the two.

Half precision: products round their results to the tensors' type, and sum in float32 before, unless
``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`` (or ``allow_fp16_...``) lets cuBLAS add parts of
them in half precision; that of the weights' gradients, over all steps and sequences, is in float32 always.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._schema import PLAIN_TENSORS

if TYPE_CHECKING:
    from ._types import Tensors

_OPS = (
    "lstm_layer", "lstm_layer_inference", "lstm_layer_backward",
    "lstm_cell", "lstm_cell_inference", "lstm_cell_plain", "lstm_cell_backward",
)  # fmt: skip

try:
    from . import _cuda  # noqa: F401  registers torch.ops.lstm_fused for CUDA

    missing: str | None = None
except ImportError as _error:
    missing = str(_error)


def unavailable() -> str | None:
    """Why CUDA tensors cannot be computed with, and how to mend it; ``None`` when they can."""
    if missing is None:
        return None
    return (
        f"lstm_fused was built without CUDA kernels ({missing}); install it again where there are a CUDA build of "
        "torch and the nvcc of the same CUDA major version: "
        "LSTM_FUSED_CUDA=1 pip install --no-cache-dir --force-reinstall --no-deps ."
    )


def _refuse(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError(f"input must be on the CPU, got a CUDA tensor: {unavailable()}")


if missing is not None:
    _library = torch.library.Library("lstm_fused", "IMPL")  # kept: what it registers goes with it
    for _name in _OPS:
        _library.impl(_name, _refuse, "CUDA")

_NO_MEMORY = ("out of memory", "torch could not allocate")  # before torch 2.13 our ops are not told the reason


def out_of_memory_as_torch(op: Callable[..., Any]) -> Callable[..., Any]:
    """``op``, whose want of the GPU's memory is torch's own exception: training loops catch that."""

    def call(*tensors: Any, **options: Any) -> Any:
        try:
            return op(*tensors, **options)
        except RuntimeError as error:
            on_gpu = any(isinstance(x, Tensor) and x.is_cuda for x in tensors)
            if on_gpu and type(error) is RuntimeError and any(part in str(error) for part in _NO_MEMORY):
                raise torch.OutOfMemoryError(str(error)) from None
            raise

    return call


_MODES = ("auto", "0", "1")
_mode: str | None = None  # what use_cudnn set, which has its way over the environment


def use_cudnn(mode: str | None) -> None:
    """ "auto", "0" (never) or "1" (wherever possible); ``None``: what LSTM_FUSED_CUDNN says.

    Raises:
        ValueError: mode is something else. A wrong ``LSTM_FUSED_CUDNN`` raises it in a layer's call.
    """
    global _mode
    if mode is not None and mode not in _MODES:
        raise ValueError(f"mode must be 'auto', '0', '1' or None, got {mode!r}")
    _mode = mode


def _cudnn_mode() -> str:
    mode = os.environ.get("LSTM_FUSED_CUDNN", "auto") if _mode is None else _mode
    if mode not in _MODES:
        raise ValueError(f"LSTM_FUSED_CUDNN must be auto, 0 or 1, got '{mode}'")
    return mode


# The tensors of a layer (by their place among the arguments of ops.lstm_layer) and the options that cuDNN knows.
_HARMLESS = {"variational", "training", "eps", "stream"}  # without a rate or a norm they change nothing


def backend(device: torch.device | str, tensors: Tensors, options: dict[str, Any]) -> str:
    """What a call of ``ops.lstm_layer`` runs on in eager mode: "cpu", "steps" (our CUDA kernels), "cudnn" or
    "cudnn-persistent" (a training step with the weights on the chip).

    ``tensors``: its tensor arguments in their order, the seed last; ``options``: its other arguments that are given.
    """
    if torch.device(device).type != "cuda":
        return "cpu"
    seed_too = len(tensors) - 1
    plain = all(x is None for x in tensors[len(PLAIN_TENSORS) : seed_too])
    plain = plain and all(not value for name, value in options.items() if name not in _HARMLESS)
    if _cudnn_mode() == "0" or not (plain and _well_formed(*tensors[:3], *tensors[3 : len(PLAIN_TENSORS)])):
        return "steps"
    input, h_0 = tensors[:2]
    if not _cudnn_computes(input.dtype):
        return "steps"
    return "cudnn-persistent" if _is_persistent(device, input, h_0) else "cudnn"


_CUDNN_WITH_BFLOAT16 = 91300


def _cudnn_computes(dtype: torch.dtype) -> bool:
    cudnn = torch.backends.cudnn
    if not (cudnn.enabled and cudnn.is_available()):
        return False
    return dtype != torch.bfloat16 or (cudnn.version() or 0) >= _CUDNN_WITH_BFLOAT16


def _is_persistent(device: torch.device | str, input: Tensor, h_0: Tensor) -> bool:
    """Whether torch asks cuDNN for a persistent algorithm, forward and backward."""
    I, (B, H) = input.shape[2], h_0.shape  # noqa: E741
    if input.dtype != torch.float64 and H <= 128:
        return True
    if input.dtype != torch.float16 or H % 128 or I % 128 or H > 1024 or B % 8 or B > 128:
        return False
    gpu = torch.cuda.get_device_properties(device)
    return gpu.major >= 8 and gpu.minor != 6 and gpu.multi_processor_count >= 98


def _well_formed(input: Tensor, h_0: Tensor, c_0: Tensor, *weights: Tensor | None) -> bool:
    """Whether there is something to compute, from tensors that fit; of those that do not, our op says which it is."""
    if input.dim() != 3 or h_0.dim() != 2 or not input.numel():
        return False
    I, (B, H) = input.shape[2], h_0.shape  # noqa: E741
    shapes = ((B, H), (B, H), (4 * H, I), (4 * H, H), (4 * H,), (4 * H,))
    given = [(x, shape) for x, shape in zip((h_0, c_0, *weights), shapes, strict=True) if x is not None]
    fits = input.shape[1] == B and len(given) != len(shapes) - 1  # both biases or none
    return fits and all(x.shape == shape and x.dtype == input.dtype and x.device == input.device for x, shape in given)


_last_backend: str | None = None


def takes_cudnn(tensors: Tensors, options: dict[str, Any]) -> bool:
    """Whether this call of a layer with CUDA tensors goes to cuDNN; :func:`last_backend` will tell.

    None does without our kernels: that a layer works until an option is switched on would be no help.
    """
    global _last_backend
    _last_backend = backend(tensors[0].device, tensors, options) if missing is None else None
    return _last_backend in ("cudnn", "cudnn-persistent")


def last_backend() -> str | None:
    """What the last layer that ran on a GPU in eager mode ran on, as :func:`backend`; ``None``: no such layer ran yet.

    What is compiled or exported runs on "steps".
    """
    return _last_backend


# torch would have the weights in one block, as nn.LSTM keeps them; ours are copied into one, which is little beside a
# sequence's time. Only the warning of this module's call is meant: it would tell of a method that changes nothing here.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk", module=__name__)


def cudnn_layer(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """``(output, h_n, c_n)`` of a plain layer, by torch's own LSTM."""
    input, h_0, c_0 = tensors[:3]
    weights = [x for x in tensors[3 : len(PLAIN_TENSORS)] if x is not None]
    state = (h_0.unsqueeze(0), c_0.unsqueeze(0))
    with torch.autocast(input.device.type, enabled=False):  # whose rule our ops have followed already
        result = torch.lstm(input, state, weights, len(weights) == 4, 1, 0.0, True, False, False)
    return result[0], result[1].squeeze(0), result[2].squeeze(0)
