"""The vocabulary: tokens to ids and back, for characters and for words."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

UNKNOWN = "<unk>"  # id 0, at both levels
END_OF_LINE = "<eos>"  # at word level; at character level the line break stands for itself
LEVELS = ("char", "word")


class Vocabulary:
    """The tokens a model knows, by id. Id 0 is ``<unk>``, which every unknown token becomes.

    Args:
        level: ``"char"`` or ``"word"``: what the tokens are. For :meth:`encode` words are what stands between white
            space, and each line ends with ``<eos>``.
        tokens: all tokens in the order of their ids, without doubles, the first being ``<unk>``.

    Raises:
        ValueError: for another level, doubles, or a first token that is not ``<unk>``.
    """

    def __init__(self, level: str, tokens: Sequence[str]) -> None:
        if level not in LEVELS:
            raise ValueError(f"level must be 'char' or 'word', got {level!r}")
        if not tokens or tokens[0] != UNKNOWN or not all(isinstance(token, str) for token in tokens):
            raise ValueError(f"a vocabulary is a list of strings that begins with {UNKNOWN!r}")
        self.level = level
        self.tokens = list(tokens)
        self.ids = {token: position for position, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise ValueError("a vocabulary names every token once")

    @classmethod
    def build(cls, text: str, level: str, max_size: int | None = None, min_count: int = 1) -> "Vocabulary":
        """The vocabulary of ``text``: the most frequent tokens first, equally frequent ones in alphabetical order.

        ``max_size`` bounds the number of ids, the special tokens included; ``None`` keeps every token that the text has
        at least ``min_count`` times.
        """
        special = [UNKNOWN, END_OF_LINE] if level == "word" else [UNKNOWN]
        return cls.from_tokens(tokenize(text, level), level, max_size, min_count, special)

    @classmethod
    def from_tokens(
        cls,
        tokens: Iterable[str],
        level: str,
        max_size: int | None = None,
        min_count: int = 1,
        special: Sequence[str] = (UNKNOWN,),
    ) -> "Vocabulary":
        """The vocabulary of a text that is split into tokens already; see :meth:`build`.

        Tokens with fewer than ``min_count`` occurrences are left out, so that a model sees ``<unk>`` in training. The
        tokens of ``special``, which begin the vocabulary, are always in.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        if max_size is not None and max_size <= len(special):
            raise ValueError(f"max_vocab must be more than the {len(special)} special tokens, got {max_size}")
        counts = Counter(tokens)
        for token in special:
            counts.pop(token, None)
        frequent = [token for token, count in counts.items() if count >= min_count]
        if counts and not frequent:
            raise ValueError(f"min_count must leave a token, and the text has none {min_count} times")
        ranked = sorted(frequent, key=lambda token: (-counts[token], token))
        return cls(level, [*special, *ranked[: None if max_size is None else max_size - len(special)]])

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and (self.level, self.tokens) == (other.level, other.tokens)

    def encode(self, text: str) -> Tensor:
        """The ids of ``text``'s tokens, int64 [N]."""
        return self.encode_tokens(tokenize(text, self.level))

    def encode_tokens(self, tokens: Iterable[str]) -> Tensor:
        """The ids of tokens, int64 [N]."""
        return torch.tensor([self.ids.get(token, 0) for token in tokens], dtype=torch.int64)

    def unknown_tokens(self, text: str) -> list[str]:
        """The tokens of ``text`` that become ``<unk>``, each once."""
        return [token for token in dict.fromkeys(tokenize(text, self.level)) if token not in self.ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; words are joined with spaces, and ``<eos>`` becomes a line break."""
        tokens = [self.tokens[position] for position in ids]
        if self.level == "char":
            return "".join(tokens)
        return " ".join("\n" if token == END_OF_LINE else token for token in tokens).replace(" \n ", "\n")

    def state_dict(self) -> dict[str, Any]:
        """What ``Vocabulary(**state)`` needs to build this one again: plain strings, for a checkpoint."""
        return {"level": self.level, "tokens": self.tokens}


def tokenize(text: str, level: str) -> Sequence[str]:
    """The characters of ``text``, or its words with an ``<eos>`` at every line's end."""
    if level == "char":
        return text
    lines = text.removesuffix("\n").split("\n") if text else []
    return [token for line in lines for token in (*line.split(), END_OF_LINE)]
