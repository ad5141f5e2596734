"""Options given when resuming: which of them act, which stay, and what is printed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import assert_same_weights, last, rows_of, summary_of
from small_runs import SHORT_RUN, Result, slow

from lightning_modules.cli import main


@pytest.fixture(scope="module")
def two_epochs(folder: Path) -> Path:
    """A run of two epochs with SGD."""
    options = ("--model.optimizer=sgd", "--model.lr=0.1", "--model.momentum=0.5", "--trainer.max_epochs=2")
    text = f"--data.path={folder / 'text.txt'}"
    main(["fit", "-c", "char_lm", text, *SHORT_RUN, *options, f"--runs={folder}", "--name=two-epochs"])
    return folder / "two-epochs" / "version_0"


def options_of(run: Path) -> dict[str, Any]:
    """What config.yaml says, with the model's and the data's options beside the others."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    return {**config, **config["model"]["init_args"], **config["data"]["init_args"]}


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({"lr": 0.03, "weight_decay": 0.5, "momentum": 0.9}, 0.03),
        ({"warmup_steps": 28}, 0.1 * 15 / 28),
        ({"lr_schedule": "cosine"}, 0.1 * 0.5 * (1 + math.cos(math.pi * (14 - 2) / (21 - 2)))),
    ],
)
def test_options_of_training_act_on_resuming(
    fit: Callable[..., tuple[Result, Path]], two_epochs: Path, given: dict[str, Any], rate: float
) -> None:
    before = options_of(two_epochs)
    words = [f"--model.{name}={value}" for name, value in given.items()]
    result, run = fit("-".join(given), "--ckpt_path=last", "--trainer.max_epochs=3", *words, config=two_epochs)
    assert result.code == 0, result.err
    for name, value in given.items():
        assert f"model.{name} is {value!r} from here on, {before[name]!r} in the checkpoint\n" in result.out
    assert float(next(row["lr-SGD/pg1"] for row in rows_of(run) if row["lr-SGD/pg1"])) == pytest.approx(rate)
    decayed, spared = last(run)["optimizer_states"][0]["param_groups"]
    assert decayed["momentum"] == spared["momentum"] == given.get("momentum", 0.5)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (given.get("weight_decay", 1e-4), 0)
    assert {name: options_of(run)[name] for name in given} == given


def test_options_of_the_model_stay_on_resuming_and_a_line_says_so(
    fit: Callable[..., tuple[Result, Path]], two_epochs: Path, whole: Path
) -> None:
    given = {"model.dropout": 0.7, "model.hidden_size": 5, "seed_everything": 5, "data.max_vocab": 5}
    words = [f"--{name}={value}" for name, value in given.items()] + ["--model.optimizer=adamw"]
    result, run = fit("stay", "--ckpt_path=last", "--trainer.max_epochs=3", *words, config=two_epochs)
    assert result.code == 0, result.err
    before, after = options_of(two_epochs), options_of(run)
    for name, value in given.items():
        old = before[name.rpartition(".")[2]]
        assert f"{name} is {old!r}, as in the checkpoint, not {value!r}\n" in result.out
        assert after[name.rpartition(".")[2]] == old
    assert (
        "model.optimizer is {'class_path': 'torch.optim.SGD', 'init_args': {}}, as in the checkpoint, not" in result.out
    )
    assert after["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": {}}
    # They did stay: without them it resumes to the same weights.
    _, plain = fit("stay", "--ckpt_path=last", "--trainer.max_epochs=3", config=two_epochs, version=1)
    assert_same_weights(plain, run)


@pytest.fixture(scope="module")
def stopped_early(folder: Path) -> Path:
    """A run that could have had four epochs, stopped after two: the second was no better by 9."""
    options = ("--early_stopping.patience=1", "--early_stopping.min_delta=9", "--trainer.max_epochs=4")
    text = f"--data.path={folder / 'text.txt'}"
    main(["fit", "-c", "char_lm", text, *SHORT_RUN, *options, f"--runs={folder}", "--name=stopped-early"])
    return folder / "stopped-early" / "version_0"


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        (["--early_stopping.patience=2"], 3),
        (["--early_stopping.patience=2", "--early_stopping.min_delta=0"], 4),  # the limit: each is better than before
        slow(["--early_stopping.patience=9"], 4),
        slow(["--early_stopping.patience=9", "--early_stopping.stopping_threshold=99"], 3),
        (["--early_stopping.monitor=val_bpc"], 4),  # counts from the third epoch on
        slow(["--early_stopping.mode=max"], 4),
        (["--trainer.min_epochs=3"], 3),
    ],
)
def test_early_stopping_does_what_it_is_told_on_resuming(
    fit: Callable[..., tuple[Result, Path]], stopped_early: Path, given: list[str], epochs: int
) -> None:
    assert summary_of(stopped_early)["epochs"] == 2
    name = "-".join(word.partition(".")[2] for word in given)
    result, run = fit(name, f"--ckpt_path={stopped_early}", *given, config=stopped_early)
    assert result.code == 0, result.err
    summary = summary_of(run)
    assert summary["epochs"] == epochs
    by_limit = epochs == 4 and "patience" in name
    assert (summary["stop_reason"] == "the limit of 4 epochs") == by_limit
    assert ("early stopping counts anew" in result.out) == ("patience" not in name and "min_epochs" not in name)
    figure = "val_bpc" if "bpc" in name else "val_loss"
    judged = [row for row in last(run)["callbacks"]["LearningCurves"]["epochs"][1:] if figure in row]
    expected = (max if "mode" in name else min)(judged, key=lambda row: row[figure])
    assert summary["best"]["step"] == expected["step"]
    assert summary["best"][figure] == expected[figure]
    config = yaml.safe_load((run / "config.yaml").read_text())["early_stopping"]
    for word in given:
        key, _, value = word.partition("=")
        if key.startswith("--early_stopping."):
            assert config[key.rpartition(".")[2]] == yaml.safe_load(value)
