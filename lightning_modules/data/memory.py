"""Tasks of pure memory on generated sequences: the first character over a distance, adding, copying.

Nothing is read: the sequences are made by rule from random numbers. What sequences of one's own look like, for
``predict``, each data module says.
"""

import csv
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.data.base import SPLITS, TaskDataModule
from lightning_modules.data.batches import ExampleLoader
from lightning_modules.data.text_files import read_files

# What a target is: a class after the last step, a number after the last step, or a class after every step.
Target = Literal["class", "number", "classes"]


class Example(NamedTuple):
    """A sequence and what is to be said of it."""

    inputs: Tensor  # float32 [T, I]
    target: Tensor | None  # int64 [] (class), float32 [] (number), int64 [T] (classes); None where it is not known


class MemoryBatch(NamedTuple):
    """Sequences side by side; what lies past the end of one is zero."""

    inputs: Tensor  # float32 [T, B, I]
    lengths: Tensor  # int64 [B]
    targets: Tensor | None  # [B] (class, number), [T, B] (classes); None where they are not known


class GeneratedExamples(Sequence[Example]):
    """Examples that are created on access: each is a function of its number and of a seed.

    Args:
        make: an example from a random generator and the number of its steps.
        lengths: the steps of each.
        seed: two numbers, of the data set and of the split.
        epoch: gives the number of the present epoch, where each has examples of its own.
    """

    def __init__(
        self,
        make: Callable[[np.random.Generator, int], Example],
        lengths: Sequence[int],
        seed: tuple[int, int],
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.make, self.lengths, self.seed, self.epoch = make, lengths, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, position: Any) -> Any:  # by a number alone; a Sequence takes slices too
        length = self.lengths[position]
        return self.make(np.random.default_rng([*self.seed, self.epoch(), position]), length)


