"""Pages of docs/ that show commands, with what these print and draw.

``python tests/transcripts.py`` (``make transcripts``) runs the commands of each page (lines after ``$`` in its console
blocks), one page after another in a new folder, and writes what they print into the page. A picture whose place in that
folder stands in a comment before it is copied. Arguments: the names of pages to run instead of all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^<!-- (runs/.*) -->\n!\[[^\]]*\]\((.*)\)$", re.MULTILINE)
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]
LONGEST = 40  # lines of one command's output


def run(command: str, folder: Path) -> str:
    """What a command prints."""
    own = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    result = subprocess.run(["bash", "-c", command], cwd=folder, env=own, text=True, check=False, **both)
    if result.returncode:
        raise SystemExit(f"exit code {result.returncode} of: {command}\n{result.stdout}")
    # Only the contents of the folder are printed.
    lines = result.stdout.replace(f"{folder}/", "").splitlines()
    if len(lines) > LONGEST:
        raise SystemExit(f"want at most {LONGEST} lines of output, got {len(lines)} of: {command}\n{result.stdout}")
    return "".join(f"{line.rstrip().expandtabs()}\n" for line in lines)


def record(page: Path, folder: Path) -> None:
    def block(found: re.Match[str]) -> str:
        commands = [line for line in found[0].splitlines() if line.startswith("$ ")]
        return "".join(f"{command}\n{run(command[2:], folder)}" for command in commands)

    text = BLOCK.sub(block, page.read_text(encoding="utf-8"))
    for made, shown in PICTURE.findall(text):
        Image.open(folder / made).convert("RGB").quantize(256).save(page.parent / shown, "png", optimize=True)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for page in PAGES:
        if not sys.argv[1:] or page.stem in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                record(page, Path(folder).resolve())
            print(f"wrote {page.relative_to(ROOT)}")
