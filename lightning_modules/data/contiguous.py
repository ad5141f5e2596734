"""Batches that continue one another, for training with the state carried over (truncated backpropagation)."""

from collections.abc import Iterator

import torch
from torch import Tensor


class ContiguousLoader:
    """Reads a long text in ``batch_size`` columns side by side, ``sequence_length`` steps at a time.

    The text is cut into ``batch_size`` equal stretches, the columns; what is left over at the end (fewer tokens than
    columns) is not read. Column ``b`` of a batch continues column ``b`` of the batch before, so the state an LSTM
    ends one batch with is the state it begins the next one with. The last batch may be shorter than the others.

    Yields pairs of int64 ``[T, B]``: the tokens, and the tokens that follow them.

    Under distributed training each rank reads its own columns (``B = batch_size / world_size``), so all ranks
    together read what one process would. The order never changes and takes no random numbers; ``state_dict`` is the
    number of batches given out, which is all that resuming in the middle of an epoch needs.

    Args:
        tokens: int64 [N].
        batch_size: columns over all ranks, a multiple of ``world_size``.
        sequence_length: steps of a batch.
        name: what the text is called in an error.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        sequence_length: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        name: str = "text",
    ) -> None:
        for argument, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
            if value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}")
        if batch_size % world_size:
            raise ValueError(f"batch_size must be a multiple of the {world_size} processes, got {batch_size}")
        steps = len(tokens) // batch_size
        if steps < 2:
            raise ValueError(
                f"the {name} is too short: {len(tokens)} tokens for {batch_size} columns, of which each needs at "
                f"least 2; give more text or a batch_size of at most {len(tokens) // 2}"
            )
        columns = tokens[: steps * batch_size].view(batch_size, steps)
        share = batch_size // world_size
        self.columns = columns[rank * share : (rank + 1) * share].t().contiguous()  # [steps, B]
        self.sequence_length = sequence_length
        self._start = 0  # where the next iteration begins
        self._given = 0  # batches that the present iteration has given out, those before its start included

    def __len__(self) -> int:
        return -(-(len(self.columns) - 1) // self.sequence_length)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self._start = self._start, 0
        self._given = start
        return self._batches(start)

    def _batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        last = len(self.columns) - 1
        for position in range(start, len(self)):
            begin = position * self.sequence_length
            end = min(begin + self.sequence_length, last)
            self._given = position + 1
            yield self.columns[begin:end], self.columns[begin + 1 : end + 1]

    @property
    def num_tokens(self) -> int:
        """The number of predictions in one epoch, this rank's."""
        return (len(self.columns) - 1) * self.columns.shape[1]

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start = int(state["batches"]) % len(self)  # a finished epoch: the next one begins at its beginning


def entropy(tokens: Tensor) -> float:
    """The entropy in nats of the tokens' own frequencies: the loss of the best guess that ignores the context."""
    frequencies = torch.bincount(tokens).double() / len(tokens)
    frequencies = frequencies[frequencies > 0]
    return float(-(frequencies * frequencies.log()).sum())