class MemoryDataModule(TaskDataModule):
    """Base class of the data of all tasks of memory.

    Every epoch trains on sequences that no epoch before it had, as Hochreiter & Schmidhuber (1997) do; those of valid
    and test are always the same. All are a function of ``seed``, each split's of random numbers of its own.

    A subclass says what a sequence is: :meth:`make`, :meth:`lengths`, the attributes below, and :meth:`read` and
    :meth:`to_inputs` for sequences of one's own.

    Attributes:
        target: see :data:`Target`.
        input_size: numbers a step, I.
        output_size: numbers that the model is to give, O.
        recalled: of classes after every step, how many at the end are what was to be remembered.
        by_distance: of a class after the last step, whether it is a matter of the sequence's length how hard it is.
    """

    target: Target
    input_size: int
    output_size: int
    recalled: int = 0
    by_distance: bool = False

    # What a subclass says --------------------------------------------------------------------------------------------

    @abstractmethod
    def make(self, rng: np.random.Generator, length: int) -> Example:
        """An example of ``length`` steps from random numbers."""

    @abstractmethod
    def lengths(self, split: str) -> list[int]:
        """The numbers of steps of a split's examples, which take turns."""

    def class_name(self, number: int) -> str:
        """What a class is called in predictions and pictures."""
        return str(number)

    @abstractmethod
    def read(self, file: Path) -> list[Tensor]:
        """The inputs, float32 [T, I] each, of the sequences in a file; raises ValueError that names file and line."""

    @abstractmethod
    def to_inputs(self, sequence: Any) -> Tensor:
        """The input, float32 [T, I], of a sequence in memory; raises ValueError where it is none."""

    # The splits ------------------------------------------------------------------------------------------------------

    def has_test(self) -> bool:
        return True

    def examples(self, split: str) -> Sequence[Example]:
        """Those of a split; of train, those of the present epoch."""
        turns, size = self.lengths(split), self.hparams[f"{split}_size"]
        lengths = [turns[k % len(turns)] for k in range(size)]
        seed = (self.hparams.seed, SPLITS.index(split))
        if split == "train":
            return GeneratedExamples(
                self.make, lengths, seed, lambda: self.trainer.current_epoch if self.trainer else 0
            )
        return GeneratedExamples(self.make, lengths, seed)

    def examples_to_predict(self) -> Sequence[Example]:
        """The sequences of the file given with ``--data.predict``, or those of the test split."""
        if self.hparams.predict is None:
            return self.examples("test")
        path = Path(self.hparams.predict).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"data.predict must name a file, and there is none at '{self.hparams.predict}'")
        return [Example(inputs, None) for inputs in self.read(path)]

    def content(self, split: str) -> Any:
        """The first examples of an epoch represent all of them, which are created on access."""
        examples: Any = self.examples(split)
        first = GeneratedExamples(self.make, examples.lengths, examples.seed)  # of epoch 0
        return examples.lengths, [tuple(first[k]) for k in range(min(len(first), 8))]

    def summary(self) -> dict[str, Any]:
        splits = SPLITS if self.has_test() else SPLITS[:2]
        return {"sequences": {split: len(self.examples(split)) for split in splits}}

    # The batches -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads what ``stage`` needs, so that errors in the data are raised before anything else begins."""
        if stage == "predict":
            self.predict_dataloader()

    def collate(self, examples: list[Example], positions: list[int] | None = None) -> MemoryBatch:
        """A batch of examples, all with targets or all without."""
        inputs = pad_sequence([example.inputs for example in examples])
        lengths = torch.tensor([len(example.inputs) for example in examples])
        targets: list[Any] = [example.target for example in examples]
        if targets[0] is None:
            return MemoryBatch(inputs, lengths, None)
        return MemoryBatch(inputs, lengths, pad_sequence(targets) if targets[0].ndim else torch.stack(targets))

    def _loader(self, examples: Sequence[Example], split: str) -> ExampleLoader:
        return self.example_loader(
            examples,
            self.collate,
            batch_size=self.hparams.batch_size,
            lengths=getattr(examples, "lengths", None),
            shuffle=split == "train",
            name=f"{split} sequences",
        )

    def train_dataloader(self) -> ExampleLoader:
        return self._loader(self.examples("train"), "train")

    def val_dataloader(self) -> ExampleLoader:
        return self._loader(self.examples("valid"), "valid")

    def test_dataloader(self) -> ExampleLoader:
        return self._loader(self.examples("test"), "test")

    def predict_dataloader(self) -> ExampleLoader:
        return self._loader(self.examples_to_predict(), "predict")


def check_at_least(low: int, **sizes: int) -> None:
    """Raises ValueError for a size below ``low``, by its name."""
    for name, size in sizes.items():
        if size < low:
            raise ValueError(f"{name} must be at least {low}, got {size}")


# The first character over a distance ----------------------------------------------------------------------------------


