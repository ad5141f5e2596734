"""Series of numbers in sktime's ``.ts`` format."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_ts(file: Path, text: str, labeled: bool) -> Iterator[tuple[int, Tensor, str | None]]:
    """The series of a ``.ts`` file: the line's number, the numbers, float32 [T, C], and the label.

    After a header of ``@`` lines up to ``@data`` each line is a series: its channels between colons, a channel's
    numbers between commas, and the label as the last field, where the header says ``@classLabel true``. Lines that
    begin with ``#`` are comments.

    Args:
        file: where the text is from.
        text: with ``\\n`` at the lines' ends.
        labeled: the series must have labels.

    Raises:
        ValueError: with the line, where the text is not such a file, a number is missing or not finite, the channels
            of a series differ in length, or series in their number; where series have time stamps.
    """
    header: dict[str, list[str]] = {}
    has_labels, channels, in_data = False, None, False
    for number, line in enumerate(text.split("\n"), 1):
        line, place = line.strip(), f"'{file}', line {number}"
        if not line or line.startswith("#"):
            continue
        if not in_data:
            if not line.startswith("@"):
                raise ValueError(f"{place}: want a header line, which begins with @, or @data before the series")
            name, *values = line[1:].split()
            in_data = name.lower() == "data"
            header[name.lower()] = values
            if in_data:
                has_labels, channels = _check_header(file, header, labeled)
            continue
        fields = line.split(":")
        label = fields.pop() if has_labels else None
        if label is not None:
            label = label.strip()
            known = header["classlabel"][1:]
            if labeled and known and label not in known:
                raise ValueError(f"{place}: the label {label!r} is none of the header's: {', '.join(known[:10])}")
            if labeled and not label:
                raise ValueError(f"{place}: the label is empty")
        channels = channels or len(fields)
        if len(fields) != channels:
            raise ValueError(f"{place}: want {channels} channels between colons, got {len(fields)}")
        series = [_numbers(place, position, field) for position, field in enumerate(fields, 1)]
        lengths = [len(channel) for channel in series]
        if len(set(lengths)) > 1:
            raise ValueError(f"{place}: the channels of a series must have one length, got {lengths}")
        yield number, torch.from_numpy(np.stack(series, axis=1)), label
    if not in_data:
        raise ValueError(f"'{file}' has no line @data, after which the series of a .ts file begin")


def _check_header(file: Path, header: dict[str, list[str]], labeled: bool) -> tuple[bool, int | None]:
    """Whether there are labels, and the number of channels, where the header says it."""
    if header.get("timestamps", ["false"])[:1] == ["true"]:
        raise ValueError(f"'{file}' has time stamps (@timeStamps true), which are not read; want numbers alone")
    has_labels = [word.lower() for word in header.get("classlabel", ["false"])[:1]] == ["true"]
    if labeled and not has_labels:
        raise ValueError(f"'{file}' has no labels to learn; want a line such as '@classLabel true a b' in its header")
    dimensions = header.get("dimensions") or header.get("dimension") or [""]
    return has_labels, int(dimensions[0]) if dimensions[0].isdigit() else None


def _numbers(place: str, channel: int, field: str) -> np.ndarray:
    """The numbers between a field's commas, float32 [T]."""
    cells = field.split(",") if field.strip() else []
    numbers = np.array([_number(cell) for cell in cells], dtype=np.float32)
    if not np.isfinite(numbers).all():
        position = int(np.isfinite(numbers).argmin())
        raise ValueError(
            f"{place}: want finite numbers between commas, got {cells[position].strip()[:20]!r} as number "
            f"{position + 1} of channel {channel}"
        )
    return numbers


def _number(cell: str) -> float:
    """The cell's number, NaN where it is none that float32 can hold."""
    try:
        number = float(cell)
    except ValueError:
        return np.nan
    return number if abs(number) <= torch.finfo(torch.float32).max else np.nan
