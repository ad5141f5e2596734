"""What a user's type checker sees; mypy checks it with the package, and nothing runs it."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import assert_type

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell


def output_is_a_tensor(lstm: FusedLSTM | LSTM, x: Tensor, lengths: list[int]) -> None:
    output, state = lstm(x, lengths=lengths)
    assert_type(output, Tensor)
    assert_type(state, tuple[Tensor, Tensor])


def output_is_packed(lstm: FusedLSTM, x: PackedSequence) -> None:
    assert_type(lstm(x), tuple[PackedSequence, tuple[Tensor, Tensor]])
    lstm(x, lengths=[1])  # type: ignore[call-overload]  # it has its own lengths


def cell_gives_a_state(cell: FusedLSTMCell, x: Tensor) -> None:
    assert_type(cell(x, step=1), tuple[Tensor, Tensor])


def options_have_names() -> None:
    FusedLSTM(3, 5, layer_norm="carry", recurrent_dropout_on="candidate", device="cpu", dtype=torch.float64)
    FusedLSTM(3, 5, layer_norm="ba2017")  # type: ignore[arg-type]
    FusedLSTMCell(3, 5, recurrent_dropout_on="cell")  # type: ignore[arg-type]
