"""CUDA tensors: whether this build has kernels for them, and which road a layer takes, our kernels' or cuDNN's.

The rule, ``road``: cuDNN takes a layer that ``nn.LSTM`` could have computed too, in eager mode: no layer norm, no mask,
no zoneout, no peephole, no open gate, no projection, no recomputation, no lengths, no resets, forward direction. Our
step kernels take everything else, and everything that is compiled, exported or under ``torch.func``.
``LSTM_FUSED_CUDNN=0`` (or ``use_cudnn("0")``) keeps all layers here, which double backward needs: cuDNN has none. ``1``
gives every layer that could go to cuDNN to it, ``auto``, the default, does the same: cuDNN keeps a plain layer's
weights on the chip for the whole sequence, and step kernels cannot match that. ``last_road`` tells what ran.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

_OPS = ("lstm_layer", "lstm_layer_inference", "lstm_layer_backward")
_OPS += ("lstm_cell", "lstm_cell_inference", "lstm_cell_plain", "lstm_cell_backward")

try:
    from . import _cuda  # noqa: F401  registers torch.ops.lstm_fused for CUDA

    missing: str | None = None
except ImportError as error:
    missing = str(error)


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

_MODES = ("auto", "0", "1")
_mode: str | None = None  # what use_cudnn set, which has its way over the environment


def use_cudnn(mode: str | None) -> None:
    """ "auto", "0" (never) or "1" (wherever possible); ``None``: what LSTM_FUSED_CUDNN says."""
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
_PLAIN_TENSORS = 7  # input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh
_HARMLESS = {"variational", "training", "eps", "stream"}  # without a rate or a norm they change nothing


def road(device: torch.device | str, tensors: tuple[Tensor | None, ...], options: dict[str, Any]) -> str:
    """What a call of ``ops.lstm_layer`` runs in eager mode: "cpu", "steps" (our CUDA kernels) or "cudnn".

    ``tensors``: its tensor arguments in their order, the seed last; ``options``: its other arguments that are given.
    """
    if torch.device(device).type != "cuda":
        return "cpu"
    seed_too = len(tensors) - 1
    plain = all(x is None for x in tensors[_PLAIN_TENSORS:seed_too])
    plain = plain and all(not value for name, value in options.items() if name not in _HARMLESS)
    cudnn = torch.backends.cudnn.enabled and torch.backends.cudnn.is_available()
    return "cudnn" if _cudnn_mode() != "0" and plain and cudnn and _well_formed(*tensors[:_PLAIN_TENSORS]) else "steps"


def _well_formed(input: Tensor, h_0: Tensor, c_0: Tensor, *weights: Tensor | None) -> bool:
    """Whether there is something to compute, from tensors that fit; of those that do not, our op says which it is."""
    if input.dim() != 3 or h_0.dim() != 2 or not input.numel():
        return False
    I, (B, H) = input.shape[2], h_0.shape  # noqa: E741
    shapes = ((B, H), (B, H), (4 * H, I), (4 * H, H), (4 * H,), (4 * H,))
    given = [(x, shape) for x, shape in zip((h_0, c_0, *weights), shapes, strict=True) if x is not None]
    fits = input.shape[1] == B and len(given) != len(shapes) - 1  # both biases or none
    return fits and all(x.shape == shape and x.dtype == input.dtype and x.device == input.device for x, shape in given)


_last_road: str | None = None


def takes_cudnn(tensors: tuple[Tensor | None, ...], options: dict[str, Any]) -> bool:
    """Whether this call of a layer with CUDA tensors goes to cuDNN; :func:`last_road` will tell.

    None does without our kernels: that a layer works until an option is switched on would be no help.
    """
    global _last_road
    _last_road = road("cuda", tensors, options) if missing is None else None
    return _last_road == "cudnn"


def last_road() -> str | None:
    """What the last layer that ran on a GPU in eager mode took: "steps" or "cudnn"; ``None``: no such layer ran yet.

    What is compiled or exported takes "steps".
    """
    return _last_road


# torch would have the weights in one block, as nn.LSTM keeps them; ours are copied into one, which is little beside a
# sequence's time. Only the warning of this module's call is meant: it would tell of a method that changes nothing here.
warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk", module=__name__)


def cudnn_layer(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """``(output, h_n, c_n)`` of a plain layer, by torch's own LSTM."""
    input, h_0, c_0, *weights = tensors[:_PLAIN_TENSORS]
    weights = [x for x in weights if x is not None]
    state = (h_0.unsqueeze(0), c_0.unsqueeze(0))
    with torch.autocast(input.device.type, enabled=False):  # whose rule our ops have followed already
        result = torch.lstm(input, state, weights, len(weights) == 4, 1, 0.0, True, False, False)
    return result[0], result[1].squeeze(0), result[2].squeeze(0)
