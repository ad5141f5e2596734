"""Examples with a label each: what data modules of classifiers share."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.data.base import SPLITS, SPLITS_OF_STAGE, TaskDataModule
from lightning_modules.data.batches import ExampleLoader
from lightning_modules.data.reading import DataFiles, list_files
from lightning_modules.data.text_files import check_encoding
from lightning_modules.data.vectors import WordVectors
from lightning_modules.resuming import tell

NO_LABEL = -1  # the target of an example with an unknown label


class Row(NamedTuple):
    """An example as it was read.

    Attributes:
        content: a text, or numbers [T, C].
        label: ``None`` where the file has none.
        place: the file and the line, for an error.
        file: the name of the file whose text it is, where it is a whole file's.
    """

    content: Any
    label: str | None
    place: str
    file: str | None = None


class LabeledBatch(NamedTuple):
    """A batch of sequences of different lengths.

    Attributes:
        inputs: tokens, int64 [T, B], or numbers, float32 [T, B, C]; zeros past each end.
        lengths: int64 [B].
        targets: the labels' positions among all labels, int64 [B]; ``NO_LABEL`` where there is none.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor


class LabeledDataModule(TaskDataModule):
    """Base class of data modules for classifiers: which examples are in which split, their labels, the batches.

    A subclass says how files are read (:meth:`read`), what there is without files (:meth:`default_rows`) and how an
    example becomes numbers (:meth:`encode`), with what it learns of the train split (:meth:`learn`).

    Which files hold which split says :class:`~lightning_modules.data.reading.DataFiles`. Where one split is cut from
    another, examples of each label go to all of them in the same shares, the same ones in every run; the order within
    a split is that of the files.

    The labels are those of the train split, in numerical or else alphabetical order. They go into every checkpoint,
    and a checkpoint's labels are used in place of those of the data.

    Args:
        path: a file, a folder or a glob.
        train: the same of the train split alone.
        valid: the same of the valid split; without it valid is cut from ``train``.
        test: the same of the test split.
        predict: the same of new data, whose labels need not be known; the test split if not given.
        split: shares of train, valid and test, where one is cut from another; they are scaled to sum 1. A share of 0
            for test leaves the test out.
        batch_size: examples of a batch, over all processes.
        encoding: of the files, unless a byte order mark identifies it.
    """

    @property
    def vocab_size(self) -> int:
        return 0

    @property
    def channels(self) -> int:
        return 0

    step = "step"  # what a sequence is made of, in an error

    def __init__(
        self,
        path: str | None,
        train: str | None,
        valid: str | None,
        test: str | None,
        predict: str | None,
        split: tuple[float, float, float],
        batch_size: int,
        encoding: str,
    ) -> None:
        super().__init__()
        if len(split) != 3 or min(split) < 0 or not split[0] > 0 or not split[1] > 0:
            raise ValueError(f"split must be three shares, of which train and valid are above 0, got {tuple(split)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        check_encoding(encoding)
        self.save_hyperparameters()
        self.files = DataFiles(path, train=train, valid=valid, test=test, not_data=self.not_data)
        self._labels: list[str] | None = None
        self._rows: dict[str, list[Row]] = {}
        self._encoded: dict[str, tuple[list[Tensor], list[int]]] = {}

    # What a subclass says -------------------------------------------------------------------------------------------

    def not_data(self, file: Path) -> str | None:
        """What a file of a folder or a glob is instead of data (``a zip archive``), or ``None`` for data."""
        raise NotImplementedError

    def read(self, files: Sequence[Path], labeled: bool) -> list[Row]:
        """The examples of ``files``; without ``labeled`` they need not have labels."""
        raise NotImplementedError

    def default_rows(self) -> list[Row]:
        """The examples where the user names no files."""
        raise NotImplementedError

    def learn(self) -> None:
        """Learns of the train split what :meth:`encode` needs, unless it is known."""
        raise NotImplementedError

    def encode(self, content: Any) -> Tensor:
        """An example's tokens, int64 [T], or numbers, float32 [T, C]; T may be 0.

        Raises ValueError, without the place, where it cannot be an example.
        """
        raise NotImplementedError

    def initial_vectors(self) -> WordVectors | None:
        """Pretrained vectors that a new model's embedding begins with; ``None`` where there is a checkpoint's."""
        return None

    # The examples ---------------------------------------------------------------------------------------------------

    def rows(self, name: str) -> list[Row]:
        """The examples of a split, or of ``predict``, read once.

        Raises ValueError where there are none.
        """
        if name == "predict":
            return self._rows_to_predict()
        if name not in self._rows:
            files, splits = self._source(name)
            if not splits:
                raise ValueError(f"there are no {name} examples; name some with --data.{name}")
            if "train" in splits:
                self.files.check_disjoint()
            rows = self.read(files, labeled=True) if files else self.default_rows()
            shares = [self.hparams.split[SPLITS.index(split)] for split in splits]
            pieces = cut_by_label([row.label for row in rows], shares)
            for split, piece in zip(splits, pieces, strict=True):
                if split == name or self.hparams[split] is None:  # another's piece, unless it has files of its own
                    self._rows[split] = [rows[position] for position in piece]
            while self.files.notes:
                tell(self.files.notes.pop(0))
        if not self._rows[name]:
            source = self.hparams[name] or self.hparams.path
            raise ValueError(f"the {name} split has no examples" + (f": '{source}'" if source else ""))
        return self._rows[name]

    def _rows_to_predict(self) -> list[Row]:
        if "predict" not in self._rows:
            if self.hparams.predict is None:
                if not self.has_test():
                    raise ValueError("there is nothing to predict: name new data with --data.predict")
                return self.rows("test")
            self._rows["predict"] = self.read(list_files(self.hparams.predict), labeled=False)
            if not self._rows["predict"]:
                raise ValueError(f"'{self.hparams.predict}' has no examples")
        return self._rows["predict"]

    def _source(self, name: str) -> tuple[Sequence[Path], tuple[str, ...]]:
        """The files of a split, and into which splits they are cut; none where there is no such split."""
        files, splits = self.files.source(name) or ([], ())
        if len(splits) > 1 and not self.hparams.split[2] > 0:
            splits = tuple(split for split in splits if split != "test")
        return (files, splits) if name in splits else ([], ())

    def has_test(self) -> bool:
        """Whether there is a test split."""
        return bool(self._source("test")[1])

    def names(self, name: str) -> tuple[str, list[str]]:
        """What the examples of a split are called in predictions: the column's name, and one each."""
        raise NotImplementedError

    @property
    def labels(self) -> list[str]:
        """All labels: a loaded checkpoint's, or else those of the train split.

        Raises ValueError where these are no labels to learn.
        """
        if self._labels is None:
            rows = self.rows("train")
            given: set[Any] = {row.label for row in rows}  # all of the train split are there
            labels: list[str] = sorted(given, key=_natural)
            if len(labels) < 2:
                raise ValueError(f"the train split must have at least two labels, got {labels[0]!r} alone")
            if len(rows) > 20 and len(labels) > 0.9 * len(rows):
                raise ValueError(
                    f"the train split has {len(labels):,} labels for {len(rows):,} examples, {labels[0][:40]!r} among "
                    f"them: these are hardly labels"
                )
            self._labels = labels
        return self._labels

    def encoded(self, name: str) -> tuple[list[Tensor], list[int]]:
        """The sequences of a split and their targets.

        Raises ValueError, with the file and the line, for an empty one or a label that the train split lacks.
        """
        if name not in self._encoded:
            positions: dict[str | None, int] = {label: position for position, label in enumerate(self.labels)}
            self.learn()
            sequences, targets = [], []
            for row in self.rows(name):
                try:
                    sequence = self.encode(row.content)
                except ValueError as error:
                    raise ValueError(f"{row.place}: {error}") from None
                if not len(sequence):
                    raise ValueError(f"{row.place}: an example must have at least one {self.step}")
                if row.label not in positions and name != "predict":
                    raise ValueError(
                        f"{row.place}: the label {row.label!r} is none of the train split's: {_some(self.labels)}"
                    )
                sequences.append(sequence)
                targets.append(positions.get(row.label, NO_LABEL))
            self._encoded[name] = sequences, targets
        return self._encoded[name]

    # What is told of them -------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Examples of each split, by label for train; lengths in train; the valid split's share of one label."""
        names = [name for name in SPLITS if name != "test" or self.has_test()]
        sequences, targets = self.encoded("train")
        valid = Counter(self.encoded("valid")[1])
        lengths = [len(sequence) for sequence in sequences]
        counts = Counter(targets)
        return {
            "examples": {name: len(self.rows(name)) for name in names},
            "labels": {label: counts[position] for position, label in enumerate(self.labels)},
            "lengths": {"least": min(lengths), "median": median(lengths), "most": max(lengths)},
            "valid_majority_share": max(valid.values()) / sum(valid.values()),
        }

    def describe(self) -> list[str]:
        summary = self.summary()
        examples = ", ".join(f"{name} {count:,}" for name, count in summary["examples"].items())
        lengths = summary["lengths"]
        return [
            f"examples: {examples}, of {lengths['least']} to {lengths['most']} {self.step}s, in the median "
            f"{lengths['median']:g}",
            f"labels: {_some([f'{label} ({count:,})' for label, count in summary['labels'].items()])}; always the "
            f"commonest would be right for {summary['valid_majority_share']:.1%} of valid",
        ]

    # The checkpoint -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"labels": list(self.labels)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._labels = list(state_dict["labels"])
        self._encoded.clear()

    # The batches ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads what ``stage`` needs, so that errors in the data are raised before anything else begins."""
        for name in SPLITS_OF_STAGE[stage]:
            self._loader(name)

    def _loader(self, name: str) -> ExampleLoader:
        sequences, targets = self.encoded(name)
        return self.example_loader(
            list(zip(sequences, targets, strict=True)),
            collate,
            batch_size=self.hparams.batch_size,
            lengths=[len(sequence) for sequence in sequences],
            shuffle=name == "train",
            name=f"{name} examples",
        )

    def train_dataloader(self) -> ExampleLoader:
        return self._loader("train")

    def val_dataloader(self) -> ExampleLoader:
        return self._loader("valid")

    def test_dataloader(self) -> ExampleLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ExampleLoader:
        return self._loader("predict")

    def batches_of(self, examples: Sequence[Any]) -> Iterator[LabeledBatch]:
        """Batches, in order, of examples in memory: texts, or numbers [T, C]."""
        if isinstance(examples, str):
            raise TypeError("examples must be a list of texts, got one text")
        encoded = []
        for position, content in enumerate(examples):
            try:
                sequence = self.encode(content)
            except ValueError as error:
                raise ValueError(f"examples[{position}]: {error}") from None
            if not len(sequence):
                raise ValueError(f"examples[{position}] must have at least one {self.step}")
            encoded.append((sequence, NO_LABEL))
        for start in range(0, len(encoded), self.hparams.batch_size):
            yield collate(encoded[start : start + self.hparams.batch_size])


def collate(examples: Sequence[tuple[Tensor, int]], positions: Sequence[int] = ()) -> LabeledBatch:
    """The batch of sequences and their targets."""
    sequences, targets = zip(*examples, strict=True)
    return LabeledBatch(pad_sequence(list(sequences)), torch.tensor([len(x) for x in sequences]), torch.tensor(targets))


def cut_by_label(labels: Sequence[str | None], shares: Sequence[float]) -> list[list[int]]:
    """Cuts examples into pieces that have each label in the same shares, as far as that is possible.

    Which ones go where is drawn with a seed that is always the same. The first piece has at least one of every label.

    Args:
        labels: of the examples.
        shares: of the pieces, scaled to sum 1.

    Returns:
        The positions of each piece's examples, in order.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    order.sort(key=lambda position: str(labels[position]))
    pieces: list[list[int]] = [[] for _ in shares]
    shares = [share / sum(shares) for share in shares]
    seen = set()
    for count, position in enumerate(order, 1):
        # Whichever piece lacks most of its share; one example after another keeps every label's shares near.
        lacking = [share * count - len(piece) for share, piece in zip(shares, pieces, strict=True)]
        piece = lacking.index(max(lacking)) if labels[position] in seen else 0
        seen.add(labels[position])
        pieces[piece].append(position)
    return [sorted(piece) for piece in pieces]


def _natural(label: str) -> tuple[int, float, str]:
    """Numbers in their order, then everything else by the alphabet."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _some(items: Sequence[str], most: int = 10) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
