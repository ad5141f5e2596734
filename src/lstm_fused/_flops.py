"""FLOP counts of our ops for ``torch.utils.flop_counter`` and the tools that use it.

As in torch's own counts, a product of [m, k] and [k, n] counts 2 m k n, and nothing else counts. The counts equal those
of ``nn.LSTM`` if it runs in torch's own operators. They include what the kernels compute: in a backward pass the
gradients of all weights or of none, and with ``recompute`` the forward pass once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from ._schema import LENGTHS, WEIGHT_HR, WEIGHT_IH

_OPS = torch.ops.lstm_fused


def _rows(tensors: tuple[Any, ...], is_layer: bool) -> int:
    """The total number of steps, T * B without lengths."""
    input: Tensor = tensors[0]
    if not is_layer:
        return input.shape[0]
    lengths = tensors[LENGTHS] if len(tensors) > LENGTHS else None
    if lengths is None or isinstance(lengths, FakeTensor) or lengths.is_meta:
        return input.shape[0] * input.shape[1]
    return int(lengths.sum())


def _forward(tensors: tuple[Any, ...], is_layer: bool) -> int:
    flops: int = tensors[WEIGHT_IH].numel() + tensors[WEIGHT_IH + 1].numel()  # and weight_hh
    if len(tensors) > WEIGHT_HR and tensors[WEIGHT_HR] is not None:
        flops += tensors[WEIGHT_HR].numel()
    return 2 * _rows(tensors, is_layer) * flops


def _backward(tensors: tuple[Any, ...], is_layer: bool, options: dict[str, Any]) -> int:
    h_0: Tensor = tensors[1]
    weight_ih: Tensor = tensors[3]
    weight_hh: Tensor = tensors[4]
    weight_hr: Tensor | None = tensors[WEIGHT_HR]
    rows = _rows(tensors, is_layer)
    # The first step's product with weight_hh needs no gradient of h_0, unless h_0 requires one.
    flops = (rows if h_0.requires_grad else max(rows - h_0.shape[0], 0)) * weight_hh.numel()
    flops += rows * (weight_ih.numel() if options["want_input"] else 0)
    flops += rows * (0 if weight_hr is None else weight_hr.numel())
    if options["want_weights"]:
        flops += rows * (weight_ih.numel() + weight_hh.numel() + (0 if weight_hr is None else weight_hr.numel()))
    return 2 * flops + (_forward(tensors, is_layer) if options.get("recompute") else 0)


def _register(targets: list[Any], formula: Any) -> None:
    new = [target for target in targets if target not in flop_registry]  # not if this module is imported a second time
    register_flop_formula(new, get_raw=True)(formula)


_register([_OPS.lstm_layer, _OPS.lstm_layer_inference], lambda *tensors, **_: _forward(tensors, True))
_register(
    [_OPS.lstm_cell, _OPS.lstm_cell_inference, _OPS.lstm_cell_plain], lambda *tensors, **_: _forward(tensors, False)
)
# The gradients of the results come first.
_register([_OPS.lstm_layer_backward], lambda *tensors, **options: _backward(tensors[3:], True, options))
_register([_OPS.lstm_cell_backward], lambda *tensors, **options: _backward(tensors[2:], False, options))
