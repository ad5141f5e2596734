"""What the command line, the callbacks and the tasks may ask of any task's data."""

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_modules.data.batches import ExampleLoader
from lightning_modules.resuming import tell

SPLITS = ("train", "valid", "test")
SPLITS_OF_STAGE = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ("predict",)}


class TaskDataModule(LightningDataModule):
    """Base class of all data modules.

    A data module must say which splits it has (:meth:`has_test`), read what a stage needs (``setup``, called before a
    run's folder is created, so that errors in the data are raised first), and provide the loaders. What a model
    needs to be used later, such as a vocabulary or a scaling, is its ``state_dict``, which goes into every checkpoint;
    ``load_state_dict`` then replaces what the data itself would give. A subclass extends both of them.

    A run that goes on with other data than its checkpoint's says so in a line, and begins anew the epoch that it was
    in: :meth:`content` returns what the data is.
    """

    # Options that act when training begins: for a resumed run, their result is in the checkpoint's state.
    settled: tuple[str, ...] = ()
    # Options by which :meth:`content` never becomes another.
    beside_content: tuple[str, ...] = ("batch_size", "predict")

    if TYPE_CHECKING:  # Lightning's own type knows no names

        @property
        def hparams(self) -> Any: ...

    def __init__(self) -> None:
        super().__init__()
        self._order_seed: int | None = None
        self._identity: dict[str, Any] = {}  # of the data that is trained on; a checkpoint's until training begins

    def has_test(self) -> bool:
        """Whether there is a test split."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Figures of the data, as plain values: the ``data`` of a run's summary.json."""
        return {}

    def describe(self) -> list[str]:
        """Lines that say at the start of a run what the data is."""
        return []

    def content(self, split: str) -> Any:
        """What identifies the train or the valid split: tensors and plain values, in lists or tuples.

        By default the examples of its loader; ``None`` where it has none.
        """
        loader = self.train_dataloader() if split == "train" else self.val_dataloader()
        return getattr(loader, "examples", None)

    def begin_training(self) -> bool:
        """Notes what data is trained on, and says in a line where it is not the loaded checkpoint's.

        Returns:
            Whether the train split is another.
        """
        before = self._identity
        options = {name: value for name, value in self.hparams.items() if name not in self.beside_content}
        self._identity = {
            "fingerprints": {split: fingerprint(self.content(split)) for split in SPLITS[:2]},
            "options": {name: _plain(value) for name, value in options.items() if not name.startswith("_")},
        }
        now, others = self._identity["fingerprints"], before.get("fingerprints", {})
        changed = [split for split, value in others.items() if value != now[split]]
        if changed:
            options = self._identity["options"]
            differing = [name for name, value in before["options"].items() if options.get(name, value) != value]
            flags = ", ".join(f"--data.{name}" for name in differing)
            tell(
                f"The {' and the '.join(changed)} data is not the checkpoint's, so that figures before and after are "
                f"of different data; changed: {flags or 'what the files hold'}."
            )
        return "train" in changed

    def state_dict(self) -> dict[str, Any]:
        return {"order_seed": self.order_seed, "identity": self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._order_seed = state_dict.get("order_seed")
        self._identity = state_dict.get("identity", {})  # an older checkpoint has none

    @classmethod
    def options_of_state(cls, state: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments from a ``state_dict``: those needed to load that state."""
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


def fingerprint(content: Any) -> str:
    """A digest of tensors and plain values, in lists or tuples of any depth."""
    digest = blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {list(value.shape)}".encode())
            content: Any = value.contiguous().view(torch.uint8).numpy() if value.dim() else repr(value.item()).encode()
            digest.update(content)
        elif isinstance(value, (list, tuple)) and not isinstance(next(iter(value), None), (str, int, float)):
            digest.update(f"{len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{value!r}\0".encode("utf-8", "surrogatepass"))

    add(content)
    return digest.hexdigest()


def _plain(option: Any) -> Any:
    """An option as a checkpoint may hold it: plain values, and the names of others."""
    if isinstance(option, (list, tuple)):
        return tuple(map(_plain, option))
    return option if option is None or isinstance(option, (str, int, float)) else str(option)
