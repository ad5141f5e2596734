"""The types: mypy finds no error, and pyright knows the type of every public name. `make lint` runs the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def checked(*command: str) -> subprocess.CompletedProcess[str]:
    """Run by this Python, whose packages a checker looks up: pyright asks the `python` that it finds first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_mypy():
    """Of the package, and what users_types.py expects of it. 28 CPU seconds without its cache, 2 with it."""
    found = checked("mypy")
    assert found.returncode == 0, found.stdout + found.stderr


def test_public_interface():
    found = checked("pyright", "--verifytypes", "lstm_fused", "--ignoreexternal", "--outputjson")
    report = json.loads(found.stdout)["typeCompleteness"]
    incomplete = [symbol for symbol in report["symbols"] if symbol["isExported"] and not symbol["isTypeKnown"]]
    assert not incomplete
    assert report["completenessScore"] == 1, found.stdout
