"""The data module for music: piano rolls of pieces of different lengths."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.data.base import SPLITS, SPLITS_OF_STAGE, TaskDataModule
from lightning_modules.data.batches import ExampleLoader
from lightning_modules.data.piano_rolls import KEYS, MIDI_SUFFIXES, chorales, read_midi, read_npz
from lightning_modules.data.reading import DataFiles, list_files


class MusicBatch(NamedTuple):
    """Pieces side by side; what lies past the end of one is silence."""

    roll: Tensor  # float32 [T, B, 88], 1 where a key sounds
    lengths: Tensor  # int64 [B]


class MusicDataModule(TaskDataModule):
    """Piano rolls: which of the 88 keys of a piano sound in each frame of a piece.

    Files are npz files with ``train_roll`` (uint8 [sum T, 88]) and ``train_len`` (int32), likewise ``valid_`` and
    ``test_``, or ``roll`` and ``len`` for pieces of no split, as Boulanger-Lewandowski et al.'s (2012) data sets are
    kept; and MIDI files (``.mid``, ``.midi``), a piece each, for which the package mido is needed.

    The pieces come from ``path``: from the splits that an npz file holds, or those after which the files of a folder
    are named; where there is no valid split, the whole is cut by ``split`` in an order drawn from a fixed seed.
    ``train``, ``valid`` and ``test`` name the files of a split. With none of these the pieces are generated: chorales
    by rule.

    Args:
        path: an npz file, a MIDI file, a folder or a glob.
        train: the same of the train split; instead of ``path``.
        valid: the same of the valid split; needs ``train``.
        test: the same of the test split.
        predict: the same of pieces to predict; by default those of the test split are.
        split: shares of train, valid and test; they are scaled to sum 1. A share of 0 for test leaves the test out.
        max_length: train pieces of more frames are cut into pieces of at most so many; none by default. Valid and test
            pieces are always whole.
        frames_per_beat: of MIDI files: frames of a quarter note.
        batch_size: pieces of a batch, over all processes.
        seed: of the generated pieces.
    """

    def __init__(
        self,
        path: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        max_length: int | None = None,
        frames_per_beat: int = 2,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(split) != 3 or min(split) < 0 or not split[0] > 0 or not split[1] > 0:
            raise ValueError(f"split must be three shares, of which train and valid are above 0, got {tuple(split)}")
        for name, size in (("max_length", max_length), ("frames_per_beat", frames_per_beat)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if 480 % frames_per_beat:
            raise ValueError(f"frames_per_beat must divide 480, got {frames_per_beat}")
        self.save_hyperparameters()
        self.files = DataFiles(path, train=train, valid=valid, test=test, not_data=_not_music)
        self._pieces: dict[str, list[Tensor]] = {}

    # The pieces ------------------------------------------------------------------------------------------------------

    def pieces(self, split: str) -> list[Tensor]:
        """The piano rolls of a split, uint8 [T, 88] each, read once."""
        if split not in self._pieces:
            if not self.has_split(split):
                raise ValueError(f"there are no {split} pieces; name a file with --data.{split}")
            source = self.files.source(split)
            assert source is not None  # since has_split(split)
            files, splits = source
            if "train" in splits:
                self.files.check_disjoint()
            found = self._read(files, splits) if files else self._cut(chorales(200, self.hparams.seed), SPLITS)
            for name, pieces in found.items():
                if name == split or self.hparams[name] is None:  # another's pieces, unless it has files of its own
                    self._pieces.setdefault(name, pieces)
        return self._pieces[split]

    def has_split(self, split: str) -> bool:
        """Whether there are pieces of a split."""
        files, splits = self.files.source(split) or ([], ())
        if files and (held := self._splits_held) and self.hparams[split] is None and splits == SPLITS:
            return split in held or (split == "valid" and held == {"train"})
        return bool(splits) and (split != "test" or len(splits) == 1 or self.hparams.split[2] > 0)

    @cached_property
    def _splits_held(self) -> set[str]:
        """The splits that the npz file given as ``path`` holds; none where it is no such file, or names none."""
        path = Path(self.hparams.path or "").expanduser()
        if path.suffix != ".npz" or not path.is_file():
            return set()
        return {split for split in read_npz(path) if split is not None}

    def _read(self, files: Sequence[Path], splits: tuple[str, ...]) -> dict[str, list[Tensor]]:
        """The pieces of files, by the splits that they are to be cut into unless they name these themselves."""
        if splits == SPLITS and (held := self._splits_held):
            by_split = {name: pieces for name, pieces in read_npz(files[0]).items() if name in held}
            if "train" not in by_split:
                raise ValueError(f"'{files[0]}' has no train_roll")
            return by_split if "valid" in by_split else by_split | self._cut(by_split["train"], SPLITS[:2])
        pieces: list[Tensor] = []
        for file in files:
            held_here: dict[Any, list[Tensor]] = read_pieces(file, self.hparams.frames_per_beat)
            wanted = held_here.keys() & {None, splits[0]}
            if not wanted:
                raise ValueError(f"'{file}' must have {splits[0]}_roll or roll, got those of {', '.join(held_here)}")
            for name in wanted:
                pieces += held_here[name]
        return self._cut(pieces, splits)

    def _cut(self, pieces: list[Tensor], splits: tuple[str, ...]) -> dict[str, list[Tensor]]:
        shares = [self.hparams.split[SPLITS.index(name)] for name in splits]
        wanted = [name for name, share in zip(splits, shares, strict=True) if share > 0]
        if len(pieces) < len(wanted):
            raise ValueError(
                f"there must be at least {len(wanted)} pieces to cut into {', '.join(wanted)}, got {len(pieces)}"
            )
        order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0)).tolist() if splits[1:] else None
        pieces = pieces if order is None else [pieces[k] for k in order]
        ends = np.round(np.cumsum(shares) / np.sum(shares) * len(pieces)).astype(int)
        for k in range(1, len(ends)):  # a split with a share has at least one
            ends[-1 - k] = min(ends[-1 - k], ends[-k] - (shares[-k] > 0))
        found = {name: pieces[start:end] for name, start, end in zip(splits, [0, *ends], ends, strict=False)}
        return {name: found[name] for name in wanted}

    def pieces_to_predict(self) -> list[Tensor]:
        """The pieces of the files given with ``--data.predict``, or those of the test split."""
        if self.hparams.predict is None:
            return self.pieces("test")
        return [
            piece
            for file in list_files(self.hparams.predict)
            if not _not_music(file)
            for pieces in read_pieces(file, self.hparams.frames_per_beat).values()
            for piece in pieces
        ]

    def has_test(self) -> bool:
        return self.has_split("test")

    # What there is to say -------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Pieces and frames by split, and the NLL of the valid frames by the frequencies of the train split's keys."""
        splits = SPLITS if self.has_test() else SPLITS[:2]
        return {
            "pieces": {split: len(self.pieces(split)) for split in splits},
            "frames": {split: sum(map(len, self.pieces(split))) for split in splits},
            "valid_nll_of_frequencies": self._nll_of_frequencies(),
        }

    def _nll_of_frequencies(self) -> float:
        train, valid = (torch.cat(self.pieces(split)).double() for split in ("train", "valid"))
        frequencies = (train.sum(0) + 0.5) / (len(train) + 1)
        return float(torch.nn.functional.binary_cross_entropy(frequencies.expand_as(valid), valid) * KEYS)

    def describe(self) -> list[str]:
        summary = self.summary()
        sizes = ", ".join(
            f"{split} {count:,} ({summary['frames'][split]:,} frames)" for split, count in summary["pieces"].items()
        )
        generated = all(self.hparams[name] is None for name in ("path", "train", "test"))
        source = f"generated by rule, by the seed {self.hparams.seed}: " if generated else ""
        return [
            *self.files.notes,
            f"{source}pieces: {sizes}; valid NLL by the frequencies of the keys alone: "
            f"{summary['valid_nll_of_frequencies']:.2f} nats a frame",
        ]

    # The batches -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads what ``stage`` needs, so that errors in the data are raised before anything else begins."""
        for split in SPLITS_OF_STAGE[stage]:
            self.pieces_to_predict() if split == "predict" else self.pieces(split)

    def collate(self, pieces: list[Tensor], positions: list[int] | None = None) -> MusicBatch:
        lengths = torch.tensor([len(piece) for piece in pieces])
        return MusicBatch(pad_sequence([piece.float() for piece in pieces]), lengths)

    def _loader(self, pieces: list[Tensor], name: str) -> ExampleLoader:
        return self.example_loader(
            pieces,
            self.collate,
            batch_size=self.hparams.batch_size,
            lengths=[len(piece) for piece in pieces],
            shuffle=name == "train",
            name=f"{name} pieces",
        )

    def train_dataloader(self) -> ExampleLoader:
        pieces = self.pieces("train")
        if (longest := self.hparams.max_length) is not None:
            pieces = [part for piece in pieces for part in piece.split(longest)]
        return self._loader(pieces, "train")

    def val_dataloader(self) -> ExampleLoader:
        return self._loader(self.pieces("valid"), "valid")

    def test_dataloader(self) -> ExampleLoader:
        return self._loader(self.pieces("test"), "test")

    def predict_dataloader(self) -> ExampleLoader:
        return self._loader(self.pieces_to_predict(), "predict")


def read_pieces(file: Path, frames_per_beat: int) -> dict[str | None, list[Tensor]]:
    """The pieces of an npz file or a MIDI file, by the split that its arrays name; ``None`` where they name none."""
    if file.suffix.lower() in MIDI_SUFFIXES:
        return {None: [read_midi(file, frames_per_beat)]}
    return read_npz(file)


def _not_music(file: Path) -> str | None:
    return None if file.suffix.lower() in (".npz", *MIDI_SUFFIXES) else "neither .npz nor MIDI"
