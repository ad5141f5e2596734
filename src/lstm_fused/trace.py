"""The inside of a :class:`FusedLSTM`: every gate, cell and hidden state of one pass.

The kernel runs the recurrence once and returns the cells and the hidden states. From these, the gates of all steps are
one batched computation with the reference's equations, for all options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import _checks as checks
from . import _onnx as onnx
from . import reference
from ._dispatch import autocast, converted
from ._schema import LAYER_OPTIONS
from ._types import LayerTensors, State

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Trace(NamedTuple):
    """One pass; ``gates``, ``cells`` and ``hidden`` have an entry for each layer and direction, ordered as ``h_n``.

    Their first dimension is time, also with ``batch_first``; an unbatched sequence is a batch of one. Past a sequence's
    length all are zero. Gates and cells of a module in half precision are float32, as they are computed. The tensors
    have no gradients and can be drawn or converted to arrays directly.
    """

    output: Any  # as returned by forward
    state: State  # (h_n, c_n), likewise
    gates: tuple[Tensor, ...]  # [T, B, 4, H]: i, f, g, o after their activations
    cells: tuple[Tensor, ...]  # [T, B, H]: c_t, as the next step gets it
    hidden: tuple[Tensor, ...]  # [T, B, P]: h_t, as the next step gets it, before the output's dropout

    def plot(self, sequence: int = 0, layer: int = 0) -> Figure:
        """Six pictures, units over steps, of one sequence in one layer and direction (``layer``: index in ``gates``).

        Returns a matplotlib figure of its own: ``figure.savefig("trace.png")``.

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
    """Called in place of :func:`lstm_fused.ops.lstm_layer`; records gates, cells and hidden states."""

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
                return self(*autocast((input, h_0, c_0, *parameters)), **arguments)
        others = {name: arguments.pop(name, None) for name in ("lengths", "reset", "seed")}
        tensors = LayerTensors(input, h_0, c_0, *parameters)._replace(**others)
        arguments.pop("recompute", None)  # which would drop states
        output, h_n, c_n, hidden, cells, *_ = torch.ops.lstm_fused.lstm_layer(*tensors, **arguments)
        if not (arguments["training"] and arguments["dropout"] > 0):
            hidden = output
        # In float32 where the kernel computes in it.
        computed = LayerTensors(*converted(tensors, torch.float32))
        self.gates.append(_gates(computed, *converted((hidden, cells), torch.float32), LAYER_OPTIONS | arguments))
        self.cells.append(cells)
        self.hidden.append(hidden.to(output.dtype))  # the op's own copy of it is float32
        return output, h_n, c_n


def _gates(tensors: LayerTensors, hidden: Tensor, cells: Tensor, options: dict[str, Any]) -> Tensor:
    """The gates of :func:`lstm_fused.reference.lstm_cell` for all steps at once: [T, B, 4, H].

    ``options``: all of an op's.
    """
    T = cells.shape[0]
    input, seed, training, rng_stream = tensors.input, tensors.seed, options["training"], options["stream"]
    past = None if tensors.lengths is None else reference.past_the_end(tensors.lengths, T)
    if past is not None:
        input = input.masked_fill(past.unsqueeze(-1), 0)
    h = _previous(hidden, tensors.h_0, past, options["reverse"])
    c = _previous(cells, tensors.c_0, past, options["reverse"])
    if tensors.reset is not None:
        h, c = (x.masked_fill(tensors.reset.unsqueeze(-1), 0) for x in (h, c))

    def drop(x: Tensor, use: str, name: str, step: int) -> Tensor:  # of a step
        return reference._dropout(x, use, options[name], step, seed, training=training, stream=rng_stream)

    def drop_candidate(g: Tensor) -> Tensor:
        # Only the output gate sees the cell before zoneout and layer norm, and only through a peephole.
        if tensors.weight_co is None or not training or options["candidate_dropout"] == 0 or T == 0:
            return g
        return torch.stack([drop(x, "candidate", "candidate_dropout", t) for t, x in enumerate(g)])

    if training and options["recurrent_dropout"] > 0 and T > 0:
        h = torch.stack([drop(x, "hidden", "recurrent_dropout", 0) for x in h])
    weight_hh = drop(tensors.weight_hh, "weight", "weight_dropout", 0)
    z = reference._pre_activations(
        input, h, tensors.weight_ih, weight_hh, tensors.bias_ih, tensors.bias_hh, tensors.weight_ln_ih,
        tensors.weight_ln_hh, tensors.bias_ln_ih, tensors.bias_ln_hh, options["eps"],
    )  # fmt: skip
    peepholes = tensors.weight_ci, tensors.weight_cf, tensors.weight_co
    choices = {name: options[name] for name in reference.CHOICES}
    *gates, _ = reference._gates(z, c, *peepholes, drop_candidate, **choices)
    found = torch.stack(gates, dim=2)
    return found if past is None else found.masked_fill(past[..., None, None], 0)


def _previous(states: Tensor, first: Tensor, past: Tensor | None, reverse: bool) -> Tensor:
    """The state before each step, [T, B, H]: that of the step before, or the initial one before the first real step."""
    if not reverse:
        return torch.cat((first.unsqueeze(0), states))[:-1]
    following = torch.cat((states, first.unsqueeze(0)))[1:]
    if past is None:
        return following
    ended = torch.cat((past, past.new_ones(1, past.shape[1])))[1:]
    return torch.where(ended.unsqueeze(-1), first, following)
