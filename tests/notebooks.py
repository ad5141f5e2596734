"""The notebooks of docs/notebooks, run from top to bottom.

``python tests/notebooks.py`` (``make notebooks``) runs them and keeps what they show; test_notebooks.py runs them anew.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs" / "notebooks").glob("*.ipynb"))
# All that is kept beside the cells: nothing of the machine that ran them.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(page: Path) -> NotebookNode:
    """The notebook with its outputs, from a new kernel.

    Raises nbclient's ``CellExecutionError`` where a cell does.
    """
    notebook = nbformat.read(page, as_version=4)
    client = NotebookClient(
        notebook, timeout=1800, startup_timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    return notebook


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shrink_pictures(notebook: NotebookNode) -> None:
    """Gives each picture a palette of 256 colors, which takes a third of its bytes."""
    for output in outputs(notebook):
        if png := output.get("data", {}).get("image/png"):
            file = io.BytesIO()
            Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256).save(file, "png", optimize=True)
            output.data["image/png"] = base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for page in PAGES:
        notebook = run(page)
        shrink_pictures(notebook)
        nbformat.write(notebook, page)
        print(f"written: {page}")
