"""Weights & Biases: offline without an account, and a quick answer where the server is out of reach."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import SMALL
from testing import PATIENCE

pytest.importorskip("wandb")


def fit(text_file: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "lightning_modules",
            "fit",
            "-c",
            "char_lm",
            "-c",
            "wandb",
            f"--data.path={text_file}",
            *SMALL,
        ],
        capture_output=True,
        text=True,
        cwd=text_file.parent,
        env=kept | {"OMP_NUM_THREADS": "1", "HOME": str(text_file.parent)} | environment,
        timeout=PATIENCE,
        check=False,
    )


def test_offline_needs_no_account_and_can_be_read_back(text_file: Path) -> None:
    result = fit(text_file, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    [run] = text_file.parent.glob("wandb/offline-run-*")
    inspect = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    record = json.loads(inspect.stdout)
    folder = text_file.parent / "runs" / "char_lm" / "version_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert record["config"]["hidden_size"] == 12
    assert record["config"]["batch_size"] == 4
    assert record["name"] == "char_lm/version_0"
    assert record["summary"]["val_loss"]["min"] == pytest.approx(summary["best"]["val_loss"])
    assert record["summary"]["test_loss"] == pytest.approx(summary["test"]["test_loss"])
    assert record["state"] == "finished"
    # The CSV file is written all the same.
    assert (folder / "metrics.csv").is_file()


@pytest.mark.slow
def test_a_server_out_of_reach_costs_seconds(text_file: Path) -> None:
    start = time.monotonic()
    fit(text_file, WANDB_MODE="offline")  # what it takes on this machine, as busy as it is
    offline, start = time.monotonic() - start, time.monotonic()
    result = fit(text_file, WANDB_MODE="online", WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert time.monotonic() - start < 2 * offline + 60
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "WANDB_MODE=offline" in result.stderr.splitlines()[-1]
