"""Properties of every task: padding changes nothing, several processes give the same figures, resuming is exact."""

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_resume import Losses
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from small_tasks import SMALL_TASKS
from torch import Tensor

from lightning_modules.callbacks import LearningCurves, RNGState
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.cli import main
from lightning_modules.data import TaskDataModule
from lightning_modules.data.batches import NoShare
from lightning_modules.tasks import RecurrentTask

PADDED = [name for name in SMALL_TASKS if name not in ("char_lm", "forecast", "smnist")]
BY_EXAMPLES = [name for name in SMALL_TASKS if name != "char_lm"]


def built(name: str, folder: Path) -> tuple[RecurrentTask, TaskDataModule]:
    """A task without anything random, its net built, its weights larger than a new one's; and its data."""
    small = SMALL_TASKS[name]
    data = small.new_data(folder)
    data.setup("fit")
    off = {name: 0.0 for name in ("dropout", "recurrent_dropout", "word_dropout") if name in small.model_options}
    task = small.new_task(**off, **({"unknown_rate": 0.0} if name == "ner" else {}))
    task.build(data)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.mul_(2)
    task.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    task.trainer.datamodule = data
    task.setup("fit")
    return task, data


def gradients(task: RecurrentTask, loss: Tensor) -> list[Tensor]:
    return torch.autograd.grad(loss, [p for p in task.parameters() if p.requires_grad])


# Padding --------------------------------------------------------------------------------------------------------------


def poisoned(batch: Any) -> Any:
    """The batch with NaN past the ends of its sequences; ids become others, words another word's spelling."""
    changed = {}
    for field, value in batch._asdict().items():
        lengths = batch.character_lengths if field == "characters" else batch.lengths
        if value is None or field.endswith("lengths") or value.dim() < 2:
            continue
        past = torch.arange(len(value))[:, None] >= lengths
        assert past.any(), field
        value = value.clone()
        if field not in ("labels", "targets"):
            value[past] = torch.nan if value.is_floating_point() else value.max()
        changed[field] = value
    return batch._replace(**changed)


