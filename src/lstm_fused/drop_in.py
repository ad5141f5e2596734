"""``LSTM`` and ``LSTMCell``: the fused modules under torch's names, which ``isinstance(..., nn.LSTM)`` finds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._types import Device
from .lstm import FusedLSTM, FusedLSTMCell


class LSTM(FusedLSTM, nn.LSTM):
    """:class:`FusedLSTM` without options, and an ``nn.LSTM``: for code in which nothing but the import changes.

    Code that asks ``isinstance(module, nn.LSTM)`` most often initializes its weights, and finds here what it expects,
    parameter by parameter. A tool that replaces an ``nn.LSTM`` by another module of the same weights may do so here,
    where there is no option that it would drop; that is why FusedLSTM itself is none.

    ``torch.compile`` compiles no ``nn.LSTM``, and therefore none of this class, unless it is told
    (``torch._dynamo.config.allow_rnn = True``); it does compile FusedLSTM.

    The arguments are those of ``nn.LSTM``, the call is that of FusedLSTM, with ``lengths``, ``reset`` and ``seed``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )

    # Properties of FusedLSTM, which nn.RNNBase declares as attributes.
    _all_weights: list[list[str]]
    _flat_weights_names: list[str]
    _flat_weights: list[Any]

    # What nn.RNNBase does to a list of the weights that it keeps, and that there is none of here.
    __setattr__: Any = nn.Module.__setattr__
    __setstate__: Any = nn.Module.__setstate__
    _apply = nn.Module._apply
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


class LSTMCell(FusedLSTMCell, nn.LSTMCell):
    """:class:`FusedLSTMCell` without options, and an ``nn.LSTMCell``, as :class:`LSTM` is an ``nn.LSTM``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
