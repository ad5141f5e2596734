"""Batches that continue one another, for training with the state carried over (truncated backpropagation)."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from random import Random
from typing import Any

import torch
from torch import Tensor

SHORTEST = 5  # steps, of a batch of random length


class ContiguousLoader:
    """Reads a long text in ``batch_size`` columns side by side, ``sequence_length`` steps at a time.

    The text is cut into ``batch_size`` equal stretches, the columns; what is left over at the end (fewer tokens than
    columns) is not read. Column ``b`` of a batch continues column ``b`` of the batch before, so the state an LSTM
    ends one batch with is the state it begins the next one with. The last batch may be shorter than the others.

    Yields pairs of int64 ``[T, B]``: the tokens, and the tokens that follow them.

    With ``random_length`` the steps of a batch are drawn anew in every epoch (Merity et al. 2018, section 5), so that
    the places where backpropagation is cut off move: see :func:`random_lengths`. All epochs have as many batches.

    Under distributed training each rank reads its own columns (``B = batch_size / world_size``), so all ranks
    together read what one process would. The order never changes; the lengths are a function of ``seed`` and the epoch.

    ``state_dict`` is the place in the text, and of which text and columns it is the place. A loader of the same columns
    goes on at that step exactly, with another ``sequence_length`` too; any other begins at its beginning, and
    ``changed`` says why.

    Args:
        tokens: int64 [N].
        batch_size: columns over all ranks, a multiple of ``world_size``.
        sequence_length: steps of a batch, or around which they are drawn.
        random_length: whether they are drawn.
        seed: of the lengths.
        epoch: gives the number of the epoch.
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
        random_length: bool = False,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
        name: str = "text",
    ) -> None:
        for argument, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
            if value < 1:
                raise ValueError(f"{argument} must be at least 1, got {value}")
        if random_length and sequence_length < 2 * SHORTEST:
            raise ValueError(
                f"sequence_length must be at least {2 * SHORTEST} with random_length, got {sequence_length}"
            )
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
        self.batch_size, self.sequence_length, self.random_length = batch_size, sequence_length, random_length
        self.seed, self.epoch = seed, epoch
        self.begins_anew, self.changed = False, ""
        self._tokens = tokens
        self._start = 0  # the step of the columns at which the next epoch begins
        self._position = 0  # the step up to which the present epoch has given out its batches

    def __len__(self) -> int:
        return len(self.ends(self.epoch()))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # This runs at the first batch: Lightning creates the iterator before the starting position is known.
        self._position, self._start = self._start, 0
        ends = self.ends(self.epoch())
        for end in ends[bisect_right(ends, self._position) :]:
            begin, self._position = self._position, end
            yield self.columns[begin:end], self.columns[begin + 1 : end + 1]

    def ends(self, epoch: int) -> list[int]:
        """The step before which each batch of an epoch ends."""
        last = len(self.columns) - 1
        if not self.random_length:
            return [*range(self.sequence_length, last, self.sequence_length), last]
        return list(accumulate(random_lengths(last, self.sequence_length, self.seed * 1_000_003 + epoch)))

    @property
    def num_tokens(self) -> int:
        """The number of predictions in one epoch, this rank's."""
        return (len(self.columns) - 1) * self.columns.shape[1]

    @property
    def next_batch(self) -> int:
        return bisect_right(self.ends(self.epoch()), self._start)

    def restart(self) -> None:
        """Lets the next epoch begin with the first batch, whatever state was loaded."""
        self._start = self._position = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "position": self._position,
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "random_length": self.random_length,
            "tokens": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "position" not in state:  # of an older version
            state = {"position": state["batches"] * state.get("sequence_length", self.sequence_length), **state}
        self.changed = ", ".join(
            f"--data.{name} was {state[name]} and is {getattr(self, name)}"
            for name in ("batch_size", "sequence_length", "random_length")
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
        content: Any = self._tokens.contiguous().numpy()
        return blake2b(content, digest_size=16).hexdigest()


def random_lengths(steps: int, sequence_length: int, seed: int) -> list[int]:
    """The lengths of the batches that ``steps`` are cut into, drawn as Merity et al. (2018, section 5) do.

    A length is normal with deviation 5 around ``sequence_length``, in one batch of twenty around half of that, and at
    least 5. Their number is that which these lengths give in the mean, for every seed: a trainer's schedules and its
    progress count on epochs of one size. What their sum then lacks, or has too much, is shared out one by one.
    """
    count = max(1, round(steps / (0.975 * sequence_length)))  # 0.95 + 0.05 / 2
    if count == 1:
        return [steps]
    random = Random(seed)
    means = [sequence_length if random.random() < 0.95 else sequence_length / 2 for _ in range(count)]
    lengths = [max(SHORTEST, int(random.gauss(mean, 5))) for mean in means]
    while missing := steps - sum(lengths):
        for k in random.sample(range(count), min(abs(missing), count)):
            lengths[k] = max(SHORTEST, lengths[k] + (1 if missing > 0 else -1))
    return lengths


def entropy(tokens: Tensor) -> float:
    """The entropy in nats of the tokens' own frequencies: the loss of the best guess that ignores the context."""
    frequencies = torch.bincount(tokens).double() / len(tokens)
    frequencies = frequencies[frequencies > 0]
    return float(-(frequencies * frequencies.log()).sum())
