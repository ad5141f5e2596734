"""What of a task becomes a file for programs without this package: :class:`Exported`."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Exported:
    """A trained net as it is exported (``lstm-fused export``).

    Attributes:
        module: takes the tensors of ``inputs`` by these names, and gives a tuple of tensors.
        inputs: an example of each tensor, and the names of its dimensions: ``None`` for one of a fixed size; ``T`` and
            ``B`` may be of any size from 1. A tensor ``lengths`` has the sequences' lengths, T at most.
        outputs: the names of what the module gives, others than those of ``inputs``.
        about: what turns data into inputs and outputs into words: a vocabulary, a scaling. Plain values.
        example: lines of Python that use ``model(**inputs)``, which takes NumPy arrays and gives a list of them, and
            ``about``; with ``json``, ``sys``, ``Path`` and ``np`` imported.
    """

    module: nn.Module
    inputs: dict[str, tuple[Tensor, tuple[str | None, ...]]]
    outputs: list[str]
    about: dict[str, Any]
    example: str


class WithLengths(nn.Module):
    """A net of ``inputs`` and ``lengths`` whose scores are turned into probabilities.

    Args:
        net: gives scores, logits but for ``final`` = ``"none"``.
        final: ``softmax`` over the last dimension, ``sigmoid`` or ``none``.
    """

    def __init__(self, net: nn.Module, final: str) -> None:
        super().__init__()
        self.net, self.final = net, final

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor]:
        scores = self.net(inputs, lengths)
        if self.final == "softmax":
            return (scores.softmax(-1),)
        return (scores.sigmoid() if self.final == "sigmoid" else scores,)
