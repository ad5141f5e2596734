"""What goes on inside a :class:`FusedLSTM`: every gate, cell and hidden state of one pass.

The recurrence runs once, in the kernel, which gives the cells and the hidden states. Knowing them, the gates of all
steps are one batched computation of the reference's formulas, whatever the options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks as checks
from . import _onnx as onnx
from . import ops, reference
from ._types import LayerTensors, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Trace(NamedTuple):
    """One pass; ``gates``, ``cells`` and ``hidden`` have an entry for each layer and direction, ordered as ``h_n``.

    Time comes first in them, whatever ``batch_first``; one sequence without a batch is a batch of one. Past a
    sequence's length all are zero. Gates and cells of a module in half precision are float32, as they are computed.
    Nothing here is differentiable: all are ready to be drawn or turned into arrays.
    """

    output: Any  # as forward returns it
    state: State  # (h_n, c_n), likewise
    gates: tuple[Tensor, ...]  # [T, B, 4, H]: i, f, g, o after their activations
    cells: tuple[Tensor, ...]  # [T, B, H]: c_t, as the next step gets it
    hidden: tuple[Tensor, ...]  # [T, B, P]: h_t, as the next step gets it, before the output's dropout

    def plot(self, sequence: int = 0, layer: int = 0) -> Figure:
        """One sequence in one layer and direction (``layer``: its place in ``gates``): six pictures, units over steps.

        They are a matplotlib figure of its own: ``figure.savefig("trace.png")``.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("trace.plot() needs matplotlib: pip install matplotlib") from error

        i, f, g, o = self.gates[layer][:, sequence].float().cpu().unbind(1)
        c, h = (states[layer][:, sequence].float().cpu() for states in (self.cells, self.hidden))
        shown = {"input gate i": i, "forget gate f": f, "output gate o": o}
        shown |= {"candidate g": g, "cell c": c, "hidden state h": h}
        figure = Figure(figsize=(12, 6), layout="constrained")
        for axes, (title, values) in zip(figure.subplots(2, 3, sharex=True).flat, shown.items(), strict=True):
            if "gate" in title:
                scale = {"vmin": 0, "vmax": 1, "cmap": "viridis"}
            else:  # a cell may leave [-1, 1]
                largest = max(1.0, values.abs().max().item()) if values.numel() else 1.0
                scale = {"vmin": -largest, "vmax": largest, "cmap": "RdBu_r"}
            figure.colorbar(axes.imshow(values.T.numpy(), aspect="auto", interpolation="nearest", **scale), ax=axes)
            axes.set(title=title, xlabel="step", ylabel="unit")
        return figure


class Recorder:
    """Stands in for :func:`lstm_fused.ops.lstm_layer` and keeps what went by."""

    def __init__(self) -> None:
        self.gates: list[Tensor] = []
        self.cells: list[Tensor] = []
        self.hidden: list[Tensor] = []

    def __call__(
        self, input: Tensor, h_0: Tensor, c_0: Tensor, *parameters: Any, **arguments: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        if torch.onnx.is_in_onnx_export():
            onnx.refuse({})
        if checks.autocast_is_on(input):
            with torch.autocast(input.device.type, enabled=False):
                return self(*ops._autocast((input, h_0, c_0, *parameters)), **arguments)
        others = {name: arguments.pop(name, None) for name in ("lengths", "reset", "seed")}
        tensors = LayerTensors(input, h_0, c_0, *parameters)._replace(**others)
        arguments.pop("recompute", None)  # every state is wanted
        output, h_n, c_n, hidden, cells, *_ = torch.ops.lstm_fused.lstm_layer(*tensors, **arguments)
        if not (arguments["training"] and arguments["dropout"] > 0):
            hidden = output
        # In float32 where the kernel computes in it.
        computed = LayerTensors(*ops._converted(tensors, torch.float32))
        self.gates.append(_gates(computed, *ops._converted((hidden, cells), torch.float32), arguments))
        self.cells.append(cells)
        self.hidden.append(hidden.to(output.dtype))  # which is float32 where the op keeps it beside the output
        return output, h_n, c_n


def _gates(tensors: LayerTensors, hidden: Tensor, cells: Tensor, options: dict[str, Any]) -> Tensor:
    """The equations of :func:`lstm_fused.reference.lstm_cell` for all steps at once: [T, B, 4, H]."""
    T = cells.shape[0]
    input, lengths, reset, seed = tensors.input, tensors.lengths, tensors.reset, tensors.seed
    past = None
    if lengths is not None:
        past = torch.arange(T, device=input.device).unsqueeze(1) >= lengths  # [T, B]
        input = input.masked_fill(past.unsqueeze(-1), 0)
    h = _previous(hidden, tensors.h_0, past, options["reverse"])
    c = _previous(cells, tensors.c_0, past, options["reverse"])
    if reset is not None:
        h, c = (x.masked_fill(reset.unsqueeze(-1), 0) for x in (h, c))

    def dropped(x: Tensor, use: str, rate: float, t: int) -> Tensor:  # [B, H]
        hit = reference.hits(seed, use, rate, t, x, stream=options["stream"])
        return x * (~hit).to(x.dtype) / (1 - rate)

    def rate(name: str) -> float:
        return options.get(name, 0.0) if options["training"] else 0.0

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = getattr(tensors, f"weight_ln_{name}"), getattr(tensors, f"bias_ln_{name}")
        return x if weight is None else F.layer_norm(x, x.shape[-1:], weight, bias, options["eps"])

    if rate("recurrent_dropout") > 0 and T > 0:
        h = torch.stack([dropped(x, "hidden", rate("recurrent_dropout"), 0) for x in h])
    weight_hh = reference._weight_dropout(
        tensors.weight_hh, options.get("weight_dropout", 0.0), seed, options["training"], options["stream"]
    )
    z = norm(F.linear(input, tensors.weight_ih), "ih") + norm(F.linear(h, weight_hh), "hh")
    if tensors.bias_ih is not None and tensors.bias_hh is not None:
        z = z + tensors.bias_ih + tensors.bias_hh
    z_i, z_f, z_g, z_o = z.chunk(4, dim=-1)

    def gate(name: str, z: Tensor, peephole: Tensor | None, c: Tensor) -> Tensor:
        if options.get("open_gates", 0) & reference.GATES[name]:
            return torch.ones_like(z)
        return (z if peephole is None else z + peephole * c).sigmoid()

    i, f, g = gate("i", z_i, tensors.weight_ci, c), gate("f", z_f, tensors.weight_cf, c), z_g.tanh()
    new_c = c  # that of before zoneout and layer norm; only a peephole needs it
    if tensors.weight_co is not None:
        m_g = g
        if rate("candidate_dropout") > 0 and T > 0:
            m_g = torch.stack([dropped(x, "candidate", rate("candidate_dropout"), t) for t, x in enumerate(g)])
        new_c = f * c + i * m_g
    gates = torch.stack((i, f, g, gate("o", z_o, tensors.weight_co, new_c)), dim=2)
    return gates if past is None else gates.masked_fill(past[..., None, None], 0)


def _previous(states: Tensor, first: Tensor, past: Tensor | None, reverse: bool) -> Tensor:
    """What each step came from, [T, B, H]: the state of the step before, of the first real one the initial state."""
    if not reverse:
        return torch.cat((first.unsqueeze(0), states))[:-1]
    following = torch.cat((states, first.unsqueeze(0)))[1:]
    if past is None:
        return following
    ended = torch.cat((past, past.new_ones(1, past.shape[1])))[1:]
    return torch.where(ended.unsqueeze(-1), first, following)
