"""What a tagger is judged by: entities found whole, with the right type."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.data.tag_schemes import entities


def count_entities(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]], types: Sequence[str]) -> Tensor:
    """The entities of sentences' tags by type, int64 [types, 3]: found rightly, found, and there.

    An entity is found rightly if its type, its first and its last token are right.
    """
    position = {type_: k for k, type_ in enumerate(types)}
    counts = torch.zeros(len(types), 3, dtype=torch.int64)
    for ours, theirs in zip(predicted, gold, strict=True):
        found, there = set(entities(ours)), set(entities(theirs))
        for column, some in enumerate((found & there, found, there)):
            for type_, *_ in some:
                counts[position[type_], column] += 1
    return counts


class EntityScore(Metric):
    """Precision, recall or F1 of entities, from the sums of :func:`count_entities` over all batches.

    They are 0 where there is nothing to divide by, as seqeval has it.

    Args:
        num_types: number of types.
        score: which of the three.
        type_: position of the one type that counts; all if not given (the micro average).
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(
        self, num_types: int, score: Literal["precision", "recall", "f1"], type_: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.score, self.type_ = score, type_
        self.add_state("counts", torch.zeros(num_types, 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: Tensor) -> None:
        self.counts += counts.to(self.counts.device)

    def compute(self) -> Tensor:
        counts = self.counts.sum(0) if self.type_ is None else self.counts[self.type_]
        return entity_scores(counts)[self.score]


def entity_scores(counts: Tensor) -> dict[str, Tensor]:
    """Precision, recall and F1, float64 [...], of counts [..., 3] as :func:`count_entities` gives them."""
    right, found, there = counts.double().unbind(-1)
    divisors = {"precision": found, "recall": there, "f1": (found + there) / 2}
    return {name: torch.where(divisor > 0, right / divisor.clamp(min=0.5), 0.0) for name, divisor in divisors.items()}
