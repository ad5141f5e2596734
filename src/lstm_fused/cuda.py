"""CUDA tensors: whether this build has kernels for them, and which backend a layer runs on, our kernels or cuDNN.

The rule is in :func:`backend`. In eager mode cuDNN runs a layer that ``nn.LSTM`` could compute too: no layer norm,
mask, zoneout, peephole, open gate, projection, recomputation, lengths or resets, and the forward direction. Our step
kernels (per step one matrix product and one kernel) run all other layers, and all calls that are compiled, exported or
under ``torch.func``.

cuDNN has several algorithms. torch lets it keep the weights on the chip for a whole sequence ("persistent") for up to
128 hidden units, and in float16 on large GPUs if H and I are multiples of 128, H is at most 1024 and B is a multiple of
8 up to 128. In float32 and bfloat16 with more than 128 units, and in float64, it runs a product and a kernel per step,
as our kernels do; its forward pass alone is persistent up to 192 units. bfloat16 needs cuDNN 9.13 or later: with an
older one ``nn.LSTM`` runs one cell after the other, and our kernels run such a layer.

``auto``, the default, uses cuDNN for every layer that it can compute, so that a layer with default options takes the
time of ``nn.LSTM``; no case has been measured where our kernels are faster. ``LSTM_FUSED_CUDNN=0`` (or
``use_cudnn("0")``) uses our kernels for all layers, which double backward needs, because cuDNN has none. ``1`` is the
same as ``auto`` now, and will stay so. ``last_backend`` returns what the last layer ran on.

TF32: torch allows it in cuDNN (``torch.backends.cudnn.allow_tf32``) but not in the products of our kernels
(``torch.backends.cuda.matmul.allow_tf32``). With torch's defaults a float32 layer with default options therefore
multiplies numbers with 10 bits of fraction, as ``nn.LSTM`` does, and a layer with an option multiplies float32. Set
both to the same value to compare the two.

Half precision: products round their results to the tensors' type, and sum in float32 before, unless
``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`` (or ``allow_fp16_...``) lets cuBLAS add parts of
them in half precision; the sum of the weights' gradients over all steps and sequences is always in float32.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._schema import ACT_WITH_RATES, NN_LSTM_TENSORS

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
    """Why this build has no kernels for CUDA tensors, and how to get them; ``None`` if it has."""
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
    _library = torch.library.Library("lstm_fused", "IMPL")  # kept alive: its registrations end with it
    for _name in _OPS:
        _library.impl(_name, _refuse, "CUDA")

_NO_MEMORY = (
    "out of memory",
    "torch could not allocate",
)  # the second: before torch 2.13 our ops do not get the reason


def out_of_memory_as_torch(op: Callable[..., Any]) -> Callable[..., Any]:
    """``op``, raising ``torch.OutOfMemoryError`` if the GPU runs out of memory: training loops catch that."""

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
_mode: str | None = None  # set by use_cudnn, and stronger than the environment variable


def use_cudnn(mode: str | None) -> None:
    """Set the mode: "auto", "0" (never) or "1" (wherever possible); ``None``: the value of LSTM_FUSED_CUDNN.

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


_HARMLESS = {"eps", *ACT_WITH_RATES}  # without a norm or a rate they change nothing


def backend(device: torch.device | str, tensors: Tensors, options: dict[str, Any]) -> str:
    """The backend of a call of ``ops.lstm_layer`` in eager mode.

    It is "cpu", "steps" (our CUDA kernels), "cudnn" or "cudnn-persistent" (a training step with the weights on the
    chip).

    Args:
        device: of the tensors.
        tensors: all tensor arguments in their order, the seed last.
        options: the other arguments that are passed, by name.
    """
    if torch.device(device).type != "cuda":
        return "cpu"
    seed_too = len(tensors) - 1
    has_defaults = all(x is None for x in tensors[len(NN_LSTM_TENSORS) : seed_too])
    has_defaults = has_defaults and all(not value for name, value in options.items() if name not in _HARMLESS)
    if _cudnn_mode() == "0" or not (has_defaults and _well_formed(*tensors[:3], *tensors[3 : len(NN_LSTM_TENSORS)])):
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
    """Whether the tensors are not empty and fit each other. If they do not, our op raises the error that says why."""
    if input.dim() != 3 or h_0.dim() != 2 or not input.numel():
        return False
    I, (B, H) = input.shape[2], h_0.shape  # noqa: E741
    shapes = ((B, H), (B, H), (4 * H, I), (4 * H, H), (4 * H,), (4 * H,))
    given = [(x, shape) for x, shape in zip((h_0, c_0, *weights), shapes, strict=True) if x is not None]
    fits = input.shape[1] == B and len(given) != len(shapes) - 1  # both biases or none
    return fits and all(x.shape == shape and x.dtype == input.dtype and x.device == input.device for x, shape in given)


_last_backend: str | None = None


def takes_cudnn(tensors: Tensors, options: dict[str, Any]) -> bool:
    """Whether cuDNN runs this call of a layer with CUDA tensors; recorded for :func:`last_backend`.

    Always False in a build without our CUDA kernels, so that layers do not fail only once an option is switched on.
    """
    global _last_backend
    _last_backend = backend(tensors[0].device, tensors, options) if missing is None else None
    return _last_backend in ("cudnn", "cudnn-persistent")


def last_backend() -> str | None:
    """The backend, as in :func:`backend`, of the last layer on a GPU in eager mode; ``None`` if there was none.

    Compiled and exported layers run on "steps".
    """
    return _last_backend


# cuDNN needs the weights in one block. nn.LSTM keeps them so; ours are copied in every call, which takes little time
# beside a sequence. The filter is for the call in this module: its warning recommends a method that does nothing here.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk", module=__name__)


def cudnn_layer(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """``(output, h_n, c_n)`` of a layer with default options, by torch's own LSTM."""
    input, h_0, c_0 = tensors[:3]
    weights = [x for x in tensors[3 : len(NN_LSTM_TENSORS)] if x is not None]
    state = (h_0.unsqueeze(0), c_0.unsqueeze(0))
    with torch.autocast(input.device.type, enabled=False):  # already applied
        result = torch.lstm(input, state, weights, len(weights) == 4, 1, 0.0, True, False, False)
    return result[0], result[1].squeeze(0), result[2].squeeze(0)
