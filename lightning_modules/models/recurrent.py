"""The recurrent layers of every model, chosen by one word: a comparison is one flag."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

CELLS = ("fused", "torch")
# What nn.LSTM has no counterpart of: a model with cell="torch" runs without these.
FUSED_ONLY = ("layer_norm", "recurrent_dropout", "zoneout", "variational")


def build_recurrent(
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    *,
    dropout: float = 0.0,
    forget_bias: float | None = None,
    **options: Any,
) -> nn.Module:
    """Layers that map ``[T, B, input_size]`` and a state to ``[T, B, hidden_size]`` and the next state.

    Args:
        cell: ``"fused"`` is ``lstm_fused.FusedLSTM``; ``"torch"`` is ``nn.LSTM``, without the options it lacks
            (see :func:`options_left_out`).
        dropout: after each layer but the last.
        forget_bias: the forget gates' initial bias; ``None`` leaves the cell's own initialisation.
        options: those of ``FUSED_ONLY``.

    Raises:
        ValueError: for an unknown cell.
    """
    if cell == "fused":
        from lstm_fused import FusedLSTM

        return FusedLSTM(input_size, hidden_size, num_layers, dropout=dropout, forget_bias=forget_bias, **options)
    if cell == "torch":
        lstm = nn.LSTM(input_size, hidden_size, num_layers, dropout=dropout if num_layers > 1 else 0.0)
        if forget_bias is not None:
            set_forget_bias(lstm, forget_bias)
        return lstm
    raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")


def options_left_out(cell: str, options: Mapping[str, Any]) -> list[str]:
    """The names of those ``options`` that are on and that ``cell`` runs without."""

    def is_on(value: Any) -> bool:
        return any(value) if isinstance(value, (tuple, list)) else bool(value)

    return [] if cell == "fused" else [name for name in FUSED_ONLY if is_on(options.get(name))]


@torch.no_grad()
def set_forget_bias(lstm: nn.LSTM, value: float) -> None:
    """Sets the sum of each layer's two forget gate biases to ``value``."""
    for name, bias in lstm.named_parameters():
        if name.startswith("bias_"):
            bias.chunk(4)[1].fill_(value if name.startswith("bias_ih") else 0.0)
