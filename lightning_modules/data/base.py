"""What the command line, the callbacks and the tasks may ask of any task's data."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule

from lightning_modules.data.batches import ExampleLoader

SPLITS = ("train", "valid", "test")
SPLITS_OF_STAGE = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ("predict",)}


class TaskDataModule(LightningDataModule):
    """Base class of all data modules.

    A data module must say which splits it has (:meth:`has_test`), read what a stage needs (``setup``, called before a
    run's folder is made, so that bad data is told first), and give the loaders. What a model needs to be used later - a
    vocabulary, a scaling - is its ``state_dict``, which goes into every checkpoint; ``load_state_dict`` puts it in the
    place of what the data itself would give. A subclass adds to both of them.
    """

    # Options that act when training begins: for a run that goes on, what they came to is in its checkpoint's state.
    settled: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._order_seed: int | None = None

    def has_test(self) -> bool:
        """Whether there is a test split."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Figures of the data, as plain values: the ``data`` of a run's summary.json."""
        return {}

    def describe(self) -> list[str]:
        """Lines that say at the start of a run what the data is."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"order_seed": self.order_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._order_seed = state_dict.get("order_seed")

    @classmethod
    def options_of_state(cls, state: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the constructor that a ``state_dict`` tells: what it must be built with to load that state."""
        return {}

    @property
    def rank(self) -> int:
        """This process's number among those that train together."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """The number of processes that train together."""
        return 1 if self.trainer is None else self.trainer.world_size

    def current_epoch(self) -> int:
        """The number of the epoch that is trained."""
        return 0 if self.trainer is None else self.trainer.current_epoch

    @property
    def order_seed(self) -> int:
        """The seed of the order of the examples: that of the run, which a resumed run keeps."""
        if self._order_seed is None:
            self._order_seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # what seed_everything leaves
        return self._order_seed

    def example_loader(
        self,
        examples: Sequence[Any],
        collate: Callable[[list[Any], list[int]], Any],
        *,
        batch_size: int,
        lengths: Sequence[int] | None = None,
        shuffle: bool = False,
        name: str = "examples",
    ) -> ExampleLoader:
        """This process's share of the batches; see :class:`ExampleLoader`. Training shuffles, nothing else does."""
        return ExampleLoader(
            examples,
            batch_size,
            collate,
            lengths=lengths,
            shuffle=shuffle,
            seed=self.order_seed,
            epoch=self.current_epoch,
            rank=self.rank,
            world_size=self.world_size,
            name=name,
        )
