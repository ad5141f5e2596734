"""What a call of a layer or a cell runs: an op, the reference, cuDNN, or what an export to ONNX needs.

A differentiable op costs several microseconds more than one without gradients. Calls without gradients therefore use
the ``*_inference`` ops, which also save nothing for a backward pass.
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
from ._schema import LAYER_TENSORS, LENGTHS, NN_LSTM_TENSORS, WEIGHT_LN_IH, WEIGHTS
from ._types import State

if TYPE_CHECKING:
    from ._types import Tensors

_Given = TypeVar("_Given", bound=tuple[Tensor | None, ...])  # an op's tensors, or some of them

_OPS = torch.ops.lstm_fused
# The overloads themselves: resolving them in every call would take half a microsecond.
_LAYER, LAYER_INFERENCE = _OPS.lstm_layer.default, _OPS.lstm_layer_inference.default
_CELL, _CELL_INFERENCE, _CELL_PLAIN = (
    _OPS.lstm_cell.default,
    _OPS.lstm_cell_inference.default,
    _OPS.lstm_cell_plain.default,
)


def changed(defaults: dict[str, Any], values: tuple[Any, ...]) -> dict[str, Any]:
    """By name those of some options that do not have their default. Each that is passed costs an op 0.3 us.

    ``values``: of all the options with these defaults, in their order.
    """
    options = zip(defaults.items(), values, strict=True)
    return {name: value for (name, default), value in options if value != default}


def call_layer(tensors: Tensors, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """``output, h_n, c_n`` and perhaps more. ``tensors``: all of the op's, in their order; ``options``: those given."""
    try:
        results: tuple[Tensor, ...] = _call(reference.lstm_layer, _LAYER, LAYER_INFERENCE, tensors, options)
    except (AttributeError, RuntimeError, TypeError) as error:
        _raise_in_one_sentence(_LAYER, tensors, options, error)
        raise
    return results


def call_cell(tensors: Tensors, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """``h, c`` and perhaps more, likewise."""
    try:
        results: tuple[Tensor, ...] = _call(reference.lstm_cell, _CELL, _CELL_INFERENCE, tensors, options)
    except (AttributeError, RuntimeError, TypeError) as error:
        _raise_in_one_sentence(_CELL, tensors, options, error)
        raise
    return results


def _raise_in_one_sentence(op: Any, tensors: Tensors, options: dict[str, Any], error: Exception) -> None:
    """A sentence for what torch's dispatcher says in many lines, or does not say; nothing for any other error."""
    for argument, value in zip(op._schema.arguments, tensors, strict=False):
        required = str(argument.type) == "Tensor"
        if value is None and not required:
            continue
        if not isinstance(value, Tensor):
            raise RuntimeError(f"{argument.name} must be a tensor, got {type(value).__name__}") from None
        if value.layout != torch.strided:
            raise RuntimeError(f"{argument.name} must be a dense tensor, got layout {value.layout}") from None
    for argument in op._schema.arguments:
        name = argument.name
        if name not in options:
            continue
        if not hasattr(options[name], "__float__") or f"for argument '{name}'" in str(error):
            given = type(options[name]).__name__
            raise RuntimeError(f"{name} must be of type {argument.type}, got {given}") from None


def _call(reference: Callable[..., Any], op: Any, inference: Any, tensors: Tensors, options: dict[str, Any]) -> Any:
    if checks.autocast_is_on(tensors[0]):
        tensors = autocast(tensors, is_cell=op is _CELL)
    if _only_the_reference_can(tensors):
        return by_reference(reference, tensors, options)
    compiling = torch.compiler.is_compiling()
    tracing = not compiling and torch._C._get_tracing_state() is not None
    if (compiling or tracing) and torch.onnx.is_in_onnx_export():
        with torch.autocast(tensors[0].device.type, enabled=False):  # already applied
            if tracing:
                return onnx.lower_for_torchscript(reference, inference, tensors, options)
            return onnx.lower(reference, tensors, options)
    if torch._C._are_functorch_transforms_active():
        if _in_func_gradient():
            return by_reference(reference, tensors, options)
    elif not compiling and op is _LAYER and tensors[0].is_cuda and cuda.takes_cudnn(tensors, options):
        return cuda.cudnn_layer(tensors)
    if not compiling and tensors[0].is_cuda:
        op, inference = cuda.out_of_memory_as_torch(op), cuda.out_of_memory_as_torch(inference)
    # What torch.jit.trace records may train.
    if tracing or (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)):
        return op(*tensors, **options)
    return _infer(inference, tensors, options)


