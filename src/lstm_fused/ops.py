"""The ops as Python functions: a layer and a cell.

Sizes: ``T`` steps, ``B`` sequences, ``I`` inputs, ``H`` hidden units, ``P`` units of the projected hidden state (``H``
without a projection); gates in the order i, f, g, o. The equations are those of :func:`lstm_fused.reference.lstm_cell`,
the schemas those of ``csrc/schema.cpp``.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from . import _autograd, _dispatch, _fake  # noqa: F401  _autograd and _fake register what they have
from . import _onnx as onnx
from ._schema import CELL_ACTING, LAYER_ACTING
from ._schema import EPS as EPS
from ._types import State

_LAYER_DEFAULTS, _CELL_DEFAULTS = tuple(LAYER_ACTING.values()), tuple(CELL_ACTING.values())


def lstm_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_ln_ih: Tensor | None = None,
    weight_ln_hh: Tensor | None = None,
    weight_ln_c: Tensor | None = None,
    bias_ln_c: Tensor | None = None,
    bias_ln_ih: Tensor | None = None,
    bias_ln_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    weight_ci: Tensor | None = None,
    weight_cf: Tensor | None = None,
    weight_co: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    reverse: bool = False,
    dropout: float = 0.0,
    variational: bool = False,
    recompute: int = 0,
    recurrent_dropout: float = 0.0,
    candidate_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    open_gates: int = 0,
    activation: int = 0,
    recurrent_activation: int = 0,
    training: bool = True,
    eps: float = 1e-5,
    stream: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A whole layer in one direction over a whole sequence, as :func:`lstm_fused.reference.lstm_layer`.

    Args:
        input: [T, B, I], in float32, float64, bfloat16 or float16 (with sums, statistics and cell state in float32), or
            complex, which the reference computes. All other tensors but lengths and seed have its dtype and device.
        h_0, c_0: [B, P], [B, H].
        weight_ih, weight_hh: [4H, I], [4H, P].
        bias_ih, bias_hh: [4H], both or neither.
        weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c: [4H], [4H], [H], [H]; all four switch layer norm on.
        bias_ln_ih, bias_ln_hh: [4H]; with the four before, and without bias_ih and bias_hh: layer norm "carry".
        weight_hr: [P, H], the projection.
        weight_ci, weight_cf, weight_co: [H], the peepholes, all or none.
        lengths: int64 [B], real steps of each sequence, in 0..T.
        reset: bool [T, B], where the state is zero before a step.
        seed: int64, 0-dim; needed when a rate is above 0 in training.
        reverse: run from the last real step to step 0.
        dropout, variational: rate of the output's dropout; one mask for all steps.
        recompute: steps per segment; 0: off. The forward pass saves only the states between segments, and the backward
            pass recomputes each segment before its gradients. This takes less memory and the time of about one more
            forward pass. On the CPU all results and gradients have the same bits, except the gradient of weight_hh in
            half precision: recomputed hidden states are not rounded, while without recompute the rounded output is
            used. On a GPU, products and sums of other sizes round differently.
        recurrent_dropout, candidate_dropout, weight_dropout: rates, of h_{t-1} (one mask for all steps), g, weight_hh.
        zoneout_h, zoneout_c: rates; zoneout_h excludes a projection. All rates are in [0, 1).
        open_gates: gates that are 1, a sum of 1 (i), 2 (f) and 4 (o).
        activation: of g and of h: 0 (tanh) or 1 (relu).
        recurrent_activation: of the gates: 0 (sigmoid) or 1 (hard_sigmoid, clip(0.2 z + 0.5, 0, 1)).
        training: whether masks are drawn; otherwise there is no dropout, and zoneout takes its expected value.
        eps: of the layer norms.
        stream: of random numbers, layer * num_directions + direction; gives every layer its own masks.

    Returns:
        output [T, B, P], h_n [B, P], c_n [B, H].

    Raises:
        RuntimeError: an argument does not fit the others or is out of range, in one sentence that names it, what it got
            and what it wanted. The reference, which replaces the kernels under ``torch.func.grad``, in forward mode and
            for complex numbers, raises the same type, but does not check the ranges of lengths and rates.
        torch.OutOfMemoryError: a GPU has no memory for a result; it is a RuntimeError.
        ValueError: ``LSTM_FUSED_CUDNN`` has an invalid value (:mod:`lstm_fused.cuda`).
    """
    tensors = (
        input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh,
        weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c, bias_ln_ih, bias_ln_hh,
        weight_hr, weight_ci, weight_cf, weight_co, lengths, reset, seed,
    )  # fmt: skip
    acting = (
        reverse, dropout, recompute, recurrent_dropout, candidate_dropout, weight_dropout, zoneout_h, zoneout_c,
        open_gates, activation, recurrent_activation, eps,
    )  # fmt: skip
    options = {}
    if acting != _LAYER_DEFAULTS:
        options = _dispatch.changed(LAYER_ACTING, acting)
        options |= {"variational": variational, "training": training, "stream": stream}
    output, h_n, c_n = _dispatch.call_layer(tensors, options)[:3]
    return output, h_n, c_n


def lstm_cell(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_ln_ih: Tensor | None = None,
    weight_ln_hh: Tensor | None = None,
    weight_ln_c: Tensor | None = None,
    bias_ln_c: Tensor | None = None,
    bias_ln_ih: Tensor | None = None,
    bias_ln_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    weight_ci: Tensor | None = None,
    weight_cf: Tensor | None = None,
    weight_co: Tensor | None = None,
    reset: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    step: int = 0,
    recurrent_dropout: float = 0.0,
    candidate_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    open_gates: int = 0,
    activation: int = 0,
    recurrent_activation: int = 0,
    training: bool = True,
    eps: float = 1e-5,
    stream: int = 0,
) -> State:
    """One step, number ``step`` of its sequence: ``(h, c)``, [B, P] and [B, H], from input [B, I] and reset [B].

    The same as :func:`lstm_layer` with T = 1 and without output dropout; arguments and errors are those of it.
    """
    tensors = (
        input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh,
        weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c, bias_ln_ih, bias_ln_hh,
        weight_hr, weight_ci, weight_cf, weight_co, reset, seed,
    )  # fmt: skip
    acting = (
        step, recurrent_dropout, candidate_dropout, weight_dropout, zoneout_h, zoneout_c, open_gates,
        activation, recurrent_activation, eps,
    )  # fmt: skip
    options = {}
    if acting != _CELL_DEFAULTS:
        options = _dispatch.changed(CELL_ACTING, acting) | {"training": training, "stream": stream}
    h, c = _dispatch.call_cell(tensors, options)[:2]
    return h, c


def decompositions() -> dict[Any, Any]:
    """For ``ExportedProgram.run_decompositions``: a layer in eval becomes torch's scan over the reference's cell.

    The program then runs without ``lstm_fused``, but more slowly.

    Raises:
        RuntimeError: by ``run_decompositions``, for a layer in training that draws masks.
    """
    return {_dispatch.LAYER_INFERENCE: onnx.as_scan}


_RENAMED = {"plain_step": _dispatch.direct_cell, "plain_layer": _dispatch.direct_layer}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"lstm_fused.ops.{name} is internal and goes in the next release", DeprecationWarning, stacklevel=2)
    return _RENAMED[name]
