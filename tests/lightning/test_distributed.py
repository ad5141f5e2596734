"""Several processes train like one, resume like one, and stop together."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import SMALL, Result
from testing import PATIENCE
from torch import distributed

from lightning_modules.callbacks import RNGState
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.cli import is_first_to_fail

STRATEGIES = ("ddp", "ddp_spawn", "ddp_fork")
NO_MASKS = ("--model.dropout=0", "--model.recurrent_dropout=0")  # each process draws its own
COMMAND = ("lightning_modules", "fit", "-c", "char_lm", *SMALL, *NO_MASKS)


def two(strategy: str) -> tuple[str, ...]:
    return f"--trainer.strategy={strategy}", "--trainer.devices=2", "--trainer.accelerator=cpu"


def start(text_file: Path, name: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *COMMAND, f"--data.path={text_file}", "--name", name, *arguments],
        cwd=text_file.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def fit(text_file: Path, name: str, *arguments: str) -> Path:
    process = start(text_file, name, *arguments)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.count("Test: ") == 1
    return text_file.parent / "runs" / name / "version_0"


def figures(folder: Path) -> list[dict[str, float]]:
    """The figures of metrics.csv, row by row."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_alike(one: Path, other: Path) -> None:
    """Two runs have the same files and figures."""
    assert {str(file.relative_to(one)) for file in one.rglob("*")} == {
        str(file.relative_to(other)) for file in other.rglob("*")
    }
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (one, other)]
    for key in ("test", "best"):
        assert summaries[1][key] == pytest.approx(summaries[0][key], rel=1e-4)
    for key in ("epochs", "stop_reason"):
        assert summaries[1][key] == summaries[0][key]


