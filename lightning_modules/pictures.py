"""Pictures with names from the user's data in them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
