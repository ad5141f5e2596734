"""What is imported when, and what is said when an extra is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from testing import PATIENCE

HEAVY = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "wandb")


def run(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(
    "statement",
    ["import lightning_modules, lightning_modules.cli", "from lightning_modules.cli import main; main(['--help'])"],
)
def test_the_package_and_its_help_are_light(tmp_path: Path, statement: str) -> None:
    result = run(f"{statement}\nimport sys\nprint('loaded', [m for m in {HEAVY} if m in sys.modules])", tmp_path)
    assert result.stdout.splitlines()[-1] == "loaded []", result.stderr


def test_the_kernel_imports_nothing_of_the_training_side(tmp_path: Path) -> None:
    modules = [module for module in HEAVY if module != "torch"] + ["lightning_modules"]
    result = run(f"import lstm_fused, sys\nprint([m for m in {modules} if m in sys.modules])", tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        (
            "lightning",
            ["fit", "-c", "char_lm"],
            "'lstm-fused fit' needs the package 'lightning': pip install 'lstm-fused[train]'",
        ),
        ("lightning", ["sample", "x"], "'lstm-fused sample' needs the package 'lightning'"),
        (
            "wandb",
            ["fit", "-c", "char_lm", "-c", "wandb"],
            "logging to W&B needs the package 'wandb': pip install 'lstm-fused[wandb]', or leave '-c wandb' out",
        ),
    ],
)
def test_a_missing_extra_is_told(tmp_path: Path, package: str, arguments: list[str], extra: str) -> None:
    hide = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
from lightning_modules.cli import main
sys.exit(main({arguments!r}))
"""
    result = run(hide, tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"lstm-fused: error: {extra}")
    assert "Subtypes" not in last
    assert not (tmp_path / "runs").exists()