class RememberDataModule(MemoryDataModule):
    """The first character of a sequence is to be named after a distance of noise (generated).

    A sequence is one of ``symbols`` characters (``a``, ``b``, ...) and then ``distance`` more of them, all drawn
    uniformly; after the last, the target is the first. So a model must latch what came first and let nothing that comes
    later, though it looks the same, take its place: the problem of Bengio et al. (1994), which Hochreiter &
    Schmidhuber (1997) take up in their experiments 2 and 3, over several distances. Chance is ``1 / symbols``.

    Distances take turns, so that each has the same number of sequences in every split. Short ones teach what the long
    ones need: with distances from 5 to 100 a plain RNN of 64 units was at 100 % of all after 1,000 steps of training,
    with distances from 30 to 100 at chance.

    Sequences of one's own, for ``predict``: a text file of one sequence a line, such as ``cabbahd``.

    Args:
        distances: numbers of steps of noise.
        train_distances: of the train sequences, where these are to take turns over other distances.
        symbols: how many characters there are, at most 26.
        train_size: sequences of an epoch; no epoch has those of another.
        valid_size: sequences of the valid split.
        test_size: sequences of the test split.
        batch_size: sequences of a batch, over all processes.
        seed: of all the sequences.
        predict: a file of sequences to predict; by default those of the test split are.
        encoding: of that file.
    """

    target: Target = "class"
    by_distance = True

    def __init__(
        self,
        distances: list[int] = [30, 50, 100],  # noqa: B006
        train_distances: list[int] | None = None,
        symbols: int = 8,
        train_size: int = 6_400,
        valid_size: int = 1_000,
        test_size: int = 2_000,
        batch_size: int = 64,
        seed: int = 0,
        predict: str | None = None,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__()
        check_at_least(1, train_size=train_size, valid_size=valid_size, test_size=test_size)
        check_at_least(0, seed=seed)
        for name, given in (("distances", distances), ("train_distances", train_distances or distances)):
            if not given or min(given) < 0 or len(set(given)) < len(given):
                raise ValueError(f"{name} must be different numbers of at least 0, got {list(given)}")
        if not 2 <= symbols <= 26:
            raise ValueError(f"symbols must be from 2 to 26, one letter each, got {symbols}")
        self.save_hyperparameters()
        self.input_size = self.output_size = symbols

    def lengths(self, split: str) -> list[int]:
        distances = (split == "train" and self.hparams.train_distances) or self.hparams.distances
        return [1 + distance for distance in distances]

    def make(self, rng: np.random.Generator, length: int) -> Example:
        ids = torch.from_numpy(rng.integers(self.hparams.symbols, size=length))
        return Example(F.one_hot(ids, self.hparams.symbols).float(), ids[0])

    def class_name(self, number: int) -> str:
        return chr(ord("a") + number)

    def to_inputs(self, sequence: str) -> Tensor:
        letters = "".join(map(self.class_name, range(self.hparams.symbols)))
        if not sequence or not set(sequence) <= set(letters):
            raise ValueError(f"a sequence must be of the letters {letters}, got {_shown(sequence)}")
        return F.one_hot(torch.tensor([letters.index(letter) for letter in sequence]), len(letters)).float()

    def read(self, file: Path) -> list[Tensor]:
        return read_lines(file, self.hparams.encoding, self.to_inputs)

    def describe(self) -> list[str]:
        sizes, others = self.summary()["sequences"], self.hparams.train_distances
        distances = ", ".join(map(str, self.hparams.distances))
        trained = f" ({', '.join(map(str, others))} in train)" if others else ""
        return [
            f"generated, by the seed {self.hparams.seed}: the first of {self.hparams.symbols} characters to be named "
            f"after {distances} more of them{trained}; sequences: {_counts(sizes)}; chance is "
            f"{1 / self.hparams.symbols:.1%}"
        ]


# Adding ---------------------------------------------------------------------------------------------------------------


class AddingDataModule(MemoryDataModule):
    """Two marked numbers of a long sequence are to be added (generated).

    Each of the ``length`` steps has a value, uniform in [0, 1), and a marker, which is 1 at one step of the first half
    and at one of the second and 0 elsewhere; after the last step, the target is the sum of the two marked values. The
    problem is Hochreiter & Schmidhuber's (1997, experiment 4), in the form of Le et al. (2015), Arjovsky et al. (2016)
    and Bai et al. (2018). Always saying 1, the mean of the sum, gives an MSE of 1/6 = 0.1667, its variance.

    Sequences of one's own, for ``predict``: a CSV file with the columns ``sequence``, ``value`` and ``marker``, a row a
    step; the steps of a sequence stand together.

    Args:
        length: steps of a sequence, T.
        train_lengths: of the train sequences, where these are to take turns in being of other lengths: long sequences
            are learned sooner beside short ones. Valid and test are of ``length`` alone.
        train_size: sequences of an epoch; no epoch has those of another.
        valid_size: sequences of the valid split.
        test_size: sequences of the test split.
        batch_size: sequences of a batch, over all processes.
        seed: of all the sequences.
        predict: a file of sequences to predict; by default those of the test split are.
        encoding: of that file.
    """

    target: Target = "number"
    input_size, output_size = 2, 1

    def __init__(
        self,
        length: int = 100,
        train_lengths: list[int] | None = None,
        train_size: int = 6_400,
        valid_size: int = 1_000,
        test_size: int = 1_000,
        batch_size: int = 64,
        seed: int = 0,
        predict: str | None = None,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__()
        check_at_least(1, train_size=train_size, valid_size=valid_size, test_size=test_size)
        check_at_least(0, seed=seed)
        check_at_least(2, length=length, train_lengths=min(train_lengths or [length]))
        self.save_hyperparameters()

    def lengths(self, split: str) -> list[int]:
        return (split == "train" and self.hparams.train_lengths) or [self.hparams.length]

    def make(self, rng: np.random.Generator, length: int) -> Example:
        inputs = np.zeros((length, 2), np.float32)
        inputs[:, 0] = rng.random(length, np.float32)
        marked = [rng.integers(length // 2), rng.integers(length // 2, length)]
        inputs[marked, 1] = 1
        return Example(torch.from_numpy(inputs), torch.tensor(inputs[marked, 0].sum()))

    def to_inputs(self, sequence: Any) -> Tensor:
        inputs = torch.as_tensor(np.asarray(sequence), dtype=torch.float32)
        if inputs.ndim != 2 or inputs.shape[1] != 2 or not len(inputs):
            raise ValueError(f"a sequence must be [T, 2], a value and a marker a step, got {list(inputs.shape)}")
        if not inputs.isfinite().all():
            raise ValueError("a sequence must be of finite numbers, got NaN or infinity")
        return inputs

    def read(self, file: Path) -> list[Tensor]:
        columns = ["sequence", "value", "marker"]
        table = csv.reader(_lines(file, self.hparams.encoding))
        if (header := next(table, [])) != columns:
            raise ValueError(
                f"'{file}', line 1: the columns must be {','.join(columns)}, got {_shown(','.join(header))}"
            )
        sequences: dict[str, list[list[float]]] = {}
        last = None
        for row in table:
            where = f"'{file}', line {table.line_num}"
            if not row:
                continue
            if len(row) != 3:
                raise ValueError(f"{where}: there must be 3 columns, got {len(row)}")
            if row[0] != last and row[0] in sequences:
                raise ValueError(f"{where}: the steps of a sequence must stand together, and {row[0]!r} begins again")
            last = row[0]
            try:
                step = [float(number) for number in row[1:]]
            except ValueError:
                raise ValueError(f"{where}: value and marker must be numbers, got {','.join(row[1:])}") from None
            if not (np.abs(step) <= np.finfo(np.float32).max).all():  # NaN too
                raise ValueError(f"{where}: value and marker must be finite, got {','.join(row[1:])}")
            sequences.setdefault(last, []).append(step)
        if not sequences:
            raise ValueError(f"'{file}' has no sequences")
        return [self.to_inputs(sequence) for sequence in sequences.values()]

    def describe(self) -> list[str]:
        sizes = self.summary()["sequences"]
        return [
            f"generated, by the seed {self.hparams.seed}: the sum of two marked numbers of {self.hparams.length}; "
            f"sequences: {_counts(sizes)}; always saying 1 gives an MSE of 0.1667"
        ]


# Copying --------------------------------------------------------------------------------------------------------------


class CopyingDataModule(MemoryDataModule):
    """Symbols are to be repeated after a delay (generated).

    As Arjovsky et al. (2016) have it, after Hochreiter & Schmidhuber (1997): a sequence is ``recalled`` symbols, each
    uniform in 1 to 8; ``delay - 1`` blanks (0); a delimiter (9); and ``recalled`` blanks. The target is a blank
    at every step but the last ``recalled``, and there the symbols in their order. The loss is the mean over all
    ``delay + 2 * recalled`` steps, and ``recalled * ln(8) / (delay + 2 * recalled)`` without memory, at best; the
    accuracy is that of the recalled symbols alone.

    Sequences of one's own, for ``predict``: a text file of one sequence a line, in digits as above; what the model says
    at its last ``recalled`` steps is the prediction.

    Args:
        delay: T of Arjovsky et al.
        recalled: symbols of a sequence.
        train_delays: of the train sequences, where these are to take turns in being of other delays. Valid and test are
            of ``delay`` alone.
        train_size: sequences of an epoch; no epoch has those of another.
        valid_size: sequences of the valid split.
        test_size: sequences of the test split.
        batch_size: sequences of a batch, over all processes.
        seed: of all the sequences.
        predict: a file of sequences to predict; by default those of the test split are.
        encoding: of that file.
    """

    SYMBOLS, BLANK, DELIMITER = 8, 0, 9
    target: Target = "classes"
    input_size, output_size = 10, 9

    def __init__(
        self,
        delay: int = 100,
        recalled: int = 10,
        train_delays: list[int] | None = None,
        train_size: int = 6_400,
        valid_size: int = 500,
        test_size: int = 1_000,
        batch_size: int = 64,
        seed: int = 0,
        predict: str | None = None,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__()
        check_at_least(1, train_size=train_size, valid_size=valid_size, test_size=test_size)
        check_at_least(0, seed=seed)
        check_at_least(1, delay=delay, recalled=recalled, train_delays=min(train_delays or [delay]))
        self.save_hyperparameters()
        self.recalled = recalled

    def lengths(self, split: str) -> list[int]:
        delays = (split == "train" and self.hparams.train_delays) or [self.hparams.delay]
        return [delay + 2 * self.recalled for delay in delays]

    def make(self, rng: np.random.Generator, length: int) -> Example:
        recalled = self.recalled
        symbols = rng.integers(1, self.SYMBOLS + 1, size=recalled)
        ids = np.full(length, self.BLANK)
        ids[:recalled] = symbols
        ids[length - recalled - 1] = self.DELIMITER
        target = np.full(length, self.BLANK)
        target[-recalled:] = symbols
        return Example(F.one_hot(torch.from_numpy(ids), self.input_size).float(), torch.from_numpy(target))

    def to_inputs(self, sequence: str) -> Tensor:
        digits = "0123456789"
        if len(sequence) <= self.hparams.recalled or not set(sequence) <= set(digits):
            raise ValueError(
                f"a sequence must be more than {self.hparams.recalled} digits, of which the last "
                f"{self.hparams.recalled} give the prediction, got {_shown(sequence)}"
            )
        return F.one_hot(torch.tensor([digits.index(digit) for digit in sequence]), self.input_size).float()

    def read(self, file: Path) -> list[Tensor]:
        return read_lines(file, self.hparams.encoding, self.to_inputs)

    def describe(self) -> list[str]:
        delay, recalled = self.hparams.delay, self.hparams.recalled
        loss = recalled * np.log(self.SYMBOLS) / (delay + 2 * recalled)
        return [
            f"generated, by the seed {self.hparams.seed}: {recalled} of {self.SYMBOLS} symbols to be repeated after a "
            f"delay of {delay}; sequences: {_counts(self.summary()['sequences'])}; without memory the loss is "
            f"{loss:.4f} and the accuracy 12.5%"
        ]


# Files ----------------------------------------------------------------------------------------------------------------


def read_lines(file: Path, encoding: str, to_inputs: Callable[[str], Tensor]) -> list[Tensor]:
    """The sequences of a text file, one a line; empty lines are left out."""
    found = []
    for number, line in enumerate(_lines(file, encoding), 1):
        if not line.strip():
            continue
        try:
            found.append(to_inputs(line.strip()))
        except ValueError as error:
            raise ValueError(f"'{file}', line {number}: {error}") from None
    if not found:
        raise ValueError(f"'{file}' has no sequences")
    return found


def _lines(file: Path, encoding: str) -> list[str]:
    return read_files([file], encoding).split("\n")


def _shown(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")


def _counts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items())
