"""Sphinx's configuration. `make docs` builds the site; any warning is an error there.

The source folder is the repository itself: README, the pages beside it and those of docs/ are pages of the site in
place, so that a link works both in the files and on the site. Docstrings are reStructuredText, like torch's.
"""

from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

project = "lstm_fused"
author = "lstm_fused developers"
release = metadata.version("lstm-fused")
root_doc = "README"
include_patterns = ["*.md", "docs/**", "benchmarks/results/*.md"]
exclude_patterns = ["docs/navigation.md"]  # included in README

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 4  # the same anchors as on forges
nb_execution_mode = "off"  # `make notebooks` runs them
highlight_language = "none"  # for blocks without a language: output, equations
python_maximum_signature_line_length = 100  # longer ones have one line per argument
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # of Lightning's methods
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Inputs", "params_style"), ("Outputs", "params_style"), ("Variables", "params_style")]
napoleon_use_rtype = False

html_theme = "furo"  # light and dark, narrow and wide; fonts are those of the reader's system, nothing is loaded
html_title = f"lstm_fused {release}"
html_copy_source = False
html_show_copyright = False


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """The tree of pages, which on a forge nobody wants to see, goes to the end of the front page."""
    if name == root_doc:
        source[0] += "\n\n" + Path(app.confdir, "navigation.md").read_text(encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
