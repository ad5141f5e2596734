"""``torch.vmap`` over the ops: N slices become N * B sequences of one call if that computes the same.

The op runs once per slice in three cases: if masks are drawn, because a mask depends on a sequence's index in its batch
and must be that of the slice alone; if weights differ between slices; and in backward ops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._schema import CELL_TENSORS, LAYER_TENSORS, RATES

_OPS = torch.ops.lstm_fused

# Which dimension is B: of the arguments by their index, and of the results.
_LAYER_ROWS = {
    LAYER_TENSORS.index(name): dim for name, dim in (("input", 1), ("h_0", 0), ("c_0", 0), ("lengths", 0), ("reset", 1))
}
_LAYER_RESULT_ROWS = (1, 0, 0, 1, 1, 1, 1, 1)
_CELL_ROWS = {CELL_TENSORS.index(name): 0 for name in ("input", "h_0", "c_0", "reset")}
_CELL_RESULT_ROWS = (0, 0, 0, 0, 0)

Dims = tuple[int | None, ...]  # the dimension of the slices of each argument; None: all slices share it


def _slice_by_slice(op: Any, size: int, in_dims: Dims, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if size == 0:
        raise RuntimeError("vmap must be over at least one slice where the op runs once for each, got none")
    results = [
        op(*(x if dim is None else x.select(dim, n) for x, dim in zip(arguments, in_dims, strict=True)), **options)
        for n in range(size)
    ]
    stacked = tuple(torch.stack(result) for result in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _together(
    op: Any, size: int, in_dims: Dims, arguments: tuple[Any, ...], options: dict[str, Any],
    rows: dict[int, int], result_rows: tuple[int, ...],
) -> Any:  # fmt: skip
    def merged(x: Tensor, dim: int | None, row: int) -> Tensor:  # [.., N * B, ..]
        x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.movedim(0, row).flatten(row, row + 1)

    h_0, dim = arguments[1], in_dims[1]
    B = h_0.shape[0] if dim is None else h_0.movedim(dim, 0).shape[1]
    given = zip(arguments, in_dims, strict=True)
    results = op(
        *(merged(x, dim, rows[k]) if k in rows and x is not None else x for k, (x, dim) in enumerate(given)), **options
    )
    shaped, out_dims = [], []
    for result, row in zip(results, result_rows, strict=False):
        kept = result.dim() > 1  # otherwise it is empty
        shaped.append(result.unflatten(row, (size, B)) if kept else result)
        out_dims.append(row if kept else None)
    return tuple(shaped), tuple(out_dims)


def _register(name: str, rows: dict[int, int], result_rows: tuple[int, ...]) -> None:
    op = getattr(_OPS, name).default

    def rule(info: Any, in_dims: Dims, *arguments: Any, **options: Any) -> Any:
        random = options.get("training", True) and any(options.get(rate, 0) > 0 for rate in RATES)
        same = all(dim is None for place, dim in enumerate(in_dims) if place not in rows)
        if random or not same:
            return _slice_by_slice(op, info.batch_size, in_dims, arguments, options)
        return _together(op, info.batch_size, in_dims, arguments, options, rows, result_rows)

    torch.library.register_vmap(f"lstm_fused::{name}", rule)


for _name in ("lstm_layer", "lstm_layer_inference"):
    _register(_name, _LAYER_ROWS, _LAYER_RESULT_ROWS)
for _name in ("lstm_cell", "lstm_cell_inference", "lstm_cell_plain"):
    _register(_name, _CELL_ROWS, _CELL_RESULT_ROWS)
for _name in ("lstm_layer_backward", "lstm_cell_backward"):
    _register(_name, {}, ())
