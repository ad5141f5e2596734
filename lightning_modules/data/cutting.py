"""Cutting one text into train, valid and test, in its order."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, chain

REACH = 100  # characters, as far as a cut may move
_REGIONAL = "".join(map(chr, range(0x1F1E6, 0x1F200)))  # the letters that flags are written with


def cut_text(text: str, shares: Sequence[float], words: bool = False) -> list[str]:
    """Cuts ``text`` into as many pieces as there are shares; joined again, they are the text.

    A cut is where the shares say, counted in characters, moved to the next white space or else the last before, by at
    most ``REACH`` characters and a quarter of the smaller piece beside it. Where there is no white space so near, as in
    a script without spaces, the cut is between two symbols as readers see them.

    Args:
        text: what to cut.
        shares: of the pieces, scaled to sum 1; a piece of share 0 is empty.
        words: tear no word: where a cut finds no white space near, all cuts are where the shares say counted in words.

    Raises:
        ValueError: ``words``, and there are fewer words than pieces.
    """
    total = sum(shares)
    ends = [round(len(text) * part / total) for part in accumulate(shares)]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    cuts: list[int] = []
    for end, *beside in zip(ends[:-1], sizes, sizes[1:], strict=False):
        room = min((size for size in beside if size), default=0)
        near = _white_space_near(text, end, min(REACH, room // 4))
        if near is None and words:
            cuts = _cuts_between_words(text, shares)
            break
        cuts.append(_symbol_start(text, end, min(REACH, room)) if near is None else near)
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _white_space_near(text: str, position: int, reach: int) -> int | None:
    """The next white space, or else the last before ``position``; the text's ends count as such."""
    for candidate in chain(range(position, position + reach + 1), range(position - 1, position - reach - 1, -1)):
        if candidate in (0, len(text)) or text[candidate].isspace():
            return candidate
    return None


def _cuts_between_words(text: str, shares: Sequence[float]) -> list[int]:
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    pieces = sum(share > 0 for share in shares)
    if len(ends) < pieces:
        raise ValueError(
            f"the text has {len(ends)} words (what stands between white space), too few for {pieces} splits; "
            f"--data.level char reads it by characters"
        )
    counts = [round(len(ends) * part / sum(shares)) for part in accumulate(shares)]
    return [ends[count - 1] if count else 0 for count in counts[:-1]]


def _symbol_start(text: str, position: int, reach: int) -> int:
    """The last place up to ``position`` at which no symbol is torn, or ``position`` where none is so near."""
    for candidate in range(position, position - reach, -1):
        if not _joined(text, candidate):
            return candidate
    return position


def _joined(text: str, position: int) -> bool:
    """Whether the characters before and at ``position`` are parts of one symbol: a base and its marks, an emoji."""
    before, after = text[position - 1], text[position]
    if unicodedata.category(after).startswith("M") or "\u200d" in (before, after):  # marks; zero width joiner
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":  # skin tones; tags of flags
        return True
    if "\u1160" <= after <= "\u11ff":  # a Korean syllable's vowel and last consonant
        return True
    # Two letters are one flag.
    return after in _REGIONAL and (position - len(text[:position].rstrip(_REGIONAL))) % 2 == 1
