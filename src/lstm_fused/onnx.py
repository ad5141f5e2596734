"""``torch.onnx.export``: what the ops become in a file that other runtimes read.

Nothing here is to be called: :mod:`lstm_fused.ops` comes by while torch traces a model for ONNX. T and B may be
dynamic.

- A layer that ONNX's LSTM operator can compute becomes one: no option, peepholes, lengths, either direction.
- Every other layer becomes a Scan over its steps, whose body is the reference's cell in ONNX's elementary operators.
  So does one that is not in float32, for which onnxruntime has no LSTM.
- A single step becomes the reference's cell.

Masks are not exported: a module in training that would draw some is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference

_RATES = ("dropout", "recurrent_dropout", "candidate_dropout", "weight_dropout", "zoneout_h", "zoneout_c")
# Without masks, and without a backward pass, these but the first do nothing.
_IN_OPERATOR = {"reverse", "training", "eps", "stream", "variational", "recompute", *_RATES[:4]}


def lower(function: Any, tensors: tuple[Tensor | None, ...], options: dict[str, Any]) -> tuple[Tensor, ...]:
    """``function(*tensors, **options)`` for :func:`reference.lstm_layer` or ``lstm_cell``, in what ONNX has."""
    _draws_nothing(options)
    options = options | {"training": False}
    if function is reference.lstm_cell:
        return reference.lstm_cell(*tensors, **options)
    *given, lengths, reset, _ = tensors  # the last is the seed
    norms_and_projection = given[7:14]
    plain = all(x is None for x in (*norms_and_projection, reset)) and given[0].dtype == torch.float32
    if plain and not any(value for name, value in options.items() if name not in _IN_OPERATOR):
        return _operator(*given[:7], *given[14:], lengths, options.get("reverse", False))
    return _scan(given, lengths, reset, options)


def refuse(options: dict[str, Any]) -> None:
    """What an op's fake kernel calls in an export to ONNX: the op should not have come that far.

    It did when torch, after :func:`lower` raised an error, tries again by other means, of which only the last one's
    error reaches the user.
    """
    _draws_nothing(options)
    raise RuntimeError(
        "model must be a module that can be exported with torch.export.export(strict=False) and does not call trace(), "
        "to become ONNX, got one in which an op of lstm_fused is left as it is"
    )


def _draws_nothing(options: dict[str, Any]) -> None:
    drawn = {name: options[name] for name in _RATES if options.get("training", True) and options.get(name, 0) > 0}
    if drawn:
        shown = ", ".join(f"{name}={rate}" for name, rate in drawn.items())
        raise RuntimeError(
            f"training must be off (model.eval()) for an export to ONNX, which has no masks, got {shown}"
        )


def _operator(
    input: Tensor, h_0: Tensor, c_0: Tensor, weight_ih: Tensor, weight_hh: Tensor,
    bias_ih: Tensor | None, bias_hh: Tensor | None,
    weight_ci: Tensor | None, weight_cf: Tensor | None, weight_co: Tensor | None,
    lengths: Tensor | None, reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """ONNX's LSTM of one direction, a dimension of size 1 in all but the input; gates i, o, f, g, peepholes i, o, f."""
    (T, B, _), H = input.shape, c_0.shape[1]

    def rows(x: Tensor) -> Tensor:
        return torch.cat([x.narrow(0, k * H, H) for k in (0, 3, 1, 2)]).unsqueeze(0)

    inputs = [
        input,
        rows(weight_ih),
        rows(weight_hh),
        None if bias_ih is None else torch.cat((rows(bias_ih), rows(bias_hh)), dim=1),
        None if lengths is None else lengths.to(torch.int32),
        h_0.unsqueeze(0),
        c_0.unsqueeze(0),
        None if weight_ci is None else torch.cat((weight_ci, weight_co, weight_cf)).unsqueeze(0),
    ]
    output, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        inputs,
        {"hidden_size": H, "direction": "reverse" if reverse else "forward"},
        dtypes=[input.dtype] * 3,
        shapes=[(T, 1, B, H), (1, B, H), (1, B, H)],
    )
    output, h_n, c_n = output.squeeze(1), h_n.squeeze(0), c_n.squeeze(0)
    if lengths is not None:  # the operator's last state of an empty sequence is not its initial one
        empty = (lengths == 0).unsqueeze(1)
        h_n, c_n = torch.where(empty, h_0, h_n), torch.where(empty, c_0, c_n)
    return output, h_n, c_n


def _scan(
    given: list[Tensor | None], lengths: Tensor | None, reset: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`reference.lstm_layer` with torch's scan as its loop; dropouts are off."""
    from torch._higher_order_ops.scan import scan  # a prototype, so that only those who export depend on it

    input, h_0, c_0, *weights = given
    cell = {name: options[name] for name in ("zoneout_h", "zoneout_c", "open_gates", "eps") if name in options}
    steps = {"input": input}
    if lengths is not None:
        steps["past"] = (torch.arange(input.shape[0], device=input.device).unsqueeze(1) >= lengths).unsqueeze(-1)
    if reset is not None:
        steps["reset"] = reset

    def step(state: tuple[Tensor, Tensor], at: dict[str, Tensor]) -> Any:
        h, c = reference.lstm_cell(at["input"], *state, *weights, at.get("reset"), training=False, **cell)
        y = h
        if "past" in at:
            h, c = (torch.where(at["past"], old, new) for old, new in zip(state, (h, c), strict=True))
            y = y.masked_fill(at["past"], 0)
        return (h, c), y.clone()  # no two results of a scan may be one tensor

    start = (h_0.clone(), c_0.clone())  # nor two of its initial states, nor may they be views where B is dynamic
    (h_n, c_n), output = scan(step, start, steps, reverse=options.get("reverse", False))
    return output, h_n, c_n
