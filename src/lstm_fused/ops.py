"""The ops seen from Python: fake kernels, autograd, autocast, and the two functions to call.

Sizes: ``T`` steps, ``B`` sequences, ``I`` inputs, ``H`` hidden units, ``P`` units of the projected hidden state (``H``
without a projection); gates in the order i, f, g, o. The equations are those of :func:`lstm_fused.reference.lstm_cell`,
the schemas those of ``csrc/schema.cpp``.

An op with gradients costs several microseconds more than one without: where nothing is differentiated the
``*_inference`` ops run, which also keep nothing for a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _checks as checks
from . import _onnx as onnx
from . import cuda, reference
from ._schema import (
    BIAS_HH,
    BIAS_LN_HH,
    CELL_TENSORS,
    LAYER_TENSORS,
    PLAIN_TENSORS,
    WEIGHT_HR,
    WEIGHT_LN_IH,
    WEIGHTS,
)
from ._schema import EPS as EPS
from ._types import State

if TYPE_CHECKING:
    from ._types import Tensors

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])
_Given = TypeVar("_Given", bound=tuple[Tensor | None, ...])  # an op's tensors, or some of them

_OPS = torch.ops.lstm_fused
# The one overload of each: choosing it anew in every call takes half a microsecond.
_LAYER, _LAYER_INFERENCE = _OPS.lstm_layer.default, _OPS.lstm_layer_inference.default
_CELL, _CELL_INFERENCE, _CELL_PLAIN = (
    _OPS.lstm_cell.default,
    _OPS.lstm_cell_inference.default,
    _OPS.lstm_cell_plain.default,
)


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
    plain = not (
        reverse or dropout or recompute or recurrent_dropout or candidate_dropout or weight_dropout or zoneout_h
        or zoneout_c or open_gates or eps != EPS
    )  # fmt: skip
    options: dict[str, Any] = {}
    if not plain:
        options = {
            "reverse": reverse,
            "dropout": dropout,
            "variational": variational,
            "recompute": recompute,
            "recurrent_dropout": recurrent_dropout,
            "candidate_dropout": candidate_dropout,
            "weight_dropout": weight_dropout,
            "zoneout_h": zoneout_h,
            "zoneout_c": zoneout_c,
            "open_gates": open_gates,
            "training": training,
            "eps": eps,
            "stream": stream,
        }
    results: tuple[Tensor, Tensor, Tensor] = _call(reference.lstm_layer, _LAYER, _LAYER_INFERENCE, tensors, options)[:3]
    return results


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
    plain = not (
        step or recurrent_dropout or candidate_dropout or weight_dropout or zoneout_h or zoneout_c
        or open_gates or eps != EPS
    )  # fmt: skip
    options: dict[str, Any] = {}
    if not plain:
        options = {
            "step": step,
            "recurrent_dropout": recurrent_dropout,
            "candidate_dropout": candidate_dropout,
            "weight_dropout": weight_dropout,
            "zoneout_h": zoneout_h,
            "zoneout_c": zoneout_c,
            "open_gates": open_gates,
            "training": training,
            "eps": eps,
            "stream": stream,
        }
    state: State = _call(reference.lstm_cell, _CELL, _CELL_INFERENCE, tensors, options)[:2]
    return state


def decompositions() -> dict[Any, Any]:
    """For ``ExportedProgram.run_decompositions``: a layer in eval becomes torch's scan over the reference's cell.

    The program then runs where ``lstm_fused`` is not, slower.

    Raises:
        RuntimeError: by ``run_decompositions``, for a layer in training that draws masks.
    """
    return {_LAYER_INFERENCE: onnx.as_scan}


def plain_step(input: Any, hx: Any, weights: Sequence[Tensor | None]) -> State | None:
    """What :func:`lstm_cell` gives for a state and weights and nothing else, the short way: a step takes microseconds.

    Nobody but the op looks at the arguments. None where more than the op has to run (gradients, autocast, a transform,
    a graph that is recorded), and where the op refuses them: the long way says what is wrong, as torch would.
    """
    if _more_than_the_op_runs() or type(input) is not Tensor or type(hx) is not tuple or len(hx) != 2:
        return None
    h_0, c_0 = hx
    op = _CELL_PLAIN if len(weights) <= len(PLAIN_TENSORS) - WEIGHTS.start else _CELL_INFERENCE
    try:
        if input.is_cpu and input.dim() == 2:
            state: State = op(input, h_0, c_0, *weights)
            return state
    except (AttributeError, RuntimeError, TypeError):
        pass
    return None


def plain_layer(input: Any, hx: Any, weights: Sequence[Tensor | None], hidden_size: int) -> tuple[Tensor, State] | None:
    """``output, (h_n, c_n)`` of one layer in one direction, with the state as ``nn.LSTM`` has it: :func:`plain_step`'s
    short way of :func:`lstm_layer`. Without a state it starts from zeros of ``hidden_size`` units."""
    if _more_than_the_op_runs() or type(input) is not Tensor:
        return None
    try:
        if not input.is_cpu or input.dim() != 3:
            return None
        if hx is None:
            h_0 = c_0 = input.new_zeros(input.shape[1], hidden_size)
        elif type(hx) is tuple and len(hx) == 2 and hx[0].dim() == hx[1].dim() == 3:
            h_0, c_0 = hx[0].squeeze(0), hx[1].squeeze(0)
        else:
            return None
        output, h_n, c_n = _LAYER_INFERENCE(input, h_0, c_0, *weights)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return output, (h_n.unsqueeze(0), c_n.unsqueeze(0))


def _more_than_the_op_runs() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def _call(reference: Callable[..., Any], op: Any, inference: Any, tensors: Tensors, options: dict[str, Any]) -> Any:
    """The op that this call needs. Arguments that have their default are not handed over: each costs 0.3 us."""
    if checks.autocast_is_on(tensors[0]):
        tensors = _autocast(tensors, is_cell=op is _CELL)
    if forward_ad._current_level >= 0 and _has_tangent(tensors):
        return _by_reference(reference, tensors, options)
    if tensors[0].is_complex():  # which no kernel knows
        if tensors[WEIGHT_LN_IH] is not None:
            raise RuntimeError(f"input must be real where layer norm is on, got {tensors[0].dtype}")
        return _by_reference(reference, tensors, options)
    compiling = torch.compiler.is_compiling()
    tracing = not compiling and torch._C._get_tracing_state() is not None
    if (compiling or tracing) and torch.onnx.is_in_onnx_export():
        with torch.autocast(tensors[0].device.type, enabled=False):  # whose rule has been followed
            if tracing:
                return onnx.lower_for_torchscript(reference, inference, tensors, options)
            return onnx.lower(reference, tensors, options)
    if torch._C._are_functorch_transforms_active():
        if _in_func_gradient():
            return _by_reference(reference, tensors, options)
    elif not compiling and op is _LAYER and tensors[0].is_cuda and cuda.takes_cudnn(tensors, options):
        return cuda.cudnn_layer(tensors)
    if not compiling and tensors[0].is_cuda:
        op, inference = cuda.out_of_memory_as_torch(op), cuda.out_of_memory_as_torch(inference)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return op(*tensors, **options)
    if tracing:  # what torch.jit.trace records may train
        return op(*tensors, **options)
    given = len(tensors)
    while tensors[given - 1] is None:
        given -= 1
    if inference is _CELL_INFERENCE and given <= len(PLAIN_TENSORS) and not options and tensors[0].is_cpu:
        inference = _CELL_PLAIN
    return inference(*tensors[:given], **options)


def _autocast(tensors: _Given, is_cell: bool = False) -> _Given:
    """The rule of these ops under autocast: a layer takes its half precision, as ``nn.LSTM`` does.

    A cell takes float32, as ``nn.LSTMCell`` does on the CPU: its caller carries the cell state, which half precision
    would round at every step, and a layer's kernel does not.
    """
    input: Any = tensors[0]
    dtype = torch.float32 if is_cell else torch.get_autocast_dtype(input.device.type)
    return _converted(tensors, dtype)


def _converted(tensors: _Given, dtype: torch.dtype) -> _Given:
    """Those that are float32 or half precision."""
    converted = tuple(x.to(dtype) if x is not None and x.dtype in checks.AUTOCAST else x for x in tensors)
    return cast(_Given, converted)


def _by_reference(
    reference: Callable[..., tuple[Tensor, ...]], tensors: Tensors, options: dict[str, Any]
) -> tuple[Tensor, ...]:
    """The reference as the kernels compute: half precision is rounded where it comes out, and nowhere before."""
    _check_dimensions(tensors)
    dtype = tensors[0].dtype
    with torch.autocast(tensors[0].device.type, enabled=False):  # whose rule has been followed
        return tuple(x.to(dtype) for x in reference(*_converted(tensors, torch.float32), **options))


def _check_dimensions(tensors: Tensors) -> None:
    """Where the reference would stumble, but not over a RuntimeError, which the ops raise."""
    input, reset = tensors[0], tensors[-2]
    for name, x, wanted in (
        ("weight_ih", tensors[3], 2),
        ("weight_hh", tensors[4], 2),
        ("reset", reset, input.dim() - 1),
    ):
        if x is not None and x.dim() != wanted:
            raise RuntimeError(f"{name} must have {wanted} dimensions, got shape {list(x.shape)}")


def _has_tangent(tensors: Tensors) -> bool:
    """Whether forward-mode differentiation passes through: the ops have no rule for it, the reference needs none."""
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def _in_func_gradient() -> bool:
    """Whether ``torch.func.grad`` or its kin is at work, perhaps inside or outside of a ``vmap``: as with tangents.

    ``vmap`` alone needs no such care: the ops have rules for it.
    """
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() != torch._C._functorch.TransformType.Vmap for level in levels)


# Of a graph, which torch.compile guards by the transforms that it was traced under.
torch.compiler.assume_constant_result(_in_func_gradient)


# Fake kernels: the shapes of what the ops give. They do not get arguments that have their default.


def _fake(op: str) -> Callable[[_Kernel], _Kernel]:
    """``torch.library.register_fake``, which has no type of its own."""
    decorator: Callable[[_Kernel], _Kernel] = torch.library.register_fake(f"lstm_fused::{op}")
    return decorator


def _check_fake(op: Any, tensors: tuple[Any, ...], options: dict[str, Any]) -> None:
    if torch.onnx.is_in_onnx_export():
        onnx.refuse(options)
    # A call with one tensor on "meta" comes here too, and would give tensors whose numbers nobody has computed.
    device = tensors[0].device
    for argument, x in zip(op._schema.arguments, tensors, strict=False):
        if x is not None and x.device != device:
            raise RuntimeError(f"{argument.name} must be on the device of the input, {device}, got {x.device}")


def _has_norm(tensors: tuple[Any, ...]) -> bool:
    """Of an op's tensors, down to the last that was given."""
    return len(tensors) > WEIGHT_LN_IH and tensors[WEIGHT_LN_IH] is not None


