"""What the inspections share of words and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colors, which all kinds of color vision tell apart; line styles and markers differ beside them.
BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK, GRAY = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#808080",
)  # fmt: skip
COLORS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK, GRAY)
STYLES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)), (0, (7, 2, 1, 2)))


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches: at most 10 wide, so that its text can be read where it is shown."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def legend_below(figure: "Figure") -> None:
    """A legend of the figure's first axes under all of it, in as many columns as its labels leave room for."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    inches = 0.7 + 0.085 * max(map(len, labels))  # of a column: the line, and letters
    columns = max(1, min(3, int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, its columns aligned; numbers have four digits that count."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [all(not isinstance(row[k], str) for row in rows) for k in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (x.rjust(w) if right else x.ljust(w) for x, w, right in zip(row, widths, numeric, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if right else "-" * w for w, right in zip(widths, numeric, strict=True)]
    return "\n".join((line(header), line(rule), *map(line, cells)))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def listed(items: Sequence[object], most: int = 6) -> str:
    """``a, b and c``; of many the first."""
    shown = [str(item) for item in items[:most]]
    if len(items) > most:
        return f"{', '.join(shown)} and {len(items) - most} more"
    return " and ".join((", ".join(shown[:-1]), shown[-1])) if len(shown) > 1 else "".join(shown)
