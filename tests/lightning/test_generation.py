"""Sampling: the distributions against known ones, the text that comes of them."""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.data import Vocabulary
from lightning_modules.generation import generate, next_token_distribution

LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()  # the probabilities are their exponentials


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [p * p / 0.30 for p in (0.1, 0.4, 0.2, 0.3)]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 10}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 3, "top_p": 0.75}, [0, 4 / 7, 0, 3 / 7]),  # of the three 4/9, 3/9, 2/9, two reach 0.75
        ({"temperature": 0.5, "top_k": 2}, [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_known_distributions(options: dict, expected: list[float]) -> None:
    probabilities = next_token_distribution(LOGITS, **options)
    assert probabilities.tolist() == pytest.approx(expected, abs=1e-6)
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_high_temperature_is_uniform_and_ties_keep_the_lower_id() -> None:
    assert next_token_distribution(LOGITS, temperature=1e6).tolist() == pytest.approx([0.25] * 4, abs=1e-5)
    assert next_token_distribution(torch.zeros(4), top_k=2).tolist() == [0.5, 0.5, 0, 0]
    assert next_token_distribution(torch.tensor([-torch.inf, 1.0, -torch.inf]), top_p=0.9).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_arguments_are_told(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next_token_distribution(LOGITS, **options)


class Bigrams(nn.Module):
    """A net whose prediction after a token is a row of ``logits``; its state counts the tokens it has seen."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen = 0

    def forward(self, tokens: Tensor, state: int | None = None) -> tuple[Tensor, int]:
        assert not self.training
        assert state == (self.seen or None)
        self.seen += tokens.numel()
        return self.logits[tokens], self.seen


def test_text_follows_the_predictions() -> None:
    """a is followed by b three times in four and by c else; both are followed by a."""
    vocabulary = Vocabulary("char", ["<unk>", "a", "b", "c"])
    never = -1e9
    rows = torch.tensor([[0.0] * 4, [9.0, math.log(3), 0.0, 0.0], [9.0, 0, never, never], [9.0, 0, never, never]])
    rows[1, 1] = never
    rows[1, 2] = math.log(3)
    net = Bigrams(rows).train()
    text = generate(net, vocabulary, prompt="ca", length=4001, seed=1)
    assert net.training
    assert text.startswith("ca")
    assert len(text) == 4003
    pairs = Counter(itertools.pairwise(text))
    assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")}  # and <unk>, likeliest of all, never
    assert abs(pairs["a", "b"] / 2001 - 0.75) < 4 * (0.75 * 0.25 / 2001) ** 0.5


def test_the_seed_decides_and_torchs_generator_is_left_alone() -> None:
    vocabulary = Vocabulary("word", ["<unk>", "<eos>", "x", "y"])
    before = torch.get_rng_state()
    texts = [generate(Bigrams(torch.zeros(4, 4)), vocabulary, length=20, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.get_rng_state().equal(before)
    assert generate(Bigrams(torch.zeros(4, 4)), vocabulary, prompt="x y", length=0) == "x y "
    with pytest.raises(ValueError, match="length must be at least 0"):
        generate(Bigrams(torch.zeros(4, 4)), vocabulary, length=-1)