def _accumulators(input: Tensor, *shape: int) -> Tensor:
    """Of the type in which statistics and the cell state are kept."""
    return input.new_empty(shape, dtype=torch.float64 if input.dtype == torch.float64 else torch.float32)


def _computed(input: Tensor, *shape: int) -> Tensor:
    """Of the type that is computed with: on the CPU float32 for half precision, on a GPU (and "meta") that itself."""
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
    _check_fake(_LAYER, tensors, options | {"dropout": dropout, "training": training})
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
    _check_fake(_LAYER, (input, h_0, c_0, *tensors), options)
    return input.new_empty(*input.shape[:2], h_0.shape[1]), input.new_empty(h_0.shape), input.new_empty(c_0.shape)


@_fake("lstm_cell")
def _(*tensors: Any, **options: Any) -> tuple[Tensor, ...]:
    _check_fake(_CELL, tensors, options)
    input, h_0, c_0 = tensors[:3]
    B, H, norm = input.shape[0], c_0.shape[1], _has_norm(tensors)
    return input.new_empty(h_0.shape), input.new_empty(c_0.shape), *_saved(input, (B,), H, norm)


@_fake("lstm_cell_plain")
@_fake("lstm_cell_inference")
def _(input: Tensor, h_0: Tensor, c_0: Tensor, *tensors: Any, **options: Any) -> tuple[Tensor, ...]:
    _check_fake(_CELL, (input, h_0, c_0, *tensors), options)
    return input.new_empty(h_0.shape), input.new_empty(c_0.shape)


