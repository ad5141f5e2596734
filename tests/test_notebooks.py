"""The notebooks run from top to bottom, and what is kept of them is that of a whole run and of no machine."""

import re

import nbformat
import pytest
from notebooks import PAGES, outputs, run

LARGEST = 500_000  # bytes: a forge shows no large notebook
# Output that depends on the machine: folders and times.
OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|Users|var)/|\d s\b|\d seconds")
TEXTS = ("text/plain", "text/markdown")


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_kept(page):
    assert page.stat().st_size < LARGEST
    notebook = nbformat.read(page, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert pictures(notebook) >= 5
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        shown = output.get("text", "") + "".join(output.get("data", {}).get(kind, "") for kind in TEXTS)
        assert not OF_A_MACHINE.search(shown), shown


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_it_runs(page, tmp_path, monkeypatch):
    """It shows as many pictures as are kept, and warns of nothing."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where its files lie, were it ended before it removes them
    ran = run(page)
    assert pictures(ran) == pictures(nbformat.read(page, as_version=4))
    assert [output.text for output in outputs(ran) if output.get("name") == "stderr"] == []
