"""Tables of text: columns between commas or tabs."""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".csv", ".tsv", ".tab")


class TableRow(NamedTuple):
    """A row's cells, and the line of the file in which it begins, from 1."""

    line: int
    cells: list[str]


def read_table(file: Path, text: str) -> list[TableRow]:
    """The rows of a table, without empty lines.

    In ``.csv`` files cells are between commas - or semicolons or tabs, where the first line has no comma - and may be
    in quotes, with line breaks inside. In other files they are between tabs, and quotes are characters like others.

    Args:
        file: where the text is from.
        text: with ``\\n`` at the lines' ends.

    Raises:
        ValueError: a row has more or fewer cells than the first, or a quote is not closed.
    """
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    if file.suffix.lower() == ".csv":
        first_line = text.lstrip("\n").partition("\n")[0]
        options = {"delimiter": next((mark for mark in ",;\t" if mark in first_line), ","), "strict": True}
    reader = csv.reader(io.StringIO(text, newline=""), **options)
    rows: list[TableRow] = []
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if rows and len(cells) != len(rows[0].cells):
                    raise ValueError(
                        f"'{file}', line {line}: want {len(rows[0].cells)} columns, as in line {rows[0].line}, "
                        f"got {len(cells)}"
                    )
                rows.append(TableRow(line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"'{file}', line {line}: a cell that begins there cannot be read: {error}") from None
    return rows
