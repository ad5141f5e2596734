"""Batches that continue one another, for training with the state carried over (truncated backpropagation)."""

from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor


class ContiguousLoader:
    """Reads a long text in ``batch_size`` columns side by side, ``sequence_length`` steps at a time.

    The text is cut into ``batch_size`` equal stretches, the columns; what is left over at the end (fewer tokens than
    columns) is not read. Column ``b`` of a batch continues column ``b`` of the batch before, so the state an LSTM
    ends one batch with is the state it begins the next one with. The last batch may be shorter than the others.

    Yields pairs of int64 ``[T, B]``: the tokens, and the tokens that follow them.

    Under distributed training each rank reads its own columns (``B = batch_size / world_size``), so all ranks
    together read what one process would. The order never changes and takes no random numbers.

    ``state_dict`` is the place in the text, and of which text and columns it is the place. A loader of the same columns
    goes on at that step exactly, with another ``sequence_length`` too; any other begins at its beginning, and
    ``changed`` says why.

    Args:
        tokens: int64 [N].
        batch_size: columns over all ranks, a multiple of ``world_size``.
        sequence_length: steps of a batch.
        name: what the text is called in an error.

    Attributes:
        next_batch: the number of the batch that the next epoch begins with, 0 unless a state has been loaded.
        begins_anew: whether a state was loaded whose place is not one of this text in these columns.
        changed: what differs from the loader whose state was loaded, in words; empty where nothing does.
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
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.begins_anew, self.changed = False, ""
        self._tokens = tokens
        self._start = 0  # the step of the columns at which the next epoch begins
        self._position = 0  # the step up to which the present epoch has given out its batches

    def __len__(self) -> int:
        return -(-(len(self.columns) - 1) // self.sequence_length)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # This runs when the first batch is asked for: Lightning makes the iterator before it is known where to begin.
        self._position, self._start = self._start, 0
        last = len(self.columns) - 1
        while self._position < last:
            begin = self._position
            end = min((begin // self.sequence_length + 1) * self.sequence_length, last)
            self._position = end
            yield self.columns[begin:end], self.columns[begin + 1 : end + 1]

    @property
    def num_tokens(self) -> int:
        """The number of predictions in one epoch, this rank's."""
        return (len(self.columns) - 1) * self.columns.shape[1]

    @property
    def next_batch(self) -> int:
        return self._start // self.sequence_length

    def restart(self) -> None:
        """Lets the next epoch begin with the first batch, whatever state was loaded."""
        self._start = self._position = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "position": self._position,
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "tokens": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "position" not in state:  # of an older version
            state = {"position": state["batches"] * state.get("sequence_length", self.sequence_length), **state}
        self.changed = ", ".join(
            f"--data.{name} was {state[name]} and is {getattr(self, name)}"
            for name in ("batch_size", "sequence_length")
            if state.get(name, getattr(self, name)) != getattr(self, name)
        )
        self.begins_anew = state.get("batch_size", self.batch_size) != self.batch_size
        if state.get("tokens", self._fingerprint) != self._fingerprint:
            self.begins_anew, self.changed = True, "its tokens are others"
        # After a finished epoch the next one begins at its beginning.
        goes_on = not self.begins_anew and state["position"] < len(self.columns) - 1
        self._start = self._position = state["position"] if goes_on else 0

    @cached_property
    def _fingerprint(self) -> str:
        return blake2b(self._tokens.contiguous().numpy(), digest_size=16).hexdigest()


def entropy(tokens: Tensor) -> float:
    """The entropy in nats of the tokens' own frequencies: the loss of the best guess that ignores the context."""
    frequencies = torch.bincount(tokens).double() / len(tokens)
    frequencies = frequencies[frequencies > 0]
    return float(-(frequencies * frequencies.log()).sum())