def test_processes_of_its_own_making(
    command: Callable[..., Result], small_fit: Callable[..., Result], tmp_path: Path
) -> None:
    """ddp_fork, which needs no imports in the new processes: the whole fit, its files, its test, and going on."""
    one, forked = (tmp_path / "runs" / "char_lm" / f"version_{number}" for number in range(2))
    constant = "--model.lr_schedule=constant"
    assert small_fit(*NO_MASKS, constant).code == 0
    result = small_fit(*NO_MASKS, constant, *two("ddp_fork"))
    assert result.code == 0, result.err
    assert result.out.count("Test: ") == 1
    assert_alike(one, forked)
    losses = [[row["val_loss"] for row in figures(folder) if "val_loss" in row] for folder in (one, forked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    resumed = command("fit", "-c", forked, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert resumed.code == 0, resumed.err
    assert load_checkpoint(forked.with_name("version_2") / "checkpoints" / "last.ckpt")["epoch"] == 2
    best, predictions = forked / "checkpoints" / "best.ckpt", forked / "predictions.csv"
    written = []
    for folder in (one, forked):  # the config of one process, and that of two
        assert command("predict", "-c", folder, "--ckpt_path", best).code == 0
        written.append(predictions.read_bytes())
        predictions.unlink()
    assert written[0] == written[1]
    test = command("test", "-c", forked, "--ckpt_path=best")
    assert test.code == 0, test.err
    expected = json.loads((forked / "summary.json").read_text(encoding="utf-8"))["test"]["test_loss"]
    assert f"{expected:.4f}"[:5] in test.out


def test_each_process_draws_its_own_masks_and_goes_on_with_them() -> None:
    """The first those that it draws alone; in a checkpoint of another number of processes all stand where it stood."""

    def numbers(rank: int, world_size: int, state: dict[str, Any] | None = None) -> list[float]:
        torch.manual_seed(1 if state is None else 99)
        random.seed(1 if state is None else 99)
        states, trainer = RNGState(), SimpleNamespace(global_rank=rank, world_size=world_size)
        if state is not None:
            states.load_state_dict(state)
        states.on_train_start(trainer, None)
        states.on_train_batch_start(trainer, None, 0)
        checkpoints.append(states.state_dict())
        return [*torch.rand(3).tolist(), random.random()]

    checkpoints: list[dict[str, Any]] = []
    alone, *ranks = (numbers(*place) for place in ((0, 1), (0, 3), (1, 3), (2, 3)))
    assert ranks[0] == alone
    assert len({number for each in ranks for number in each}) == 12
    assert [numbers(rank, 3) for rank in range(3)] == ranks
    of_three = {**checkpoints[1], "ranks": checkpoints[1:4]}
    assert [numbers(rank, 3, of_three) for rank in range(3)] == ranks
    fewer = [numbers(rank, 2, of_three) for rank in range(2)]
    assert fewer[0] == alone
    assert not set(fewer[0]) & set(fewer[1])


def test_an_error_in_a_process_is_one_sentence(small_fit: Callable[..., Result], text_file: Path) -> None:
    result = small_fit(*two("ddp_fork"), "--data.batch_size=5")
    assert result.error == "batch_size must be a multiple of the 2 processes, got 5"


def test_of_several_processes_one_tells_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torchrun's have met the first of a machine tells it, which fails like all; then the first to fail.

    Those that Lightning starts are there because the first did not fail: each of them tells it.
    """
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert is_first_to_fail()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert is_first_to_fail()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert not is_first_to_fail()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert [is_first_to_fail() for _ in range(3)] == [True, False, False]
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once(text_file: Path) -> None:
    process = start(text_file, "run", *two("ddp"), "--data.batch_size=5")
    out, err = process.communicate(timeout=PATIENCE)
    assert Result(process.returncode, out, err).error == "batch_size must be a multiple of the 2 processes, got 5"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_give_the_figures_of_one_and_resume_in_the_middle_of_an_epoch(
    text_file: Path, strategy: str
) -> None:
    every = (
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=7",
        "--trainer.callbacks.save_top_k=-1",
        "--trainer.callbacks.filename={step}",
    )
    one, several = fit(text_file, "one", *every), fit(text_file, "two", *two(strategy), *every)
    assert_alike(one, several)

    middle = several / "checkpoints" / "step=14.ckpt"
    assert load_checkpoint(middle)["train_state"]["ranks"] == 2
    resumed = fit(text_file, "resumed", *two(strategy), "--ckpt_path", str(middle))
    last = [load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (several, resumed)]
    for name, value in last[0].items():
        assert value.equal(last[1][name]), name
    if strategy == "ddp":  # one process continues for the two, with the carried state of both
        alone = fit(text_file, "alone", "--ckpt_path", str(middle))
        for name, value in load_checkpoint(alone / "checkpoints" / "last.ckpt")["state_dict"].items():
            torch.testing.assert_close(value, last[0][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_torchrun(text_file: Path) -> None:
    one = fit(text_file, "one")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"),
            *("-m", *COMMAND, f"--data.path={text_file}", "--name=torchrun", *two("ddp")),
        ],
        cwd=text_file.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=PATIENCE,
        check=True,
    )
    assert_alike(one, text_file.parent / "runs" / "torchrun" / "version_0")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to", ["all", "the first", "the last"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_processes_stop_at_the_batch_at_which_one_was_told_to(
    text_file: Path, strategy: str, to: str, number: signal.Signals, code: int
) -> None:
    """Ctrl-C goes to all processes of a terminal, kill to one of them; one that stopped alone would wait for ever."""
    endless = ("--trainer.max_epochs=100000", "--early_stopping.patience=100000")
    process = start(text_file, "run", *two(strategy), *endless)
    folder = text_file.parent / "runs" / "run" / "version_0" / "checkpoints"
    try:
        deadline = time.monotonic() + PATIENCE
        while not (folder / "last.ckpt").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if to == "all":
            os.killpg(process.pid, number)
        else:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(process.pid if to == "the first" else int(children[-1]), number)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert err.count("lstm-fused: ") == 1
    assert load_checkpoint(folder / "interrupted.ckpt")["global_step"] > 0
