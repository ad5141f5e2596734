"""Tags of entities: what BIO, IOB1 and IOBES (BILOU) tags say, and how entities are written as tags."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# What a tag's prefix means; M, L and U are other schemes' names for I, E and S.
_MEANING = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
_TAG = re.compile(f"([{''.join(_MEANING)}])(?:-(.+))?")
SCHEMES = {"bio": "BI", "iobes": "BIES"}  # a scheme's prefixes beside O, in the order of a type's labels

Entity = tuple[str, int, int]  # its type, its first token, and the one after its last


def is_tag(text: str) -> bool:
    """Whether it is ``O``, or a prefix and a type such as ``B-PER``; a prefix alone is of the type ``""``."""
    return text == "O" or _TAG.fullmatch(text) is not None


def entities(tags: Iterable[str]) -> list[Entity]:
    """The entities of a sentence, as CoNLL's own ``conlleval`` reads them.

    BIO (IOB2), IOB1, IOBES and BILOU tags are each read right: an entity begins with B and S, and with I and E where
    none of the same type is open; it ends with E and S, and where another begins or O stands.

    Raises ValueError for what is no tag.
    """
    found: list[Entity] = []
    open_type, start = None, 0
    position = -1
    for position, tag in enumerate(tags):
        prefix, type_ = _split(tag)
        begins = prefix in ("B", "S") or (prefix in ("I", "E") and type_ != open_type)
        if open_type is not None and (begins or prefix == "O"):
            found.append((open_type, start, position))
            open_type = None
        if begins:
            open_type, start = type_, position
        if prefix in ("E", "S"):
            found.append((type_, start, position + 1))
            open_type = None
    if open_type is not None:
        found.append((open_type, start, position + 1))
    return found


def _split(tag: str) -> tuple[str, str]:
    if tag == "O":
        return "O", ""
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"a tag must be O or a prefix and a type, such as B-PER, got {tag!r}")
    return _MEANING[match[1]], match[2] or ""


def to_tags(found: Iterable[Entity], length: int, scheme: str = "bio") -> list[str]:
    """The tags of a sentence of ``length`` tokens with these entities, which must not overlap."""
    tags = ["O"] * length
    for type_, start, end in found:
        suffix = f"-{type_}" if type_ else ""
        tags[start:end] = [f"{prefix}{suffix}" for prefix in _prefixes(end - start, scheme)]
    return tags


def _prefixes(length: int, scheme: str) -> str:
    if scheme == "bio":
        return "B" + "I" * (length - 1)
    return "S" if length == 1 else "B" + "I" * (length - 2) + "E"


def labels_of(types: Sequence[str], scheme: str) -> list[str]:
    """All tags of the scheme in the order of a tagger's labels: ``O``, then each type's."""
    return ["O"] + [f"{prefix}-{type_}" if type_ else prefix for type_ in types for prefix in SCHEMES[scheme]]


def allowed_transitions(num_types: int, scheme: str) -> Tensor:
    """Which label of :func:`labels_of` may follow which, bool [K + 1, K + 1].

    Row K is the beginning of a sentence, column K its end.
    """
    labels = [("O", -1)] + [(prefix, k) for k in range(num_types) for prefix in SCHEMES[scheme]] + [("O", -1)]
    must_end = scheme == "iobes"

    def allowed(before: tuple[str, int], after: tuple[str, int]) -> bool:
        goes_on = after[0] in ("I", "E")
        is_open = before[0] in ("B", "I")
        if goes_on:
            return is_open and before[1] == after[1]
        return not (is_open and must_end)

    return torch.tensor([[allowed(before, after) for after in labels] for before in labels])
