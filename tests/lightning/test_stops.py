"""However training stops, its figures are those measured, its files are written, and resuming is exact."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from run_folders import (
    assert_is_judged_by_what_was_measured,
    assert_same_weights,
    figures_of,
    last,
    measured,
    points,
    rows_of,
    summary_of,
)
from small_runs import BATCHES, EPOCHS, Result, slow

from lightning_modules.callbacks import LearningCurves
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.cli import main
from lightning_modules.models.metrics import Perplexity
from lightning_modules.tasks import LanguageModelTask


@pytest.fixture
def clock_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer of ``max_time`` counts a step as a second."""

    def on_train_batch_end(self: Timer, trainer: Trainer, *_: Any) -> None:
        self.steps = trainer.global_step
        self._check_time_remaining(trainer)

    monkeypatch.setattr(Timer, "on_train_batch_end", on_train_batch_end)
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage="train": float(getattr(self, "steps", self._offset)))


# Arguments, the step of the stop, and the steps of the validations before it.
STOPS = {
    "at the end of an epoch": (["--trainer.max_epochs=2"], 14, [7, 14]),
    "max_steps inside an epoch": (["--trainer.max_steps=10"], 10, [7]),
    "max_steps at the end of an epoch": (["--trainer.max_steps=14"], 14, [7, 14]),
    "max_time": (["--trainer.max_time=00:00:00:10"], 10, [7, 10]),
    "max_time in an epoch not validated": (
        ["--trainer.max_time=00:00:00:17", "--trainer.check_val_every_n_epoch=2"],
        17,
        [14],
    ),
    "the last epoch not validated": (["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2"], 7, []),
    "epochs not validated": (["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2"], 14, [14]),
    "several validations an epoch": (
        ["--trainer.max_steps=12", "--trainer.val_check_interval=0.3"],
        12,
        [2, 4, 6, 9, 11],
    ),
    "validations by the number of batches": (
        ["--trainer.max_steps=12", "--trainer.val_check_interval=5", "--trainer.check_val_every_n_epoch=null"],
        12,
        [5, 10],
    ),
    "a validation every batch": (["--trainer.max_steps=4", "--trainer.val_check_interval=1"], 4, [1, 2, 3, 4]),
    "nothing validated by then": (["--trainer.max_steps=5"], 5, []),
    "no validation": (["--trainer.max_epochs=1", "--trainer.limit_val_batches=0"], 7, []),
    "early stopping inside an epoch": (
        ["--trainer.val_check_interval=2", "--early_stopping.patience=1", "--early_stopping.min_delta=9"],
        4,
        [2, 4],
    ),
    "early stopping at the end of an epoch": (
        ["--early_stopping.patience=1", "--early_stopping.min_delta=9"],
        14,
        [7, 14],
    ),
    "early stopping that judges when an epoch ends": (
        [
            "--early_stopping.check_on_train_epoch_end=true",
            "--early_stopping.patience=1",
            "--early_stopping.min_delta=9",
            "--trainer.check_val_every_n_epoch=2",
            "--trainer.max_steps=16",
        ],
        16,
        [14],
    ),
    "a figure of the training": (
        ["--early_stopping.monitor=train_loss_epoch", "--early_stopping.stopping_threshold=99"],
        7,
        [7],
    ),
    "a threshold": (["--trainer.val_check_interval=3", "--early_stopping.stopping_threshold=100"], 3, [3]),
    "early stopping, but not before min_epochs": (
        [
            "--early_stopping.patience=1",
            "--early_stopping.min_delta=9",
            "--trainer.min_epochs=2",
            "--trainer.val_check_interval=3",
        ],
        14,
        [3, 6, 10, 13],
    ),
    "gradients of several batches": (["--trainer.max_steps=5", "--trainer.accumulate_grad_batches=2"], 5, [4]),
}
# Lifts each of them; those that stop at a special place are resumed in the quick tests too.
GO_ON = (
    f"--trainer.max_epochs={EPOCHS}",
    "--trainer.max_steps=-1",
    "--trainer.max_time=null",
    "--early_stopping.patience=99",
    "--early_stopping.stopping_threshold=null",
)
PLACES = (
    "max_steps inside an epoch",
    "max_time",
    "epochs not validated",
    "several validations an epoch",
    "nothing validated by then",
    "early stopping inside an epoch",
)


