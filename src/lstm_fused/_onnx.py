"""``torch.onnx.export``: the ops in a file for other runtimes.

:mod:`lstm_fused._dispatch` calls this while torch traces a model for ONNX. T and B may be dynamic.

- A layer that ONNX's LSTM operator can compute becomes one: no option, peepholes, activations, lengths, either
  direction.
- Every other layer becomes a Scan over its steps. The body is the reference's cell in ONNX's elementary operators.
  This includes layers that are not in float32, because onnxruntime has no LSTM for them. torch's old exporter
  (``dynamo=False``) has no Scan and raises an error.
- A single step becomes the reference's cell.

Masks cannot be exported: a module in training that would draw masks is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import reference
from ._schema import ACT_WITH_RATES, CELL_OPTIONS, LAYER_TENSORS, LENGTHS, RATES, WEIGHT_CI, WEIGHTS
from ._types import LayerTensors, State

if TYPE_CHECKING:
    from ._types import Tensors

# What keeps no layer from being the operator: what it has itself, and what does nothing without masks, norms and a
# backward pass. Zoneout is not among them: in eval it takes the expected value.
_IN_OPERATOR = {
    "reverse",
    "activation",
    "recurrent_activation",
    "eps",
    "recompute",
    *ACT_WITH_RATES,
    *(name for name in RATES if "dropout" in name),
}


def lower(function: Callable[..., tuple[Tensor, ...]], tensors: Tensors, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """``function(*tensors, **options)`` for :func:`reference.lstm_layer` or ``lstm_cell``, in what ONNX has."""
    _draws_nothing(options)
    options = options | {"training": False}
    if function is reference.lstm_cell:
        return reference.lstm_cell(*tensors, **options)
    of_layer = LayerTensors(*tensors)
    if not _beyond_the_operator(of_layer, of_layer.input.dtype, options):
        return _operator(of_layer, options)
    return _scan(of_layer, options)


def lower_for_torchscript(function: Any, op: Any, tensors: Tensors, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """The same for ``torch.onnx.export(dynamo=False)``: ``op`` stays one node of the graph until :func:`_symbolic`."""
    if function is reference.lstm_cell:
        return lower(function, tensors, options)
    _draws_nothing(options)
    _in_operator(_beyond_the_operator(LayerTensors(*tensors), tensors[0].dtype, options))
    results: tuple[Tensor, ...] = op(*tensors, **options)
    return results


def _beyond_the_operator(tensors: LayerTensors, dtype: torch.dtype, options: dict[str, Any]) -> list[str]:
    """What ONNX's LSTM operator does not have of a layer. ``dtype``: of its tensors."""
    found = {
        "a norm": tensors.weight_ln_ih is not None,
        "a projection": tensors.weight_hr is not None,
        "reset": tensors.reset is not None,
        f"{dtype}": dtype != torch.float32,
    }
    options = {name: value for name, value in options.items() if name not in _IN_OPERATOR}
    return [name for name, value in (found | options).items() if value]


def _in_operator(beyond: list[str]) -> None:
    if beyond:
        raise RuntimeError(f"dynamo must be True in torch.onnx.export for a layer with {', '.join(beyond)}, got False")


