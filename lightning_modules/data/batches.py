"""Batches of examples of different lengths: alike in length, in an order that a run can be resumed in."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

POOL = 50  # batches within which examples are sorted by length


class NoShare:
    """A process's share of a batch that has fewer examples than there are processes: it counts for nothing."""


class ExampleLoader:
    """Gives batches of examples, ``collate(examples, positions)``.

    The order is a function of ``(seed, epoch)``: examples are shuffled, sorted by length within pools of 50 batches,
    cut into batches, and the batches shuffled, so that a batch holds examples of about one length and little padding.
    It takes no random numbers from anywhere else. Without ``shuffle`` the order is that of the examples.

    ``state_dict`` is the number of batches given out and what makes the order. A loader of the same order goes on there
    exactly; any other begins at its beginning, and ``changed`` says why.

    Under distributed training every rank takes its share of each batch, so that all ranks together see the batches
    that one process would. Of a last batch of fewer examples than there are ranks, some get a :class:`NoShare`.

    Args:
        examples: all of them.
        batch_size: examples of a batch, over all ranks.
        collate: makes a batch of a list of examples and their positions in ``examples``.
        lengths: of the examples; ``None`` where they are all alike.
        shuffle: a new order every epoch.
        seed: of the order.
        epoch: returns the number of the epoch that begins; called at its start.
        name: what the examples are called in an error.

    Attributes:
        next_batch: the number of the batch that the next epoch begins with, 0 unless a state has been loaded.
        begins_anew: whether a state was loaded whose place is not one of this order.
        changed: what differs from the loader whose state was loaded, in words; empty where nothing does.

    Raises:
        ValueError: there are no examples, or a rank would have none of any batch.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        batch_size: int,
        collate: Callable[[list[Any], list[int]], Any],
        *,
        lengths: Sequence[int] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
        name: str = "examples",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size % world_size:
            raise ValueError(f"batch_size must be a multiple of the {world_size} processes, got {batch_size}")
        if len(examples) < world_size:
            raise ValueError(f"there must be at least {world_size} {name}, one a process, got {len(examples)}")
        self.examples, self.batch_size, self.collate, self.lengths = examples, batch_size, collate, lengths
        self.shuffle, self.seed, self.epoch = shuffle, seed, epoch
        self.rank, self.world_size = rank, world_size
        self.begins_anew, self.changed = False, ""
        self.next_batch = 0  # where the next iteration begins
        self._given = 0  # batches that the present iteration has given out, those before its start included

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        # This runs at the first batch: Lightning creates the iterator before the starting position is known.
        self._given, self.next_batch = self.next_batch, 0
        for batch in self.order(self.epoch())[self._given :]:
            self._given += 1
            share = batch[self.rank :: self.world_size]
            yield self.collate([self.examples[k] for k in share], share) if share else NoShare()

    def order(self, epoch: int) -> list[list[int]]:
        """The positions of the examples of each batch, over all ranks, in an epoch."""
        count = len(self.examples)
        if not self.shuffle:
            return self._cut(list(range(count)))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator).tolist()
        if self.lengths is None:
            return self._cut(order)
        size = POOL * self.batch_size
        order = [k for i in range(0, count, size) for k in sorted(order[i : i + size], key=self.lengths.__getitem__)]
        batches = self._cut(order)
        return [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]

    def _cut(self, order: list[int]) -> list[list[int]]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def whole(self) -> "ExampleLoader":
        """This loader, but that it gives whole batches, not a rank's share: for what one process does with all."""
        self.rank, self.world_size = 0, 1
        return self

    def restart(self) -> None:
        """Lets the next epoch begin with the first batch, whatever state was loaded."""
        self.next_batch = self._given = 0

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._given, **self._order_depends_on()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        now = self._order_depends_on()
        differing = [name for name, value in now.items() if state.get(name, value) != value]
        self.changed = ", ".join(f"{name} was {state[name]} and is {now[name]}" for name in differing)
        self.begins_anew = bool(differing)
        # After a finished epoch the next one begins at its beginning.
        self.next_batch = self._given = 0 if self.begins_anew else state["batches"] % len(self)

    def _order_depends_on(self) -> dict[str, int]:
        return {"--data.batch_size": self.batch_size, "number of examples": len(self.examples), "seed": self.seed}