@pytest.fixture(scope="module")
def stopped() -> dict[str, Path]:
    """The folders of the runs that have been stopped."""
    return {}


@pytest.fixture
def stop_at(
    fit: Callable[..., tuple[Result, Path]], stopped: dict[str, Path], clock_of_steps: None
) -> Callable[[str], tuple[Result, Path]]:
    def run(stop: str) -> tuple[Result, Path]:
        if stop not in stopped:
            stopped[stop] = fit(stop.replace(" ", "-").replace(",", ""), *STOPS[stop][0])
        return stopped[stop]

    return run


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop(stop_at: Callable[[str], tuple[Result, Path]], stop: str) -> None:
    arguments, step, validations = STOPS[stop]
    result, run = stop_at(stop)
    assert result.code == 0, result.err
    summary = summary_of(run)
    assert summary["steps"] == last(run)["global_step"] == step
    batches = step if "accumulate" not in " ".join(arguments) else 9  # two epochs' first seven are four steps
    assert summary["epochs"] == pytest.approx(batches / BATCHES, abs=1e-3)
    assert [point[0] for point in measured(run)] == validations
    assert points(run) == [(at, pytest.approx(loss, abs=1e-6)) for at, loss in measured(run)]
    assert (run / "learning_curves.png").is_file()
    assert (run / "sample.txt").is_file()
    assert summary["test"]["test_loss"] > 0
    if validations:
        assert_is_judged_by_what_was_measured(run, result.out)
        assert summary["tested"] == "the best weights"
    else:
        assert not (run / "checkpoints" / "best.ckpt").exists()
        assert summary["best"] is None
        assert summary["tested"] == "the weights of the last step"
        assert "No validation will be run" in result.out.partition("Stopped after")[0]


@pytest.mark.parametrize("stop", [stop if stop in PLACES else slow(stop) for stop in STOPS])
def test_going_on_after_a_stop_is_exact(
    stop_at: Callable[[str], tuple[Result, Path]], fit: Callable[..., tuple[Result, Path]], whole: Path, stop: str
) -> None:
    """It ends like a run that never stopped, and with the best of all that was measured."""
    _, run = stop_at(stop)
    if "accumulate" in " ".join(STOPS[stop][0]):
        whole = fit("whole-accumulated", "--trainer.accumulate_grad_batches=2")[1]
    result, again = fit(run.parent.name, "--ckpt_path=last", *GO_ON, config=run, version=1)
    assert result.code == 0, result.err
    assert_same_weights(again, whole)
    assert points(again) == [*points(run), *((at, pytest.approx(loss, abs=1e-6)) for at, loss in measured(again))]
    if points(again):
        assert_is_judged_by_what_was_measured(again, result.out, measured(run))


# Interruptions ------------------------------------------------------------------------------------------------------