def _fake_gradients(tensors: tuple[Any, ...], options: dict[str, Any]) -> tuple[Tensor, ...]:
    """Empty where a gradient is not wanted or its parameter is not there."""
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


# Autograd: the forward op keeps what its backward op takes.


def _setup_layer(ctx: Any, inputs: list[Any], options: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    output, _, _, *kept = results
    hidden = kept[0]
    # Where hidden states are kept beside the output, the backward op reads no output, and it may be changed or go.
    ctx.save_for_backward(*inputs, output if hidden.dim() == 1 else hidden, *kept)
    ctx.options = options
    _keep_for_backward_only(ctx, kept)


def _setup_cell(ctx: Any, inputs: list[Any], options: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    _, _, *kept = results
    ctx.save_for_backward(*inputs, *kept)
    ctx.options = options
    _keep_for_backward_only(ctx, kept)


def _keep_for_backward_only(ctx: Any, kept: list[Tensor]) -> None:
    """No gradient comes back through what was kept, and no zeros are made up in its place."""
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _zeros_for_none(gradients: tuple[Tensor | None, ...], like: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The gradients of the results; a result that nothing used has none."""
    return tuple(x.new_zeros(shape) if d is None else d for d, (x, shape) in zip(gradients, like, strict=True))


def _wanted(ctx: Any) -> dict[str, bool]:
    return {"want_input": ctx.needs_input_grad[0], "want_weights": any(ctx.needs_input_grad[WEIGHTS])}


def _gradients(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The backward op's results, one for each input: the two biases have the same, the rest none."""
    d_bias, d_norms, d_others = gradients[5], gradients[6:10], gradients[10:]
    # Two tensors: who scales gradients in place would scale one that stands for two parameters twice.
    second = ctx.needs_input_grad[BIAS_HH] or ctx.needs_input_grad[BIAS_LN_HH]
    d_biases = (d_bias, d_bias.clone() if second else d_bias)
    all_of_them = (*gradients[:5], *d_biases, *d_norms, *d_biases, *d_others)
    padded = all_of_them + (None,) * (len(ctx.needs_input_grad) - len(all_of_them))
    return tuple(d if needed else None for d, needed in zip(padded, ctx.needs_input_grad, strict=True))


def _differentiable_gradients(
    ctx: Any,
    forward: Callable[..., tuple[Tensor, ...]],
    inputs: Tensors,
    d_results: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients to be differentiated again (``create_graph=True``), which the kernel's cannot be: the reference's."""
    # Views, so that an input that depends on another, or stands in two places, is differentiated in each place alone.
    views: Any = tuple(None if x is None else x.view_as(x) for x in inputs)
    needed = [x for x, need in zip(views, ctx.needs_input_grad, strict=False) if need]
    results = _by_reference(forward, views, ctx.options)
    with torch.autocast(inputs[0].device.type, enabled=False):
        gradients = iter(torch.autograd.grad(results, needed, d_results, create_graph=True, materialize_grads=True))
    return tuple(next(gradients) if need else None for need in ctx.needs_input_grad)


def _layer_backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    input, h_0, c_0 = saved[:3]
    like = ((input, (*input.shape[:2], h_0.shape[1])), (h_0, h_0.shape), (c_0, c_0.shape))
    gradients = _zeros_for_none(d_results[:3], like)
    if torch.is_grad_enabled():
        return _differentiable_gradients(ctx, reference.lstm_layer, saved[: len(LAYER_TENSORS)], gradients)
    backward = cuda.out_of_memory_as_torch(_OPS.lstm_layer_backward)
    results = backward(*gradients, *saved, **ctx.options, **_wanted(ctx))
    return _gradients(ctx, results)


def _cell_backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    h_0, c_0 = saved[1:3]
    gradients = _zeros_for_none(d_results[:2], ((h_0, h_0.shape), (c_0, c_0.shape)))
    if torch.is_grad_enabled():
        return _differentiable_gradients(ctx, reference.lstm_cell, saved[: len(CELL_TENSORS)], gradients)
    backward = cuda.out_of_memory_as_torch(_OPS.lstm_cell_backward)
    results = backward(*gradients, *saved, **ctx.options, **_wanted(ctx))
    return _gradients(ctx, results)


_AUTOGRAD = torch.library.Library("lstm_fused", "IMPL")


def _register_autograd(
    op: Any, count: int, setup: Callable[..., None], gradients: Callable[..., tuple[Tensor | None, ...]]
) -> None:
    """As ``torch.library.register_autograd``, for an op of ``count`` inputs (tensors or None) and options by name.

    That asks the schema for the list of its arguments, each a new object, once for every argument and call, to fill in
    defaults that are not needed here: 0.3 ms of a training step.
    """

    class FusedLSTM(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
            *inputs, keyset, options = arguments
            results: tuple[Tensor, ...] = below_autograd(keyset, *inputs, **options)
            setup(ctx, inputs, options, results)
            return results

        backward = staticmethod(gradients)

    def below_autograd(keyset: Any, *inputs: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            results: tuple[Tensor, ...] = op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs, **options)
            return results

    def with_autograd(keyset: Any, *inputs: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
            apply: Callable[..., tuple[Tensor, ...]] = FusedLSTM.apply
            return apply(*inputs, *[None] * (count - len(inputs)), keyset, options)
        return below_autograd(keyset, *inputs, **options)

    _AUTOGRAD.impl(op, with_autograd, "Autograd", with_keyset=True)


_register_autograd(_LAYER, len(LAYER_TENSORS), _setup_layer, _layer_backward)
_register_autograd(_CELL, len(CELL_TENSORS), _setup_cell, _cell_backward)
