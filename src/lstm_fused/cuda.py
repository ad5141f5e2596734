"""CUDA tensors: whether this build has kernels for them, and which road a layer takes, our kernels' or cuDNN's.

The rule, ``road``: cuDNN takes a layer that ``nn.LSTM`` could have computed too, in eager mode: no layer norm, no mask,
no zoneout, no peephole, no open gate, no projection, no lengths, no resets, forward direction. Our step kernels take
everything else, and everything that is compiled, exported or differentiated twice. ``LSTM_FUSED_CUDNN=0`` (or
``use_cudnn("0")``) keeps all layers here, ``1`` gives every layer that could go to cuDNN to it, ``auto``, the default,
does the same: cuDNN keeps a plain layer's weights on the chip for the whole sequence, and step kernels cannot match
that.
"""

from __future__ import annotations

import os
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
    """What a call of ``ops.lstm_layer`` runs: "cpu", "steps" (our CUDA kernels) or "cudnn".

    ``tensors``: its tensor arguments in their order, the seed last; ``options``: its other arguments that are given.
    """
    if torch.device(device).type != "cuda":
        return "cpu"
    seed_too = len(tensors) - 1
    plain = all(x is None for x in tensors[_PLAIN_TENSORS:seed_too])
    plain = plain and all(not value for name, value in options.items() if name not in _HARMLESS)
    eager = not torch.compiler.is_compiling()
    cudnn = torch.backends.cudnn.enabled and torch.backends.cudnn.is_available()
    return "cudnn" if _cudnn_mode() != "0" and plain and eager and cudnn else "steps"


def cudnn_layer(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """``(output, h_n, c_n)`` of a plain layer, by torch's own LSTM."""
    input, h_0, c_0, *weights = tensors[:_PLAIN_TENSORS]
    weights = [x for x in weights if x is not None]
    result = torch.lstm(
        input, (h_0.unsqueeze(0), c_0.unsqueeze(0)), weights, len(weights) == 4, 1, 0.0, True, False, False
    )
    return result[0], result[1].squeeze(0), result[2].squeeze(0)
