"""Time series in tables: a row a step, a column a quantity."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.data.tables import read_table
from lightning_modules.data.text_files import read_files

GAPS = ("", "na", "n/a", "nan", "null", "none", "?", "-")  # how tables write that a value is missing


class SeriesTable(NamedTuple):
    """A table as it was read.

    Attributes:
        name: what errors call it.
        columns: each column's cells, in the order of the rows.
        lines: the line of each row in the file, from 1.
    """

    name: str
    columns: dict[str, list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """A column's cells. Raises ValueError where there is none of this name."""
        if name not in self.columns:
            raise ValueError(f"'{self.name}' has no column '{name}'; want one of {', '.join(self.columns)}")
        return self.columns[name]

    def numbers(self, name: str) -> Tensor:
        """A column's values, float64 [N], NaN where one is missing.

        Raises:
            ValueError: a cell is neither a finite number nor a gap.
        """
        cells = self.column(name)
        values = torch.empty(len(cells), dtype=torch.float64)
        for row, cell in enumerate(cells):
            value = number(cell)
            if value is None:
                place = f"'{self.name}', line {self.lines[row]}"
                raise ValueError(f"{place}: column '{name}' must be a finite number or empty, got {cell!r}")
            values[row] = value
        return values

    def is_numeric(self, name: str) -> bool:
        """Whether all cells of a column are numbers or gaps, and one is a number."""
        values = [number(cell) for cell in self.column(name)]
        known = [value for value in values if value is not None]
        return len(known) == len(values) and not all(math.isnan(value) for value in known)


def number(cell: str) -> float | None:
    """The number that a cell holds; NaN for a gap, ``None`` for anything else, and for what float32 cannot hold."""
    text = cell.strip()
    if text.lower() in GAPS:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= np.finfo(np.float32).max else None


def read_series(file: Path, encoding: str = "utf-8") -> SeriesTable:
    """The table of a file whose first line names the columns; lines before it that begin with ``#`` are comments.

    Raises:
        ValueError: the file has no rows, names a column twice or by a number, or is no table.
    """
    text = read_files([file], encoding)
    comments = 0
    while text.startswith("#"):
        _, _, text = text.partition("\n")
        comments += 1
    rows = read_table(file, text)
    if len(rows) < 2:
        raise ValueError(f"'{file}' must have a line that names the columns and rows below it, got {len(rows)} lines")
    names = [cell.strip() for cell in rows[0].cells]
    if any((value := number(name)) is not None and not math.isnan(value) for name in names):
        raise ValueError(f"'{file}', line {rows[0].line + comments}: want the columns' names, got {', '.join(names)}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{file}', line {rows[0].line + comments}: the column '{twice}' is named twice")
    cells = zip(*(row.cells for row in rows[1:]), strict=True)
    columns = {name: list(column) for name, column in zip(names, cells, strict=True)}
    return SeriesTable(str(file), columns, [row.line + comments for row in rows[1:]])


def next_times(times: Sequence[str], count: int) -> list[str]:
    """The times of the next ``count`` steps, where the last ones go on evenly; else ``+1``, ``+2``, ...

    Times are numbers, dates or dates with a time as in ISO 8601, or months (``2024-05``).
    """
    unknown = [f"+{k + 1}" for k in range(count)]
    recent = [time.strip() for time in times[-3:]]
    if len(recent) < 2:
        return unknown
    try:
        if all(number(time) is not None for time in recent):
            values = np.array([float(time) for time in recent])
        else:
            values = np.array(recent, dtype="datetime64")
    except ValueError:
        return unknown
    steps = np.diff(values)
    if any(step != steps[-1] for step in steps) or np.isnan(values).any():
        return unknown
    following = [values[-1] + steps[-1] * (k + 1) for k in range(count)]
    if values.dtype.kind == "f":
        return [f"{value:g}" for value in following]
    separator = " " if " " in recent[-1] else "T"
    return [str(value).replace("T", separator) for value in following]