def _only_the_reference_can(tensors: Tensors) -> bool:
    """Whether no kernel computes this: forward-mode differentiation, complex numbers."""
    if forward_ad._current_level >= 0 and _has_tangent(tensors):
        return True
    if not tensors[0].is_complex():
        return False
    if tensors[WEIGHT_LN_IH] is not None:
        raise RuntimeError(f"input must be real where layer norm is on, got {tensors[0].dtype}")
    for name, x in zip(LAYER_TENSORS[:LENGTHS], tensors, strict=False):
        if x is not None and x.dtype != tensors[0].dtype:
            raise RuntimeError(f"{name} must be {_name_of(tensors[0].dtype)}, got {_name_of(x.dtype)}")
    return True


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _infer(inference: Any, tensors: Tensors, options: dict[str, Any]) -> Any:
    """Tensors that are None at the end are not passed: each costs time too."""
    given = len(tensors)
    while tensors[given - 1] is None:
        given -= 1
    if inference is _CELL_INFERENCE and given <= len(NN_LSTM_TENSORS) and not options and tensors[0].is_cpu:
        inference = _CELL_PLAIN
    return inference(*tensors[:given], **options)


def direct_cell(input: Any, hx: Any, weights: Sequence[Tensor | None]) -> State | None:
    """:func:`call_cell` with default options, straight from the op: a step takes only microseconds.

    The arguments are checked by the op alone. Returns None where more than the op has to run (gradients, autocast, a
    transform, a recorded graph) and where the op raises an error: the regular path then finds the cause and names it.
    """
    if _more_than_the_op_runs() or type(input) is not Tensor or type(hx) is not tuple or len(hx) != 2:
        return None
    h_0, c_0 = hx
    op = _CELL_PLAIN if len(weights) <= len(NN_LSTM_TENSORS) - WEIGHTS.start else _CELL_INFERENCE
    try:
        if input.is_cpu and input.dim() == 2:
            state: State = op(input, h_0, c_0, *weights)
            return state
    except (AttributeError, RuntimeError, TypeError):
        pass
    return None


def direct_layer(
    input: Any, hx: Any, weights: Sequence[Tensor | None], hidden_size: int
) -> tuple[Tensor, State] | None:
    """:func:`call_layer` as :func:`direct_cell`, for one layer in one direction: ``output, (h_n, c_n)``.

    The state has the shape that ``nn.LSTM`` gives it; where it is None, it is zeros of ``hidden_size`` units.
    """
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
        output, h_n, c_n = LAYER_INFERENCE(input, h_0, c_0, *weights)
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


def autocast(tensors: _Given, is_cell: bool = False) -> _Given:
    """The autocast rule of these ops: a layer runs in autocast's half precision, like ``nn.LSTM``.

    A cell runs in float32, like ``nn.LSTMCell`` on the CPU: its caller carries the cell state, which would be rounded
    at every step in half precision. A layer's kernel keeps it in float32.
    """
    input: Any = tensors[0]
    dtype = torch.float32 if is_cell else torch.get_autocast_dtype(input.device.type)
    return converted(tensors, dtype)


def converted(tensors: _Given, dtype: torch.dtype) -> _Given:
    """The tensors, with those in float32 or half precision converted to ``dtype``."""
    converted = tuple(x.to(dtype) if x is not None and x.dtype in checks.AUTOCAST else x for x in tensors)
    return cast(_Given, converted)


def by_reference(
    reference: Callable[..., tuple[Tensor, ...]], tensors: Tensors, options: dict[str, Any]
) -> tuple[Tensor, ...]:
    """The reference with the kernels' precision: half precision computes in float32 and rounds the results only."""
    _check_dimensions(tensors)
    dtype = tensors[0].dtype
    with torch.autocast(tensors[0].device.type, enabled=False):  # already applied
        return tuple(x.to(dtype) for x in reference(*converted(tensors, torch.float32), **options))


def _check_dimensions(tensors: Tensors) -> None:
    """Dimensions for which the reference raises other errors than the RuntimeError of the ops."""
    input, reset = tensors[0], tensors[-2]
    for name, x, wanted in (
        ("weight_ih", tensors[3], 2),
        ("weight_hh", tensors[4], 2),
        ("reset", reset, input.dim() - 1),
    ):
        if x is not None and x.dim() != wanted:
            raise RuntimeError(f"{name} must have {wanted} dimensions, got shape {list(x.shape)}")


def _has_tangent(tensors: Tensors) -> bool:
    """Whether forward-mode differentiation is active, for which the ops have no rule and the reference needs none."""
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def _in_func_gradient() -> bool:
    """Whether a transform such as ``torch.func.grad`` is active, also inside or outside of a ``vmap``.

    ``vmap`` alone does not count: the ops have rules for it.
    """
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() != torch._C._functorch.TransformType.Vmap for level in levels)


# Constant in a graph: torch.compile guards it by the active transforms.
torch.compiler.assume_constant_result(_in_func_gradient)
