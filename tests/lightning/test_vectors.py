"""Pretrained word vectors from files in GloVe's text format."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules.data.vectors import read_vectors

GLOVE = """\
the 0.5 -1 2e-1
cat 1 2 3
. . . 4 5 6
Paris 7 8 9
paris 0 0 1
cat 9 9 9
œuvre 3 2 1
"""


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    path = tmp_path / "glove.txt"
    path.write_text(GLOVE, encoding="utf-8")
    return path


def test_vectors_of_a_vocabulary(glove: Path) -> None:
    tokens = ["<unk>", "cat", "Paris", "PARIS", "The", "œuvre", ". . .", "dog"]
    vectors = read_vectors(glove, tokens)
    assert vectors.found.tolist() == [False, True, True, True, True, True, True, False]
    expected = [[0, 0, 0], [1, 2, 3], [7, 8, 9], [0, 0, 1], [0.5, -1, 0.2], [3, 2, 1], [4, 5, 6], [0, 0, 0]]
    assert vectors.weight.equal(torch.tensor(expected))
    assert vectors.describe("glove.txt") == (
        "vectors: 6 of the vocabulary's 8 tokens have one of 3 numbers in 'glove.txt', 2 have none and begin at random"
    )


@pytest.mark.parametrize("change", ["7 3\n{}", "\ufeff{}", "{}\n\n"])
def test_what_other_programs_write_around_them_is_harmless(glove: Path, change: str) -> None:
    expected = read_vectors(glove, ["cat", "the"])
    glove.write_bytes(change.format(GLOVE).replace("\n", "\r\n").encode())
    found = read_vectors(glove, ["cat", "the"])
    assert found.weight.equal(expected.weight)
    assert found.found.all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "' has no vectors: want a word and its numbers a line"),
        ("the cat sat\n", "', line 1: want a word and its numbers, each after one space"),
        ("the\ncat\n", "', line 1: want a word and its numbers, each after one space"),
        ("the 1 2\nof 1\n", "', line 2: want a word and 2 numbers, as in the first line"),
        ("the 1 2\ncat 1 nan\n", "', line 2: want a word and 2 finite numbers"),
        ("the 1 2\ncat 1 x\n", "', line 2: want a word and 2 finite numbers"),
        ("PK\x03\x04", "' is a zip archive, not vectors in text: unpack or convert it"),
        ("the 1 2\n", "' has a vector for none of the 1 tokens of the vocabulary"),
    ],
)
def test_a_bad_file_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="bad") as error:
        read_vectors(path, ["cat"])
    assert str(error.value) == f"'{path}{sentence}"


def test_an_embedding_begins_with_them(glove: Path) -> None:
    torch.manual_seed(0)
    tokens = ["<unk>", "cat", "the", *(f"unknown{k}" for k in range(1000))]
    vectors = read_vectors(glove, tokens)
    embedding = nn.Embedding(len(tokens), 3)
    vectors.copy_to(embedding)
    assert embedding.weight[1:3].equal(vectors.weight[1:3])
    others, known = embedding.weight[3:].detach(), vectors.weight[1:3]
    assert float(others.mean()) == pytest.approx(float(known.mean()), abs=0.1)
    assert float(others.std()) == pytest.approx(float(known.std()), rel=0.1)
    with pytest.raises(ValueError, match=r"the embedding must be as the vectors, \[1003, 3\], got \[1003, 4\]"):
        vectors.copy_to(nn.Embedding(len(tokens), 4))