class Sender:
    """Sends a signal to this process, or raises an error, from a hook of a callback at a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def at(self, hook: str, step: int, what: signal.Signals | Exception) -> None:
        def send(callback: LearningCurves, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == step and not trainer.sanity_checking:
                self.monkeypatch.undo()
                if isinstance(what, Exception):
                    raise what
                os.kill(os.getpid(), what)

        self.monkeypatch.setattr(LearningCurves, hook, send, raising=False)


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    yield Sender(monkeypatch).at
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("hook", "step", "stopped"),
    [
        ("on_before_backward", 9, 10),  # in the middle of an epoch
        ("on_before_backward", 3, 4),  # before a validation there
        ("on_validation_batch_start", 4, 4),  # inside of it
        ("on_before_backward", 6, 7),  # in an epoch's last batch
        ("on_validation_batch_start", 14, 14),  # inside the validation at an epoch's end
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, slow(signal.SIGTERM)])
def test_a_signal_loses_nothing(
    fit: Callable[..., tuple[Result, Path]],
    whole: Path,
    send: Callable[..., None],
    hook: str,
    step: int,
    stopped: int,
    number: signal.Signals,
) -> None:
    name = f"{number.name}-{hook}-{step}"
    validations = "--trainer.val_check_interval=" + ("2" if step < 6 else "1.0")
    handler = signal.getsignal(signal.SIGINT)
    send(hook, step, number)
    result, run = fit(name, validations)
    assert result.code == 128 + number
    assert signal.getsignal(signal.SIGINT) is handler
    summary = summary_of(run)
    assert summary["steps"] == last(run)["global_step"] == stopped
    assert summary["stop_reason"] == {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert not summary["finished"]
    assert "test" not in summary
    assert (run / "learning_curves.png").is_file() == bool(last(run)["callbacks"]["LearningCurves"]["epochs"])
    path = run / "checkpoints" / "last.ckpt"
    assert path.read_bytes() == path.with_name("interrupted.ckpt").read_bytes()
    words = result.out.strip().splitlines()[-1]
    assert words == f"Stopped; --ckpt_path {path} goes on from step {stopped}."

    result, again = fit(name, "--ckpt_path=interrupted", config=run, version=1)
    assert result.code == 0, result.err
    assert_same_weights(again, whole)
    assert [at for at, _ in points(again)] == ([7, 14, 21] if step >= 6 else [2, 4, 6, 9, 11, 13, 16, 18, 20])
    if step >= 6:  # validated where the other was: both report the same, including the epoch of the stop
        assert figures_of(run) | figures_of(again) == figures_of(whole)


AVERAGING = ("--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.5")


@pytest.mark.parametrize(("hook", "step"), [slow("on_before_backward", 9), ("on_validation_batch_start", 7)])
def test_a_signal_while_weights_are_averaged(
    fit: Callable[..., tuple[Result, Path]], send: Callable[..., None], hook: str, step: int
) -> None:
    """The average and the weights change places for a validation, and the average is updated after a batch."""
    whole = fit(f"averaged-{step}", *AVERAGING, "--trainer.max_epochs=2")[1]
    send(hook, step, signal.SIGINT)
    run = fit(f"averaged-stopped-{step}", *AVERAGING, "--trainer.max_epochs=2")[1]
    assert last(run)["global_step"] < 14
    again = fit(f"averaged-stopped-{step}", "--ckpt_path=last", config=run, version=1)[1]
    assert_same_weights(again, whole)
    for name, value in last(again)["current_model_state"].items():
        assert value.equal(last(whole)["current_model_state"][name]), name


# Divergence ---------------------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, value: float, when: Callable[[LanguageModelTask], bool]) -> None:
    """Makes the loss another number from a moment on."""
    batch_loss = LanguageModelTask.batch_loss

    def spoilt(self: LanguageModelTask, *arguments: Any, **options: Any) -> tuple:
        loss, count = batch_loss(self, *arguments, **options)
        return (loss * value if self.trainer.state.fn == "fit" and when(self) else loss), count

    monkeypatch.setattr(LanguageModelTask, "batch_loss", spoilt)


@pytest.mark.parametrize(
    ("stage", "value"),
    [("training", math.nan), ("validation", math.inf), slow("training", math.inf), slow("validation", math.nan)],
)
def test_a_run_that_diverges_ends_with_the_best_of_before(
    fit: Callable[..., tuple[Result, Path]], monkeypatch: pytest.MonkeyPatch, stage: str, value: float
) -> None:
    name = f"{stage}-{value}"
    if stage == "training":
        spoil(monkeypatch, value, lambda task: task.training and task.global_step == 17)
        told = f"the training has diverged: the training loss is {value} in epoch 2, after step 17; "
    else:
        spoil(monkeypatch, value, lambda task: not task.training and task.global_step == 21)
        told = f"the training has diverged: val_loss is {value} in epoch 2, after step 21; "
    result, run = fit(name)
    assert result.code == 1
    assert result.error.startswith(told + "best.ckpt has the weights of epoch 1, step 14; lower the learning rate")
    summary = summary_of(run)
    best = load_checkpoint(run / "checkpoints" / "best.ckpt")
    assert summary["best"]["step"] == best["global_step"] == 14
    assert math.isfinite(summary["best"]["val_loss"])
    assert all(parameter.isfinite().all() for parameter in best["state_dict"].values())
    assert last(run)["global_step"] == 14  # the last one worth resuming from
    assert told.rstrip("; ") in summary["stop_reason"]
    monkeypatch.undo()
    assert main(["test", "-c", str(run), "--ckpt_path=best", "--trainer.enable_progress_bar=false"]) == 0
    assert math.isfinite(summary["test"]["test_loss"])


def test_a_run_that_diverges_before_any_validation(
    fit: Callable[..., tuple[Result, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, math.nan, lambda task: task.training)
    result, run = fit("at-once")
    assert "after step 0; no weights were validated before; lower the learning rate" in result.error
    assert summary_of(run)["best"] is None
    assert "test" not in summary_of(run)


def test_a_figure_that_is_infinite_is_null(
    fit: Callable[..., tuple[Result, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a perplexity that is too large for a number, of a loss that is not."""
    monkeypatch.setattr(Perplexity, "compute", lambda self: self.mean_value * math.inf)
    result, run = fit("infinite-perplexity", "--trainer.max_epochs=1")
    assert result.code == 0, result.err
    assert summary_of(run)["best"]["val_ppl"] is None
    assert summary_of(run)["test"]["test_ppl"] is None


