"""The compared models by name, each with H inputs and H hidden units.

The peers are ``nn.LSTM`` and the layer-normed LSTMs of peers.py; the others are ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lstm_fused import FusedLSTM, ops

from .peers import LayerNormLSTM

RATE = 0.3  # of every dropout and zoneout

PEER = "nn.LSTM"
PLAIN = "plain"
NORM = "layer norm + recurrent dropout"
FULL = "layer norm + recurrent and output dropout"
SCRIPT = "TorchScript LN-LSTM"
EAGER = "eager LN-LSTM"
ONNXRUNTIME = "onnxruntime, plain"
LAYER_NORM = "layer norm"
COMPILED = ", compiled"

# Each kind of dropout, as arguments of the op.
DROPOUTS: dict[str, dict[str, Any]] = {
    "output dropout": {"dropout": RATE},
    "variational output dropout": {"dropout": RATE, "variational": True},
    "hidden state dropout": {"recurrent_dropout": RATE},
    "candidate dropout": {"candidate_dropout": RATE},
    "zoneout": {"zoneout_h": RATE, "zoneout_c": RATE},
    "weight dropout": {"weight_dropout": RATE},
}


class Layer(nn.Module):
    """One layer with arguments of the op, because FusedLSTM has no dropout after its last layer."""

    def __init__(self, hidden_size: int, dtype: torch.dtype | None = None, **options: Any) -> None:
        super().__init__()
        self.lstm = FusedLSTM(hidden_size, hidden_size, layer_norm=True, dtype=dtype)
        self.options = options

    def forward(self, input: Tensor, lengths: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
        zeros = input.new_zeros(input.shape[1], self.lstm.hidden_size)
        if seed is None and self.options:
            seed = torch.randint(2**62, (), device=input.device)
        weights = self.lstm._all_parameters()[0]
        return ops.lstm_layer(input, zeros, zeros, *weights, lengths=lengths, seed=seed, **self.options)[0]


def plain(H: int, **options: Any) -> FusedLSTM:
    return FusedLSTM(H, H, **options)


def norm(H: int, **options: Any) -> FusedLSTM:
    return FusedLSTM(H, H, layer_norm=True, recurrent_dropout=RATE, **options)


def full(H: int, dtype: torch.dtype | None = None) -> Layer:
    return Layer(H, dtype, recurrent_dropout=RATE, dropout=RATE)


# The models of a training step.
TRAINED = {
    PEER: lambda H: nn.LSTM(H, H),
    PLAIN: plain,
    NORM: norm,
    FULL: full,
    SCRIPT: lambda H: torch.jit.script(LayerNormLSTM(H, H, RATE, RATE)),
    EAGER: lambda H: LayerNormLSTM(H, H, RATE, RATE),
}

# Models that recompute segments in the backward pass.
RECOMPUTE = ", recompute=True"
RECOMPUTED = {PLAIN: lambda H: plain(H, recompute=True), NORM: lambda H: norm(H, recompute=True)}


def why_not(make: Any, *arguments: Any, dtype: torch.dtype = torch.float32, **options: Any) -> str | None:
    """Why a model cannot be made or run; None if it can."""
    try:
        make(8, *arguments, dtype=dtype, **options)(torch.zeros(2, 1, 8, dtype=dtype))
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return None
