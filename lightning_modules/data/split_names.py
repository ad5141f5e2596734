"""What the names of files and folders say about the split that they hold: train, valid or test."""

import re
from collections.abc import Iterable

SPLITS = ("train", "valid", "test")
# An eval set is the valid set in one field and the test set in another: what else there is decides.
_WORDS = {
    "train": ("train", "training", "trn"),
    "valid": ("valid", "validation", "val", "dev", "devel", "development", "testa"),
    "test": ("test", "tests", "testing", "tst", "testb", "heldout", "holdout"),
    "eval": ("eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
_WORD = "|".join(sorted(_SPLIT_OF_WORD, key=len, reverse=True))
_ONE = re.compile(f"({_WORD})(?:sets?|data|files?|texts?|txt|splits?|corpus)?")
_TWO = re.compile(f"({_WORD})({_WORD})")


def splits_named(name: str) -> set[str]:
    """The splits (``train``, ``valid``, ``test``, or ``eval``) that a file's or folder's name has as a word.

    Words are letters between anything else, in upper or lower case or at a change of case: ``train1.txt``,
    ``wiki.valid.tokens``, ``en_train``, ``test-00000-of-00002``, ``trainData``, ``devset``. ``latest.txt`` names none,
    ``train_test.txt`` and ``trainval.txt`` name two.
    """
    words = set(re.findall("[a-z]+", re.sub("(?<=held|hold)[^a-z](?=out)", "", name.lower())))
    words |= {word.lower() for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    found = (_ONE.fullmatch(word) or _TWO.fullmatch(word) for word in words)
    return {_SPLIT_OF_WORD[word] for match in found if match for word in match.groups()}


def look_alikes(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that differ in nothing but a split's name inside a word, as ``mytrain.txt`` and ``mytest.txt`` do.

    One of the two has ``train``. ``None`` where there are none.
    """
    alike: dict[str, dict[str, str]] = {}
    for name in names:
        lower = re.sub("[0-9]+", "", name.lower())
        for word, split in _SPLIT_OF_WORD.items():
            if word in lower:
                alike.setdefault(lower.replace(word, "", 1), {}).setdefault(split, name)
    for by_split in alike.values():
        others = [name for split, name in by_split.items() if split != "train"]
        if "train" in by_split and any(name != by_split["train"] for name in others):
            return by_split["train"], next(name for name in others if name != by_split["train"])
    return None