def test_a_validation_that_is_not_finite_is_no_end_where_that_was_said(
    fit: Callable[..., tuple[Result, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, math.nan, lambda task: not task.training and task.global_step == 7)
    result, run = fit("unchecked", "--early_stopping.check_finite=false", "--trainer.max_epochs=2")
    assert result.code == 0, result.err
    assert summary_of(run)["best"]["step"] == 14


# Finishing ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if by SIGKILL: what follows in the process is of no interest."""


ENDS = {
    "max_epochs": (["--trainer.max_epochs=2"], "trainer.max_epochs must be more than the 2 that"),
    "max_steps": (["--trainer.max_steps=10"], "trainer.max_steps must be more than the 10 that"),
    "max_time": (["--trainer.max_time=00:00:00:10"], "trainer.max_time must be more than the 0:00:10 that"),
    "patience": (
        ["--early_stopping.patience=1", "--early_stopping.min_delta=9"],
        "the checkpoint's run was stopped early, and early_stopping.* must be such that it was not: Monitored metric "
        "val_loss did not improve in the last 1 records",
    ),
    "threshold": (["--early_stopping.stopping_threshold=99"], "the checkpoint's run was stopped early"),
}


@pytest.fixture
def killed_in_the_test(
    fit: Callable[..., tuple[Result, Path]], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> Callable[..., Path]:
    def run(name: str, *arguments: str) -> Path:
        def kill(*_: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(LanguageModelTask, "test_step", kill)
            with pytest.raises(Killed):
                fit(name, *arguments)
        return folder / name / "version_0"

    return run


@pytest.mark.parametrize("end", ["max_epochs", "max_steps", "patience", slow("max_time"), slow("threshold")])
@pytest.mark.usefixtures("clock_of_steps")
def test_a_run_that_is_trained_is_finished_in_its_folder(
    fit: Callable[..., tuple[Result, Path]], killed_in_the_test: Callable[..., Path], end: str
) -> None:
    arguments, refused = ENDS[end]
    name = f"killed-{end}"
    run = killed_in_the_test(name, *arguments)
    before = {path: path.read_bytes() for path in (run / "config.yaml", *(run / "checkpoints").iterdir())}
    ended, rows = summary_of(run), rows_of(run)
    assert "test" not in ended
    result, _ = fit(name, "--ckpt_path=last", config=run)
    assert result.code == 0, result.err
    assert "All is trained" in result.out
    summary = summary_of(run)
    assert summary["test"]["test_loss"] > 0
    assert summary["finished"]
    assert not ended["finished"]
    for volatile in ("seconds", "finished", *(["stop_reason"] if end == "max_time" else [])):
        del summary[volatile], ended[volatile]
    assert {key: value for key, value in summary.items() if key not in ("test", "tested")} == ended
    assert {path: path.read_bytes() for path in before} == before
    assert [{name: row[name] for name in rows[0]} for row in rows_of(run)[:-1]] == rows
    assert float(rows_of(run)[-1]["test_loss"]) == pytest.approx(summary["test"]["test_loss"])
    result, _ = fit(name, "--ckpt_path=last", config=run)
    assert refused in result.error
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


def test_a_run_that_was_killed_earlier_is_finished_too(
    fit: Callable[..., tuple[Result, Path]], killed_in_the_test: Callable[..., Path]
) -> None:
    """Before the picture, the sample and the summary were there; it ends with all that a run leaves that was not."""
    _, whole = fit("not-killed", "--trainer.max_epochs=1")
    run = killed_in_the_test("killed", "--trainer.max_epochs=1")
    for file in ("summary.json", "learning_curves.png", "sample.txt"):
        (run / file).unlink()
    # With other data its summary would be wrong.
    result, _ = fit("killed", "--ckpt_path=last", "--data.batch_size=2", config=run)
    assert "data.batch_size must be 4, as in the run that is to be finished, got 2" in result.error
    result, _ = fit("killed", "--ckpt_path=last", config=run)
    assert result.code == 0, result.err
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
    assert rows_of(run) == rows_of(whole)
    summary, expected = summary_of(run), summary_of(whole)
    del summary["seconds"], expected["seconds"], expected["ms_a_step"]  # no step was made in the end
    assert summary == expected
    assert (run / "sample.txt").read_text() == (whole / "sample.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_test(
    fit: Callable[..., tuple[Result, Path]], send: Callable[..., None], number: signal.Signals
) -> None:
    name = f"{number.name}-in-test"
    send("on_test_batch_start", 7, number)
    result, run = fit(name, "--trainer.max_epochs=1")
    assert result.code == 128 + number
    assert "test" not in summary_of(run)
    assert result.out.strip().endswith(f"All is trained; fit -c {run} --ckpt_path last makes the test.")
    assert fit(name, "--ckpt_path=last", config=run)[0].code == 0
    assert summary_of(run)["test"]["test_loss"] > 0
    assert summary_of(run)["stop_reason"] == "the limit of 1 epochs"


def test_a_closed_terminal_in_the_last_epochs_end(
    fit: Callable[..., tuple[Result, Path]], send: Callable[..., None]
) -> None:
    """All is trained, nothing is tested: the summary first says that it was terminated, and then why it ended."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests' own may ignore it
    send("on_train_epoch_end", 7, signal.SIGHUP)
    result, run = fit("SIGHUP-at-the-end", "--trainer.max_epochs=1")
    assert result.code == 128 + signal.SIGTERM
    assert summary_of(run)["stop_reason"] == "terminated"
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_DFL
    assert fit("SIGHUP-at-the-end", "--ckpt_path=last", config=run)[0].code == 0
    assert summary_of(run)["stop_reason"] == "the limit of 1 epochs"
    assert summary_of(run)["test"]["test_loss"] > 0
