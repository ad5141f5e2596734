"""Pretrained word vectors, read from files in GloVe's text format."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_modules.data.text_files import not_text


class WordVectors(NamedTuple):
    """The vectors of a vocabulary's tokens.

    Attributes:
        weight: float32 [V, E]; zeros where a token has none.
        found: bool [V], whether a token has one.
    """

    weight: Tensor
    found: Tensor

    def describe(self, path: str) -> str:
        """How many tokens have a vector, in a line."""
        count, total = int(self.found.sum()), len(self.found)
        return (
            f"vectors: {count:,} of the vocabulary's {total:,} tokens have one of {self.weight.shape[1]} numbers in "
            f"'{path}', {total - count:,} have none and begin at random"
        )

    @torch.no_grad()
    def copy_to(self, embedding: nn.Embedding) -> None:
        """Puts the vectors into an embedding [V, E].

        Tokens without one are drawn anew, normal with the mean and deviation of those that have one, so that what the
        model sees of known and unknown tokens is alike.
        """
        if embedding.weight.shape != self.weight.shape:
            raise ValueError(
                f"the embedding must be as the vectors, {list(self.weight.shape)}, got {list(embedding.weight.shape)}"
            )
        known = self.weight[self.found]
        embedding.weight.normal_(known.mean().item(), known.std().item())
        embedding.weight[self.found] = known.to(embedding.weight)


def read_vectors(path: str | Path, tokens: Sequence[str]) -> WordVectors:
    """Reads the vectors of ``tokens`` from a file in GloVe's text format: a word and its numbers a line, UTF-8.

    The words are as they were in training: a token that the file lacks takes the vector of its lower-case form, where
    there is one. A first line with two whole numbers, as word2vec and fastText write it, is no vector. Of a word that
    comes twice the first vector counts. Lines of other words are not taken apart, so that a file of gigabytes is read
    in a minute or so, in little memory.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no vectors, a line has another number of numbers than the first or one that is not finite, or
            no token has a vector.
    """
    if kind := not_text(Path(path).expanduser()):
        raise ValueError(f"'{path}' is {kind}, not vectors in text: unpack or convert it")
    exact = {token.encode(): position for position, token in enumerate(tokens)}
    by_lower_case: dict[bytes, list[int]] = {}
    for position, token in enumerate(tokens):
        if token != token.lower():
            by_lower_case.setdefault(token.lower().encode(), []).append(position)
    found: dict[int, np.ndarray] = {}
    found_in_lower_case: dict[int, np.ndarray] = {}
    size: int | None = None
    for number, line in _lines(path):
        spaces = line.count(b" ")
        if size is None:
            size = spaces
            if size == 0 or _numbers(line.split(b" ")[1:]) is None:
                raise ValueError(f"'{path}', line {number}: want a word and its numbers, each after one space")
        elif spaces < size:
            raise ValueError(f"'{path}', line {number}: want a word and {size} numbers, as in the first line")
        word = line.split(b" ", 1)[0] if spaces == size else line.rsplit(b" ", size)[0]  # a word may have spaces
        place, others = exact.get(word), by_lower_case.get(word, ())
        if place is None and not others:
            continue
        vector = _numbers(line.rsplit(b" ", size)[1:])
        if vector is None:
            raise ValueError(f"'{path}', line {number}: want a word and {size} finite numbers")
        if place is not None:
            found.setdefault(place, vector)
        for other in others:
            found_in_lower_case.setdefault(other, vector)
    if size is None:
        raise ValueError(f"'{path}' has no vectors: want a word and its numbers a line")
    found = found_in_lower_case | found
    if not found:
        raise ValueError(f"'{path}' has a vector for none of the {len(tokens):,} tokens of the vocabulary")
    weight = torch.zeros(len(tokens), size)
    mask = torch.zeros(len(tokens), dtype=torch.bool)
    positions = torch.tensor(sorted(found))
    weight[positions] = torch.from_numpy(np.stack([found[position] for position in sorted(found)]))
    mask[positions] = True
    return WordVectors(weight, mask)


def _lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of the lines that are not empty, without a header of counts; shows the progress."""
    with (
        open(Path(path).expanduser(), "rb") as file,
        tqdm(
            total=os.fstat(file.fileno()).st_size, unit="B", unit_scale=True, desc="vectors", delay=2, disable=None
        ) as progress,
    ):
        for number, line in enumerate(file, 1):
            progress.update(len(line))
            line = line.rstrip()
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if len(counts := line.split()) == 2 and all(count.isdigit() for count in counts):
                    continue
            if line:
                yield number, line


def _numbers(cells: list[bytes]) -> np.ndarray | None:
    """The cells as float32, or ``None`` where one is no finite number."""
    try:
        vector = np.array([float(cell) for cell in cells], dtype=np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None
