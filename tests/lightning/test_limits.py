"""How much of the data a command takes: limits that count batches, and those with which nothing could be trained."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from run_folders import assert_is_judged_by_what_was_measured, points
from small_runs import BATCHES, Result, slow

from lightning_modules.callbacks import LearningCurves
from lightning_modules.cli import main


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({"limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1}, (1, 1, 1)),
        ({"limit_train_batches": 1.0, "limit_val_batches": 1}, (BATCHES, 1, 3)),
        ({"limit_train_batches": 0.5, "limit_val_batches": 1.0}, (3, 3, 3)),
        ({"overfit_batches": 1}, (1, 1, 3)),
        ({"overfit_batches": 2}, (2, 2, 3)),
    ],
)
@pytest.mark.parametrize("place", ["command line", slow("file")])
def test_a_whole_number_is_a_number_of_batches(
    fit: Callable[..., tuple[Result, Path]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    limits: dict[str, float],
    batches: tuple[int, int, int],
) -> None:
    seen: Counter = Counter()

    def counter(stage: str) -> Callable[..., None]:
        return lambda self, trainer, *_: seen.update([stage] if not trainer.sanity_checking else [])

    for stage in ("train", "validation", "test"):
        monkeypatch.setattr(LearningCurves, f"on_{stage}_batch_start", counter(stage), raising=False)
    name = "-".join(f"{key}={value}" for key, value in limits.items()) + place.replace(" ", "-")
    arguments = [f"--trainer.{key}={value}" for key, value in limits.items()]
    if place == "file":
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": limits}))
        arguments = [f"-c={folder / name}.yaml"]
    result, run = fit(name, "--trainer.max_epochs=1", *arguments)
    assert result.code == 0, result.err
    assert (seen["train"], seen["validation"], seen["test"]) == batches
    # The config that the run keeps, which is a file too, has not lost which of the two it was.
    written = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    for key, value in limits.items():
        assert (written[key], type(written[key])) == (value, type(value))


def test_a_command_takes_whole_numbers_of_batches_too(whole: Path, capfd: pytest.CaptureFixture) -> None:
    for command, limit in (("test", "limit_test_batches"), ("validate", "limit_val_batches")):
        figures = []
        for value in ("1", "1.0"):
            main(
                [
                    command,
                    "-c",
                    str(whole),
                    "--ckpt_path=best",
                    "--trainer.enable_progress_bar=false",
                    f"--trainer.{limit}={value}",
                ]
            )
            figures.append(re.search(r"loss\D+([\d.]+)", capfd.readouterr().out)[1])
        assert figures[0] != figures[1]
    main(
        [
            "predict",
            "-c",
            str(whole),
            "--ckpt_path=best",
            "--trainer.enable_progress_bar=false",
            "--trainer.limit_predict_batches=1",
        ]
    )
    assert capfd.readouterr().out.startswith("100 tokens, ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trainer.max_epochs=0"], "trainer.max_epochs must be more than 0 for a fit, got 0"),
        (["--trainer.max_steps=0"], "trainer.max_steps must be more than 0 for a fit, got 0"),
        (["--trainer.limit_train_batches=0"], "trainer.limit_train_batches must be more than 0 for a fit, got 0"),
        (["--trainer.max_time=00:00:00:00"], "trainer.max_time must be more than 0 seconds"),
        (
            ["--trainer.limit_val_batches=0.01"],
            "trainer.limit_val_batches must leave at least one of the 3 batches, got 0.01",
        ),
        (
            ["--trainer.limit_train_batches=0.01"],
            "trainer.limit_train_batches must leave at least one of the 7 batches",
        ),
        (
            ["--trainer.val_check_interval=8"],
            "trainer.val_check_interval must be at most the 7 batches of an epoch, got 8",
        ),
        (["--trainer.val_check_interval=4", "--trainer.limit_train_batches=3"], "must be at most the 3 batches"),
        (["--last_checkpoint.every_minutes=-1"], "every_minutes must be at least 0, got -1"),
        (["--model.lr_schedule=cosine", "--trainer.max_epochs=-1"], "lr_schedule 'cosine' needs an end of the run"),
        (
            ["--model.lr_schedule=cosine", "--trainer.max_epochs=null", "--trainer.max_time=00:01:00:00"],
            "lr_schedule 'cosine' needs an end of the run",
        ),
        (
            ["--early_stopping.monitor=val_los"],
            "early_stopping.monitor must be one of val_bpc, val_loss, val_ppl, got 'val_los'",
        ),
    ],
)
def test_what_cannot_be_trained_is_told_before_it_begins(
    fit: Callable[..., tuple[Result, Path]], arguments: list[str], sentence: str
) -> None:
    result, run = fit("refused", *arguments)
    assert sentence in result.error
    if "monitor" not in sentence:  # which the sanity check reports
        assert not run.exists()
    assert not (run / "checkpoints").exists()


def test_validations_by_the_clock(fit: Callable[..., tuple[Result, Path]]) -> None:
    result, run = fit("clock", "--trainer.val_check_interval=00:00:00:00", "--trainer.max_steps=3")
    assert result.code == 0, result.err
    assert [step for step, _ in points(run)] == [1, 2, 3]
    assert_is_judged_by_what_was_measured(run, result.out)


def test_fast_dev_run_tests_and_leaves_nothing(fit: Callable[..., tuple[Result, Path]]) -> None:
    result, run = fit("fast", "--trainer.fast_dev_run=true")
    assert result.code == 0, result.err
    assert "Test: " in result.out
    assert not run.parent.exists()


def test_a_sanity_check_is_no_measurement(fit: Callable[..., tuple[Result, Path]]) -> None:
    result, run = fit("sanity", "--trainer.num_sanity_val_steps=-1", "--trainer.max_epochs=1")
    assert result.code == 0, result.err
    assert [step for step, _ in points(run)] == [7]
    assert_is_judged_by_what_was_measured(run, result.out)
