"""``LSTM`` and ``LSTMCell``: the fused modules as subclasses of torch's, for code that checks with ``isinstance``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._types import Device
from .lstm import FusedLSTM, FusedLSTMCell


class LSTM(FusedLSTM, nn.LSTM):
    """:class:`FusedLSTM` without options, and a subclass of ``nn.LSTM``: only the import changes.

    Code that checks ``isinstance(module, nn.LSTM)`` usually initializes weights, and all parameters are as it expects.
    A tool may also replace an ``nn.LSTM`` by another module with the same weights. That is safe here, because there are
    no options to lose, and it is the reason why FusedLSTM itself is no ``nn.LSTM``.

    ``torch.compile`` does not compile an ``nn.LSTM``, and therefore not this class, unless
    ``torch._dynamo.config.allow_rnn`` is True; it does compile FusedLSTM.

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

    # nn.RNNBase declares as attributes what are properties in FusedLSTM.
    _all_weights: list[list[str]]
    _flat_weights_names: list[str]
    _flat_weights: list[Any]

    # nn.RNNBase overrides these to keep a list of its weights, which does not exist here.
    __setattr__: Any = nn.Module.__setattr__
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
