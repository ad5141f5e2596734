"""What users would otherwise run: a layer-normed LSTM as a Python loop and in TorchScript, with the same parameters.

Both compute the equations of ``layer_norm="ba2016"`` with recurrent dropout on the hidden state (one mask a sequence).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNormCell(nn.Module):
    """One step of a layer-normed LSTM; parameters named as in ``FusedLSTMCell``."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        bound = hidden_size**-0.5
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden_size).uniform_(-bound, bound))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden_size).uniform_(-bound, bound))
        self.weight_ln_ih = nn.Parameter(torch.ones(4 * hidden_size))
        self.weight_ln_hh = nn.Parameter(torch.ones(4 * hidden_size))
        self.weight_ln_c = nn.Parameter(torch.ones(hidden_size))
        self.bias_ln_c = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, h: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        gates = [4 * self.hidden_size]
        z = (
            F.layer_norm(F.linear(x, self.weight_ih), gates, self.weight_ln_ih)
            + F.layer_norm(F.linear(h * mask, self.weight_hh), gates, self.weight_ln_hh)
            + (self.bias_ih + self.bias_hh)
        )
        i, f, g, o = z.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        n = F.layer_norm(c, [self.hidden_size], self.weight_ln_c, self.bias_ln_c)
        return torch.sigmoid(o) * torch.tanh(n), c


class LayerNormLSTM(nn.Module):
    """The loop over time; ``torch.jit.script(LayerNormLSTM(...))`` is the TorchScript peer."""

    def __init__(self, input_size: int, hidden_size: int, recurrent_dropout: float, dropout: float) -> None:
        super().__init__()
        self.cell = LayerNormCell(input_size, hidden_size)
        self.recurrent_dropout = recurrent_dropout
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        h = input.new_zeros(input.size(1), self.cell.hidden_size)
        c = h
        mask = F.dropout(torch.ones_like(h), self.recurrent_dropout, self.training)
        outputs = []
        for x in input.unbind(0):
            h, c = self.cell(x, h, c, mask)
            outputs.append(h)
        return F.dropout(torch.stack(outputs), self.dropout, self.training)
