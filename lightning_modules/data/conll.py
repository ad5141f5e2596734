"""Files in CoNLL columns: a token a line with its tag in the last column, and a blank line between sentences."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_modules.data.tag_schemes import is_tag
from lightning_modules.data.text_files import read_files

_DOCUMENT = "-DOCSTART-"  # CoNLL-2003's line between documents


class Sentence(NamedTuple):
    """A sentence of a file.

    Attributes:
        tokens: its tokens, at least one.
        tags: of the tokens, as the file has them; ``None`` if they were not requested.
        rows: the tokens' lines.
        file: where they come from, as shown in messages.
        line: the first token's line there, from 1; the others follow without a gap.
    """

    tokens: list[str]
    tags: Any  # list[str], or None
    rows: list[str]
    file: str
    line: int

    def place(self, token: int) -> str:
        """Where a token stands."""
        return f"'{self.file}', line {self.line + token}"


def read_sentences(files: Sequence[Path], encoding: str = "utf-8", tagged: bool = True) -> list[Sentence]:
    """The sentences of files in CoNLL columns.

    The token is the first column and the tag the last one, what lies between is not read. Columns are separated by a
    TAB where a file's first token line has one, else by spaces. Lines ``-DOCSTART-`` part sentences as blank lines do.
    A line that begins with ``# `` (or is a ``#``) before a sentence's first token is a comment, unless it has as many
    columns as the token lines, and a tag, as a token ``#`` has.

    Args:
        files: at least one.
        encoding: of the files.
        tagged: whether the tags are wanted; otherwise lines may be a token alone.

    Raises:
        ValueError: a line has more or fewer columns than the first, an empty token or no tag; a file has no sentence.
    """
    return [sentence for file in files for sentence in parse_sentences(read_files([file], encoding), str(file), tagged)]


def parse_sentences(text: str, name: str, tagged: bool = True) -> list[Sentence]:
    """The sentences of a text in CoNLL columns, which errors call ``name``: see :func:`read_sentences`."""
    lines = text.split("\n")  # other line breaks of Unicode may be tokens
    first = next(
        (k for k, line in enumerate(lines) if line.strip(" \t") and not line.startswith(("#", _DOCUMENT))), None
    )
    if first is None:  # hash signs alone, if anything
        first = next((k for k, line in enumerate(lines) if line.strip(" \t") and not line.startswith(_DOCUMENT)), None)
    if first is None:
        raise ValueError(f"'{name}' has no sentences; want a token{' and its tag' if tagged else ''} a line")
    split = _split_at_tabs if "\t" in lines[first] else _split_at_spaces
    count = len(split(lines[first]))
    if tagged and count < 2:
        raise ValueError(
            f"'{name}', line {first + 1}: want a token and its tag, separated by a TAB or spaces, got {lines[first]!r}"
        )

    def token_lines() -> Iterator[tuple[int, str, list[str]]]:
        """Those of all sentences; no columns for what parts sentences."""
        inside = False
        for number, line in enumerate(lines, 1):
            columns = [] if not line.strip(" \t") or line.startswith(_DOCUMENT) else split(line)
            is_token = len(columns) == count and (not tagged or is_tag(columns[-1]))
            if re.match("#(\\s|$)", line) and not inside and not is_token:
                continue  # a comment
            inside = bool(columns)
            yield number, line, columns

    sentences: list[Sentence] = []
    begins = True
    for number, line, columns in token_lines():
        if not columns:
            begins = True
            continue
        if len(columns) != count:
            raise ValueError(
                f"'{name}', line {number}: want {_columns(count)} as in line {first + 1}, got {len(columns)}: {line!r}"
            )
        if not columns[0]:
            raise ValueError(f"'{name}', line {number}: want a token in the first column, got {line!r}")
        if tagged and not is_tag(columns[-1]):
            raise ValueError(
                f"'{name}', line {number}: want a tag in the last column, O or a prefix (B, I, E, S) and a type "
                f"such as B-PER, got {columns[-1]!r}"
            )
        if begins:
            sentences.append(Sentence([], [] if tagged else None, [], name, number))
            begins = False
        sentence = sentences[-1]
        sentence.tokens.append(columns[0])
        sentence.rows.append(line.rstrip(" \t"))
        if tagged:
            sentence.tags.append(columns[-1])
    return sentences


def _split_at_tabs(line: str) -> list[str]:
    return [column.strip(" ") for column in line.rstrip(" \t").split("\t")]


def _split_at_spaces(line: str) -> list[str]:
    return re.split("[ \t]+", line.strip(" \t"))


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def format_sentence(sentence: Sentence, tags: Sequence[str]) -> str:
    """The lines of a sentence with a tag as one more column, and the blank line after it."""
    separators = (" " if " " in row and "\t" not in row else "\t" for row in sentence.rows)
    rows = zip(sentence.rows, separators, tags, strict=True)
    return "".join(f"{row}{separator}{tag}\n" for row, separator, tag in rows) + "\n"
