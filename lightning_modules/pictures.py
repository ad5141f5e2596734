"""Pictures with names from the user's data in them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@contextmanager
def plain_names() -> Iterator[None]:
    """While it lasts, matplotlib draws every text as it stands, whatever a matplotlibrc says.

    ``$`` would begin a formula, and one that is none is an error; usetex would need LaTeX. Letters that the font lacks
    are drawn as boxes, without a warning for each.
    """
    import matplotlib

    with matplotlib.rc_context({"text.usetex": False, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from.*")
        yield


def log_y(axes: "Axes") -> None:
    """A logarithmic y axis, whose numbers need no formulas: matplotlib's own are 10 with an exponent."""
    from matplotlib.ticker import LogFormatter

    class PlainNumbers(LogFormatter):
        def __call__(self, value: float, position: int | None = None) -> str:
            return f"{value:g}" if super().__call__(value, position) else ""  # it leaves out where they are many

    axes.set_yscale("log")
    axes.yaxis.set(major_formatter=PlainNumbers(), minor_formatter=PlainNumbers())