@pytest.mark.parametrize("name", PADDED)
def test_padding_changes_nothing(name: str, tmp_path: Path) -> None:
    """Loss, gradients and predictions are those of the same batch padded otherwise, and of its sequences alone."""
    task, data = built(name, tmp_path)
    loader = data.train_dataloader()
    examples = [loader.examples[k] for k in range(6)]
    batch = loader.collate(examples, list(range(6)))
    assert len(set(batch.lengths.tolist())) > 1
    loss, count = task.batch_loss(batch, 0)
    expected = gradients(task, loss)
    loss_poisoned, _ = task.batch_loss(poisoned(batch), 0)
    assert loss_poisoned.item() == pytest.approx(loss.item(), rel=1e-6)
    for ours, theirs in zip(gradients(task, loss_poisoned), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    alone = [loader.collate([example], [k]) for k, example in enumerate(examples)]
    parts = [task.batch_loss(each, 0) for each in alone]
    assert sum(int(n) for _, n in parts) == int(count)
    assert sum(float(part) * int(n) for part, n in parts) / int(count) == pytest.approx(loss.item(), rel=1e-5)
    task.eval()
    with torch.inference_mode():
        together = columns(task.predict_step(poisoned(batch), 0), batch.lengths)
        for k, each in enumerate(alone):
            [one] = columns(task.predict_step(each, 0), each.lengths)
            torch.testing.assert_close(together[k], one, rtol=1e-4, atol=1e-5)


def columns(predictions: Any, lengths: Tensor) -> list[Any]:
    """What is predicted of each sequence of a batch, without padding."""
    if isinstance(predictions, list):  # tags
        return [torch.tensor(tags) for tags in predictions]
    if isinstance(predictions, Tensor):  # probabilities of labels
        return list(predictions)
    if hasattr(predictions, "probabilities"):  # of keys, of each frame and the one after the last
        return [predictions.probabilities[: n + 1, k] for k, n in enumerate(lengths.tolist())]
    outputs = predictions.outputs
    return list(outputs.unbind(1) if outputs.dim() == 3 else outputs)


# Processes ------------------------------------------------------------------------------------------------------------


def of_processes(data: TaskDataModule, split: str, rank: int, world_size: int) -> Iterator[Any]:
    """The batches of a rank."""

    class Ranked:
        current_epoch, global_rank = 0, rank

    Ranked.world_size = world_size
    data.trainer = Ranked()
    yield from data.train_dataloader() if split == "train" else data.val_dataloader()


@pytest.mark.parametrize("name", BY_EXAMPLES)
def test_the_shares_of_two_processes_weigh_what_they_hold(name: str, tmp_path: Path) -> None:
    """Losses and gradients of the shares, weighted by their counts, are the whole batch's; so are all figures."""
    task, data = built(name, tmp_path)
    whole = list(of_processes(data, "train", 0, 1))
    shares = list(zip(*(of_processes(data, "train", rank, 2) for rank in range(2)), strict=True))
    for loader in (data.train_dataloader(), data.val_dataloader()):  # data.trainer is the last rank of the two
        assert loader.world_size == 2
        whole_again = list(loader.whole())
    assert len(whole_again) == len(list(of_processes(data, "valid", 0, 1)))
    assert NoShare not in map(type, whole_again)
    unequal = False
    batches = list(zip(whole, shares, strict=True))
    for batch, parts in [*batches[:3], *(pair for pair in batches if isinstance(pair[1][1], NoShare))]:
        loss, count = task.batch_loss(batch, 0)
        losses, counts = zip(*(task.share_loss(part, 0) for part in parts), strict=True)
        assert sum(map(int, counts)) == int(count)
        unequal |= int(counts[0]) != int(counts[1])
        mean = sum(part * (int(n) / int(count)) for part, n in zip(losses, counts, strict=True))
        torch.testing.assert_close(mean, loss, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(gradients(task, mean), gradients(task, loss), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert unequal or name not in ("ner", "forecast", "music")  # the others' batches hold as much on either

    def figures(world_size: int) -> dict[str, float]:
        metrics = task.val_metrics.clone()
        data_trainer = task.trainer
        with torch.inference_mode():
            for rank in range(world_size):
                for k, batch in enumerate(of_processes(data, "valid", rank, world_size)):
                    loss, count = task.share_loss(batch, k, metrics)
                    metrics["loss"].update(loss, weight=count)
        assert task.trainer is data_trainer
        return {name: float(value) for name, value in metrics.compute().items()}

    task.eval()
    assert figures(2) == pytest.approx(figures(1), rel=1e-5)


@pytest.mark.slow
def test_two_processes_count_alike_where_one_has_no_share_of_a_batch(tmp_path: Path) -> None:
    """As many batches, the same losses and figures as of one process: of 37 and 13 examples, 4 at a time."""
    arguments = [*SMALL_TASKS["ner"].arguments(tmp_path), "--data.split=[37,13,12]", "--trainer.max_epochs=2"]
    arguments += ["--model.dropout=0", "--model.recurrent_dropout=0", "--model.unknown_rate=0"]
    arguments += ["--trainer.callbacks=lightning_modules.callbacks.TrainFigures"]
    for name, processes in (("one", ()), ("two", TWO)):
        assert run_in_a_process(tmp_path, [*arguments, f"--name={name}", *processes]) == 0
    one, two = (rows_of(tmp_path / "runs" / name / "version_0") for name in ("one", "two"))
    assert sum("train_loss_step" in row for row in one) == 20
    assert len(one) == len(two)
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


# Going on -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL_TASKS)
def test_other_data_is_told(
    name: str, make_trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Data of as many examples and another content: the epoch starts over, and two lines say so."""
    small = SMALL_TASKS[name]

    def fit(seed: int, resume: Path | None = None) -> tuple[int, list[str]]:
        losses = Losses()
        saver = ModelCheckpoint(tmp_path / "ckpt", "{step}", every_n_train_steps=2, save_top_k=-1)
        options = {"max_steps": 2} if resume is None else {"max_epochs": 1, "limit_train_batches": 4}
        trainer = make_trainer(
            callbacks=[losses, RNGState(), *([saver] if resume is None else [])], limit_val_batches=0, **options
        )
        data = small.new_data(tmp_path, seed)
        if resume is not None:  # as the command does, so that the net is of the checkpoint's sizes
            data.load_state_dict(load_checkpoint(resume)[type(data).__qualname__])
        trainer.fit(small.new_task(), data, ckpt_path=resume, weights_only=True)
        told = [line for line in capsys.readouterr().err.splitlines() if "checkpoint" in line]
        return len(losses.values), told

    assert fit(0) == (2, [])
    checkpoint = tmp_path / "ckpt" / "step=2.ckpt"
    assert fit(0, checkpoint) == (2, [])
    batches, (data_line, epoch_line) = fit(1, checkpoint)
    assert batches == 4
    assert data_line.startswith("The train and the valid data is not the checkpoint's, so that figures before and")
    changed = "--data.seed" if "seed" in small.write(tmp_path, 1) else "what the files hold"
    assert data_line.endswith(f"changed: {changed}.")
    assert epoch_line.startswith("The epoch that the checkpoint stopped in begins anew: its ")


def run_in_a_process(folder: Path, arguments: list[str], kill_at: int | None = None) -> int:
    """Runs the command in a fork of this process, which has imported everything, and returns how that ended.

    With ``kill_at`` it and all processes that it has started die by SIGKILL in the backward pass after so many steps.
    """
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            with open(f"output-{os.getpid()}.txt", "wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if kill_at is not None:

                def kill(callback: LearningCurves, trainer: Trainer, *_: Any) -> None:
                    if trainer.global_step == kill_at:
                        os.killpg(0, signal.SIGKILL)

                LearningCurves.on_before_backward = kill
            code = main(arguments)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def rows_of(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, what was logged at one step in one."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def without_places_and_times(value: Any) -> Any:
    if isinstance(value, dict):
        left_out = ("seconds", "ms_a_step", "dirpath", "best_model_path", "best_k_models", "kth_best_model_path")
        left_out += ("current_score",)
        return {key: without_places_and_times(item) for key, item in value.items() if key not in left_out}
    return [without_places_and_times(item) for item in value] if isinstance(value, (list, tuple)) else value


TWO = ("--trainer.strategy=ddp_fork", "--trainer.devices=2", "--trainer.accelerator=cpu")


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        *(pytest.param(name, (), marks=pytest.mark.slow if name != "ner" else ()) for name in SMALL_TASKS),
        *(pytest.param(name, TWO, marks=pytest.mark.slow) for name in ("char_lm", "ner", "music")),
    ],
)
def test_a_run_that_is_killed_goes_on_exactly(name: str, processes: tuple[str, ...], tmp_path: Path) -> None:
    """By SIGKILL, inside an epoch: it ends like a run that never was, to the last bit of all that it leaves."""
    epochs = 3
    arguments = [*SMALL_TASKS[name].arguments(tmp_path), f"--trainer.max_epochs={epochs}", *processes]
    arguments += ["--early_stopping.monitor=train_loss_epoch", "--early_stopping.patience=99"]
    assert run_in_a_process(tmp_path, [*arguments, "--name=whole"]) == 0
    whole = tmp_path / "runs" / "whole" / "version_0"
    steps = json.loads((whole / "summary.json").read_text())["steps"]
    assert steps > 3 * epochs

    killed_at = steps * 5 // (3 * epochs)
    options = ["--name=run", "--last_checkpoint.every_minutes=0"]
    assert run_in_a_process(tmp_path, [*arguments, *options], killed_at) == -signal.SIGKILL
    run = tmp_path / "runs" / "run" / "version_0"
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["best.ckpt", "last.ckpt"]
    checkpoint = load_checkpoint(run / "checkpoints" / "last.ckpt")
    step = checkpoint["global_step"]
    assert step == killed_at
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] > 0
    assert load_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == steps // epochs

    assert run_in_a_process(tmp_path, ["fit", "-c", str(run), "--ckpt_path=last"]) == 0
    again = run.with_name("version_1")
    ours, theirs = (load_checkpoint(each / "checkpoints" / "last.ckpt") for each in (again, whole))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops"):
        assert_same(*(without_places_and_times(each[part]) for each in (ours, theirs)), part)
    ours, theirs = (load_checkpoint(each / "checkpoints" / "best.ckpt") for each in (again, whole))
    assert_same(ours["state_dict"], theirs["state_dict"], "best.ckpt")
    ours, theirs = (json.loads((each / "summary.json").read_text()) for each in (again, whole))
    assert without_places_and_times(ours) == without_places_and_times(theirs)
    assert [row for row in rows_of(run) if row["step"] < step] + rows_of(again) == rows_of(whole)


def assert_same(ours: Any, theirs: Any, place: str) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
    if isinstance(theirs, (dict, list)):
        pairs = [(key, ours[key], theirs[key]) for key in theirs] if isinstance(theirs, dict) else enumerate(theirs)
        for key, *pair in pairs:
            assert_same(*(pair if len(pair) == 2 else (ours[key], *pair)), f"{place}, {key}")
    elif isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor), place
        assert ours.equal(theirs), place
    else:
        assert ours == theirs or ours != ours, place
