"""Two processes train like one, and resume like one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import SMALL

from lightning_modules.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow


def fit(text_file: Path, name: str, *arguments: str) -> Path:
    options = [f"--data.path={text_file}", *SMALL, "--model.dropout=0", "--model.recurrent_dropout=0", "--name", name]
    subprocess.run(
        [sys.executable, "-m", "lightning_modules", "fit", "-c", "char_lm", *options, *arguments],
        cwd=text_file.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
        check=True,
    )
    return text_file.parent / "runs" / name / "version_0"


TWO = ("--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu")


def test_two_processes_give_the_figures_of_one_and_resume_in_the_middle_of_an_epoch(text_file: Path) -> None:
    one, two = (
        fit(text_file, "one"),
        fit(
            text_file,
            "two",
            *TWO,
            "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
            "--trainer.callbacks.every_n_train_steps=7",
            "--trainer.callbacks.save_top_k=-1",
            "--trainer.callbacks.filename={step}",
        ),
    )
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    assert summaries[1]["test"] == pytest.approx(summaries[0]["test"], rel=1e-4)
    assert summaries[1]["best"] == pytest.approx(summaries[0]["best"], rel=1e-4)

    middle = two / "checkpoints" / "step=14.ckpt"
    assert load_checkpoint(middle)["train_state"].shape[0] == 4  # h and c of both
    resumed = fit(text_file, "resumed", *TWO, "--ckpt_path", str(middle))
    last = [load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (two, resumed)]
    for name, value in last[0].items():
        assert value.equal(last[1][name]), name
