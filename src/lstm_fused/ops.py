"""The ops seen from Python: the two functions to call.

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
    training: bool = True,
    eps: float = 1e-5,
    stream: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A whole layer in one direction over a whole sequence, as :func:`lstm_fused.reference.lstm_layer`.

    Args:
        input: [T, B, I], float32, float64, bfloat16 or float16 (whose sums, statistics and cell state are float32), or
            complex, which the reference computes; the dtype and device of all the others but lengths and seed.
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
        recompute: steps of a segment. Above 0 the forward pass keeps the states between segments alone, and the
            backward pass computes each segment again before it walks back through it: less memory, about one forward
            pass more. On the CPU all results and gradients are the same bits; in half precision the gradient of
            weight_hh may not be: the hidden states that are computed again are not rounded, as the output is that
            stands for them. On a GPU products and sums of other sizes are rounded otherwise.
        recurrent_dropout, candidate_dropout, weight_dropout: rates, of h_{t-1} (one mask for all steps), g, weight_hh.
        zoneout_h, zoneout_c: rates; zoneout_h excludes a projection. All rates are in [0, 1).
        open_gates: gates that are 1, a sum of 1 (i), 2 (f) and 4 (o).
        training: draw masks; otherwise no dropout, and zoneout's expected value.
        eps: of the layer norms.
        stream: layer * num_directions + direction; gives every layer its own masks.

    Returns:
        output [T, B, P], h_n [B, P], c_n [B, H].

    Raises:
        RuntimeError: an argument does not fit the others or its range, in one sentence that names it, what it got and
            what it wanted. Where the reference computes in the kernels' place (``torch.func.grad``, forward mode,
            complex numbers), what it sees of this raises the same type; ranges of lengths and rates it does not check.
        torch.OutOfMemoryError: a GPU has no memory for a result; it is a RuntimeError.
        ValueError: ``LSTM_FUSED_CUDNN`` is none of its values (:mod:`lstm_fused.cuda`).
    """
    tensors = (
        input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh,
        weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c, bias_ln_ih, bias_ln_hh,
        weight_hr, weight_ci, weight_cf, weight_co, lengths, reset, seed,
    )  # fmt: skip
    acting = (
        reverse, dropout, recompute, recurrent_dropout, candidate_dropout, weight_dropout, zoneout_h, zoneout_c,
        open_gates, eps,
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
    training: bool = True,
    eps: float = 1e-5,
    stream: int = 0,
) -> State:
    """One step, number ``step`` of its sequence: ``(h, c)``, [B, P] and [B, H], from input [B, I] and reset [B].

    As :func:`lstm_layer` with T = 1 and without an output dropout; the same arguments mean the same, and mistakes raise
    the same.
    """
    tensors = (
        input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh,
        weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c, bias_ln_ih, bias_ln_hh,
        weight_hr, weight_ci, weight_cf, weight_co, reset, seed,
    )  # fmt: skip
    acting = (
        step, recurrent_dropout, candidate_dropout, weight_dropout, zoneout_h, zoneout_c, open_gates, eps,
    )  # fmt: skip
    options = {}
    if acting != _CELL_DEFAULTS:
        options = _dispatch.changed(CELL_ACTING, acting) | {"training": training, "stream": stream}
    h, c = _dispatch.call_cell(tensors, options)[:2]
    return h, c


def decompositions() -> dict[Any, Any]:
    """For ``ExportedProgram.run_decompositions``: a layer in eval becomes torch's scan over the reference's cell.

    The program then runs where ``lstm_fused`` is not, slower.

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
