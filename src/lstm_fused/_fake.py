"""Fake kernels: the shapes of what the ops give, for ``torch.compile`` and ``torch.export``.

torch does not pass them the arguments that have their default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _onnx as onnx
from ._schema import WEIGHT_HR, WEIGHT_LN_IH, WEIGHTS

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

_OPS = torch.ops.lstm_fused


def _fake(op: str) -> Callable[[_Kernel], _Kernel]:
    """``torch.library.register_fake``, which has no type of its own."""
    decorator: Callable[[_Kernel], _Kernel] = torch.library.register_fake(f"lstm_fused::{op}")
    return decorator


def _check_fake(op: Any, tensors: tuple[Any, ...], options: dict[str, Any]) -> None:
    if torch.onnx.is_in_onnx_export():
        onnx.refuse(options)
    # A call with some tensors on "meta" runs this too, and would return tensors that were never computed.
    device = tensors[0].device
    for argument, x in zip(op._schema.arguments, tensors, strict=False):
        if x is not None and x.device != device:
            raise RuntimeError(f"{argument.name} must be on the device of the input, {device}, got {x.device}")


def _has_norm(tensors: tuple[Any, ...]) -> bool:
    """``tensors``: an op's tensors, up to the last that was passed."""
    return len(tensors) > WEIGHT_LN_IH and tensors[WEIGHT_LN_IH] is not None


def _accumulators(input: Tensor, *shape: int) -> Tensor:
    """A tensor in the dtype of statistics and of the cell state."""
    return input.new_empty(shape, dtype=torch.float64 if input.dtype == torch.float64 else torch.float32)


def _computed(input: Tensor, *shape: int) -> Tensor:
    """A tensor in the dtype of computation: for half precision float32 on the CPU, and itself on a GPU and "meta"."""
    return _accumulators(input, *shape) if input.device.type == "cpu" else input.new_empty(shape)


def _saved(input: Tensor, leading: tuple[int, ...], hidden_size: int, norm: bool) -> tuple[Tensor, ...]:
    """Gates, recurrent and stats."""
    gates = (*leading, 4 * hidden_size)
    if not norm:
        return _computed(input, *gates), input.new_empty(0), input.new_empty(0)
    return _computed(input, *gates), _computed(input, *gates), _accumulators(input, *leading, 6)


@_fake("lstm_layer")
def _(
    *tensors: Any, dropout: float = 0.0, training: bool = True, recompute: int = 0, **options: Any
) -> tuple[Tensor, ...]:
    _check_fake(_OPS.lstm_layer.default, tensors, options | {"dropout": dropout, "training": training})
    input, h_0, c_0 = tensors[:3]
    (T, B, _), P, H = input.shape, h_0.shape[1], c_0.shape[1]
    results = tuple(input.new_empty(shape) for shape in ((T, B, P), (B, P), (B, H)))
    if recompute > 0:
        states = (T + recompute - 1) // recompute + 1
        kept = _accumulators(input, states, B, P), _accumulators(input, states, B, H)
        return *results, *kept, input.new_empty(0), input.new_empty(0), input.new_empty(0)
    hidden = _computed(input, T, B, P) if training and dropout > 0 else input.new_empty(0)
    return *results, hidden, _accumulators(input, T, B, H), *_saved(input, (T, B), H, _has_norm(tensors))


@_fake("lstm_layer_inference")
def _(input: Tensor, h_0: Tensor, c_0: Tensor, *tensors: Any, **options: Any) -> tuple[Tensor, ...]:
    _check_fake(_OPS.lstm_layer.default, (input, h_0, c_0, *tensors), options)
    return input.new_empty(*input.shape[:2], h_0.shape[1]), input.new_empty(h_0.shape), input.new_empty(c_0.shape)


@_fake("lstm_cell")
def _(*tensors: Any, **options: Any) -> tuple[Tensor, ...]:
    _check_fake(_OPS.lstm_cell.default, tensors, options)
    input, h_0, c_0 = tensors[:3]
    B, H, norm = input.shape[0], c_0.shape[1], _has_norm(tensors)
    return input.new_empty(h_0.shape), input.new_empty(c_0.shape), *_saved(input, (B,), H, norm)


@_fake("lstm_cell_plain")
@_fake("lstm_cell_inference")
def _(input: Tensor, h_0: Tensor, c_0: Tensor, *tensors: Any, **options: Any) -> tuple[Tensor, ...]:
    _check_fake(_OPS.lstm_cell.default, (input, h_0, c_0, *tensors), options)
    return input.new_empty(h_0.shape), input.new_empty(c_0.shape)


def _fake_gradients(tensors: tuple[Any, ...], options: dict[str, Any]) -> tuple[Tensor, ...]:
    """Empty if a gradient is not wanted or its parameter is missing."""
    input, h_0, c_0, weight_ih, weight_hh, *_ = tensors
    others = [*tensors[WEIGHT_LN_IH : WEIGHT_LN_IH + 4], *tensors[WEIGHT_HR : WEIGHTS.stop]]
    bias = weight_ih.shape[:1]
    shapes = [weight_ih.shape, weight_hh.shape, bias, *((0,) if other is None else other.shape for other in others)]
    if not options["want_weights"]:
        shapes = [(0,)] * len(shapes)
    d_input = input.shape if options["want_input"] else (0,)
    return tuple(input.new_empty(shape) for shape in (d_input, h_0.shape, c_0.shape, *shapes))


@_fake("lstm_layer_backward")
def _(d_output: Tensor, d_h_n: Tensor, d_c_n: Tensor, *tensors: Any, **options: Any) -> Any:
    return _fake_gradients(tensors, options)


@_fake("lstm_cell_backward")
def _(d_h: Tensor, d_c: Tensor, *tensors: Any, **options: Any) -> Any:
    return _fake_gradients(tensors, options)
