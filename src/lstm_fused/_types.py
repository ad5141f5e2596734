"""Types used in several modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = tuple[Tensor, Tensor]
"""``(h, c)``."""

LayerNorm: TypeAlias = Literal["ba2016", "carry"]
DropoutPlace: TypeAlias = Literal["hidden", "candidate"]
Gate: TypeAlias = Literal["i", "f", "o"]
Device: TypeAlias = torch.device | str | int | None


class LayerTensors(NamedTuple):
    """The tensor arguments of :func:`lstm_fused.ops.lstm_layer` by name, in their order."""

    input: Tensor
    h_0: Tensor
    c_0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_ln_ih: Tensor | None = None
    weight_ln_hh: Tensor | None = None
    weight_ln_c: Tensor | None = None
    bias_ln_c: Tensor | None = None
    bias_ln_ih: Tensor | None = None
    bias_ln_hh: Tensor | None = None
    weight_hr: Tensor | None = None
    weight_ci: Tensor | None = None
    weight_cf: Tensor | None = None
    weight_co: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    seed: Tensor | None = None


if TYPE_CHECKING:  # Unpack is Python 3.11's
    from typing_extensions import Unpack

    # The tensors of a layer or a cell within a call. A plain tuple: building a LayerTensors would add a third of a
    # microsecond to every call.
    Tensors: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Unpack[tuple[Tensor | None, ...]]]