def as_scan(*tensors: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`lstm_fused.ops.lstm_layer` in eval, as torch's scan."""
    _draws_nothing(options)
    return _scan(LayerTensors(*tensors), options)


def refuse(options: dict[str, Any]) -> None:
    """Raises the error for an op that an export to ONNX reaches without :func:`lower`; fake kernels call this.

    torch's exporter retries with other methods after an error of :func:`lower`, and shows the user the last error only.
    """
    _draws_nothing(options)
    raise RuntimeError(
        "model must be a module that can be exported with torch.export.export(strict=False) and does not call trace(), "
        "to become ONNX, got one in which an op of lstm_fused is left as it is"
    )


def _draws_nothing(options: dict[str, Any]) -> None:
    drawn = {name: options[name] for name in RATES if options.get("training", True) and options.get(name, 0) > 0}
    if drawn:
        shown = ", ".join(f"{name}={rate}" for name, rate in drawn.items())
        raise RuntimeError(
            f"training must be off (model.eval()) for an export to ONNX, which has no masks, got {shown}"
        )


def _attributes(options: dict[str, Any]) -> dict[str, Any]:
    """The attributes of the operator besides the hidden size. Its HardSigmoid is by default that of the reference."""
    activation = ("Tanh", "Relu")[options.get("activation", 0)]
    of_gates = ("Sigmoid", "HardSigmoid")[options.get("recurrent_activation", 0)]
    direction = "reverse" if options.get("reverse", False) else "forward"
    return {"direction": direction, "activations": [of_gates, activation, activation]}


def _operator(tensors: LayerTensors, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX's LSTM of one direction, a dimension of size 1 in all but the input; gates i, o, f, g, peepholes i, o, f."""
    input, h_0, c_0, lengths = tensors.input, tensors.h_0, tensors.c_0, tensors.lengths
    peepholes = _joined(tensors.weight_ci, tensors.weight_co, tensors.weight_cf)
    (T, B, _), H = input.shape, c_0.shape[1]

    def rows(x: Tensor) -> Tensor:
        return torch.cat([x.narrow(0, k * H, H) for k in (0, 3, 1, 2)]).unsqueeze(0)

    inputs = [
        input,
        rows(tensors.weight_ih),
        rows(tensors.weight_hh),
        _joined(*(None if x is None else rows(x) for x in (tensors.bias_ih, tensors.bias_hh)), dim=1),
        None if lengths is None else lengths.to(torch.int32),
        h_0.unsqueeze(0),
        c_0.unsqueeze(0),
        None if peepholes is None else peepholes.unsqueeze(0),
    ]
    output, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        inputs,
        {"hidden_size": H, **_attributes(options)},
        dtypes=[input.dtype] * 3,
        shapes=[(T, 1, B, H), (1, B, H), (1, B, H)],
    )
    output, h_n, c_n = output.squeeze(1), h_n.squeeze(0), c_n.squeeze(0)
    if lengths is not None:  # the operator's last state of an empty sequence is not its initial one
        empty = (lengths == 0).unsqueeze(1)
        h_n, c_n = torch.where(empty, h_0, h_n), torch.where(empty, c_0, c_n)
    return output, h_n, c_n


def _joined(*tensors: Tensor | None, dim: int = 0) -> Tensor | None:
    """``torch.cat`` of tensors that are either all given or all None."""
    given = [x for x in tensors if x is not None]
    return torch.cat(given, dim=dim) if given else None


def _scan(tensors: LayerTensors, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`reference.lstm_layer` with torch's scan as its loop; dropouts are off."""
    from torch._higher_order_ops.scan import scan  # imported late: a prototype, which only exports need

    # Without detach() torch would trace a backward pass too, which an export does not have, and take twice as long.
    tensors = LayerTensors._make(x if x is None else x.detach() for x in tensors)
    input, h_0, c_0 = tensors[:3]
    weights: dict[str, Any] = dict(zip(LAYER_TENSORS[WEIGHTS], tuple(tensors)[WEIGHTS], strict=True))
    lengths, reset = tensors.lengths, tensors.reset
    cell = {name: value for name, value in options.items() if name in CELL_OPTIONS} | {"training": False}
    steps = {"input": input}
    if lengths is not None:
        steps["past"] = reference.past_the_end(lengths, input.shape[0]).unsqueeze(-1)
    if reset is not None:
        steps["reset"] = reset

    def step(state: State, at: dict[str, Tensor]) -> Any:
        h, c = reference.lstm_cell(at["input"], state[0], state[1], reset=at.get("reset"), **weights, **cell)
        y = h
        if "past" in at:
            h, c = (torch.where(at["past"], old, new) for old, new in zip(state, (h, c), strict=True))
            y = y.masked_fill(at["past"], 0)
        return (h, c), y.clone()  # scan requires distinct result tensors

    start = (h_0.clone(), c_0.clone())  # and distinct initial states, no views if B is dynamic
    (h_n, c_n), output = scan(step, start, steps, reverse=options.get("reverse", False))
    return output, h_n, c_n


# torch.onnx.export(dynamo=False) translates a TorchScript graph node by node.


def _symbolic(op: Any, g: Any, *values: Any) -> tuple[Any, ...]:
    """ONNX's LSTM for a node of an op, as :func:`_operator`."""
    arguments = op._schema.arguments
    tensors: list[Any] = [
        None if x.node().mustBeNone() else x for x, at in zip(values, arguments, strict=True) if not at.kwarg_only
    ]
    options = {at.name: x.node().t("value").item() for x, at in zip(values, arguments, strict=True) if at.kwarg_only}
    input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh = tensors[:7]
    _draws_nothing(options)
    _in_operator(_beyond_the_operator(LayerTensors(*tensors), weight_ih.type().dtype(), options))
    H = weight_hh.type().sizes()[1]

    def constant(*values: int) -> Any:
        return g.op("Constant", value_t=torch.tensor(values))

    def on_axis(op: str, x: Any, axis: int) -> Any:
        return g.op(op, x, constant(axis)) if g.opset >= 13 else g.op(op, x, axes_i=[axis])

    def rows(x: Any) -> Any:  # gates i, o, f, g
        order = constant(*(k * H + row for k in (0, 3, 1, 2) for row in range(H)))
        return on_axis("Unsqueeze", g.op("Gather", x, order, axis_i=0), 0)

    missing = g.op("prim::Constant")
    missing.setType(torch._C.OptionalType.ofTensor())
    weight_ci, weight_cf, weight_co, lengths = tensors[WEIGHT_CI : LENGTHS + 1]
    peepholes, attributes = missing, _attributes(options)
    if weight_ci is not None:
        peepholes = on_axis("Unsqueeze", g.op("Concat", weight_ci, weight_co, weight_cf, axis_i=0), 0)
    output, h_n, c_n = g.op(
        "LSTM",
        input,
        rows(weight_ih),
        rows(weight_hh),
        missing if bias_ih is None else g.op("Concat", rows(bias_ih), rows(bias_hh), axis_i=1),
        missing if lengths is None else g.op("Cast", lengths, to_i=torch.onnx.TensorProtoDataType.INT32),
        on_axis("Unsqueeze", h_0, 0),
        on_axis("Unsqueeze", c_0, 0),
        peepholes,
        outputs=3,
        hidden_size_i=H,
        direction_s=attributes["direction"],
        activations_s=attributes["activations"],
    )
    output, h_n, c_n = on_axis("Squeeze", output, 1), on_axis("Squeeze", h_n, 0), on_axis("Squeeze", c_n, 0)
    if lengths is not None:
        empty = on_axis("Unsqueeze", g.op("Equal", lengths, constant(0)), 1)
        h_n, c_n = g.op("Where", empty, h_0, h_n), g.op("Where", empty, c_0, c_n)
    return output, h_n, c_n, *[None] * (len(op._schema.returns) - 3)


for _op in (torch.ops.lstm_fused.lstm_layer.default, torch.ops.lstm_fused.lstm_layer_inference.default):
    # Documented, and not in torch.onnx.__all__.
    torch.onnx.register_custom_op_symbolic(_op.name(), partial(_symbolic, _op), 9)  # type: ignore[attr-defined]
