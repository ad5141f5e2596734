"""The command: its runs, what they leave, and its one sentence when something is wrong."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import CONFIG_NAMES, SMALL, Result, make_text
from testing import PATIENCE

from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.cli import main
from lightning_modules.loading import load_run
from lightning_modules.runs import CONFIGS

RUN = Path("runs/char_lm/version_0")


def test_a_fit_and_all_that_follows(
    command: Callable[..., Result], small_fit: Callable[..., Result], tmp_path: Path
) -> None:
    """One run through every command, with what each leaves."""
    result = small_fit()
    assert result.code == 0, result.err
    folder = tmp_path / RUN
    assert {file.name for file in folder.iterdir()} >= {
        "checkpoints",
        "config.yaml",
        "learning_curves.png",
        "metrics.csv",
        "sample.txt",
        "summary.json",
    }
    assert {file.name for file in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stop_reason"] == "the limit of 2 epochs"
    assert (summary["finished"], summary["monitor"], summary["mode"]) == (True, "val_loss", "min")
    assert 0 < summary["ms_a_step"] < 1000 * summary["seconds"]
    assert "weight decay 0.0001" in result.out
    assert "net.lstm.weight_ln_ih_l0" in result.out

    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (
        config["model"]["init_args"]
        | {
            "dropout": 0.2,
            "layer_norm": True,
            "weight_decay": 1e-4,
            "forget_bias": 1.0,
            "hidden_size": 12,
        }
        == config["model"]["init_args"]
    )
    assert config["trainer"]["gradient_clip_val"] == 1.0
    assert config["early_stopping"]["patience"] == 5

    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    losses = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    assert len(losses) == 2
    assert min(losses) == pytest.approx(summary["best"]["val_loss"])
    assert any(row.get("lr-AdamW/pg1") for row in rows)
    assert [float(row["test_loss"]) for row in rows if row["test_loss"]] == [
        pytest.approx(summary["test"]["test_loss"])
    ]

    # The checkpoint alone gives the test's figure again, by name and by the run's folder.
    test = command("test", "-c", RUN, "--ckpt_path", "best", "--trainer.enable_progress_bar=false")
    assert test.code == 0, test.err
    assert str(summary["test"]["test_loss"])[:6] in test.out
    validate = command("validate", "-c", folder / "config.yaml", "--ckpt_path=best", *SMALL[-1:])
    assert validate.code == 0, validate.err
    assert str(summary["best"]["val_loss"])[:6] in validate.out
    last = load_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"]
    assert last == 1

    predict = command("predict", "-c", RUN, "--ckpt_path", "best", *SMALL[-1:])
    assert predict.code == 0, predict.err
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        predictions = list(csv.DictReader(file))
    text = "".join(row["token"] for row in predictions)
    assert text == make_text()[-len(text) :]
    total = sum(float(row["log_probability"]) for row in predictions)
    assert f"perplexity {math.exp(-total / len(predictions)):.3f}" in predict.out

    # New text, from a file and from memory; € is no character of the run's.
    new = "the cat sat on a dog€\n"
    (tmp_path / "new.txt").write_text(new, encoding="utf-8")
    result = command("predict", "-c", RUN, "--ckpt_path", "best", "--data.predict=new.txt", *SMALL[-1:])
    assert result.code == 0, result.err
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["token"] for row in rows] == [*new[1:-2], "<unk>", "\n"]
    assert f"{len(rows)} tokens, perplexity " in result.out
    assert "(of the 20 known tokens " in result.out
    loaded = load_run(RUN)
    first, second = loaded.predict([new, text])
    assert [token for token, _ in first] == [row["token"] for row in rows]
    assert [p for _, p in first] == pytest.approx([float(row["log_probability"]) for row in rows], abs=1e-5)
    assert [token for token, _ in second] == [row["token"] for row in predictions[1:]]
    with pytest.raises(ValueError, match="a text to predict must have at least 2 tokens, and text 1 has 1"):
        loaded.predict(["ab", "a"])
    missing = command("predict", "-c", RUN, "--ckpt_path", "best", "--data.predict=no.txt", *SMALL[-1:])
    assert missing.error == "there is no file, folder or match of a glob at 'no.txt'"

    samples = [
        command("sample", RUN, "--prompt", "the ", "--length", 40, "--seed", seed, "--top-k", 9, "--top_p", 0.9).out
        for seed in (1, 1, 2)
    ]
    assert samples[0] == samples[1] != samples[2]
    assert samples[0].startswith("the ")
    assert len(samples[0]) == len("the ") + 40 + 1

    told = command("sample", RUN, "--prompt", "thé €é", "--length", 3)
    assert told.code == 0
    assert told.err == "The model does not know 'é', '€' of the prompt and takes each for <unk>.\n"

    # Nothing but the fit made a folder.
    assert [path.name for path in (tmp_path / "runs" / "char_lm").iterdir()] == ["version_0"]


def test_a_resumed_fit_ends_like_one_that_never_stopped(small_fit: Callable[..., Result], tmp_path: Path) -> None:
    constant = "--model.lr_schedule=constant"  # a cosine would end with the first two epochs
    assert small_fit("--trainer.max_epochs=4", constant).code == 0
    assert small_fit("--trainer.max_epochs=2", constant).code == 0
    stopped = tmp_path / "runs" / "char_lm" / "version_1"
    before = (stopped / "checkpoints" / "last.ckpt").read_bytes()
    result = small_fit(
        "--trainer.max_epochs=4", constant, "--ckpt_path", stopped, "--model.dropout=0.5", "--seed_everything=77"
    )
    assert result.code == 0, result.err
    assert "model.dropout is 0.2, as in the checkpoint, not 0.5" in result.out
    whole, _, resumed = (
        load_checkpoint(tmp_path / "runs" / "char_lm" / f"version_{n}" / "checkpoints" / "last.ckpt") for n in range(3)
    )
    for name, value in whole["state_dict"].items():
        assert value.equal(resumed["state_dict"][name]), name
    figures = [json.loads((tmp_path / f"runs/char_lm/version_{n}/summary.json").read_text()) for n in (0, 2)]
    assert figures[0]["test"] == figures[1]["test"]
    assert figures[0]["best"]["val_loss"] == figures[1]["best"]["val_loss"]
    assert (stopped / "checkpoints" / "last.ckpt").read_bytes() == before
    tables = [(tmp_path / f"runs/char_lm/version_{n}/epochs.csv").read_text() for n in (0, 2)]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 5
    assert "epoch 2: " in result.out
    assert "epoch 1: " not in result.out
    config = yaml.safe_load((tmp_path / "runs/char_lm/version_2/config.yaml").read_text())
    assert config["ckpt_path"] is None  # or a test of this run would load another's weights


def test_a_run_that_has_ended_is_not_resumed(small_fit: Callable[..., Result], tmp_path: Path) -> None:
    assert small_fit().code == 0
    ended = tmp_path / RUN
    steps = load_checkpoint(ended / "checkpoints" / "last.ckpt")["global_step"]
    for limit, sentence in (
        (
            "--trainer.max_epochs=2",
            "trainer.max_epochs must be more than the 2 that the checkpoint's run has had, got 2",
        ),
        (f"--trainer.max_steps={steps}", f"trainer.max_steps must be more than the {steps} that"),
    ):
        result = small_fit("--trainer.max_epochs=9", limit, "--ckpt_path", ended)
        assert result.code != 0
        assert sentence in result.err
    assert [path.name for path in ended.parent.iterdir()] == ["version_0"]


def test_a_word_model_of_a_folder_without_a_test_text(
    command: Callable[..., Result], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.txt").write_text(make_text(200))
    (tmp_path / "texts" / "valid.txt").write_text(make_text(40, seed=5) + "an unknown word\n")
    result = command("fit", "-c", "word_lm", "--data.path", tmp_path / "texts", *SMALL, "--model.hidden_size=8")
    assert result.code == 0, result.err
    assert "There is no test split" in result.out
    summary = json.loads((tmp_path / "runs/word_lm/version_0/summary.json").read_text())
    assert summary["data"]["vocabulary"] == 2 + 12
    assert 0 < summary["data"]["valid_unknown_share"] < 0.05
    assert "test" not in summary
    assert summary["finished"]
    assert {"val_loss", "val_ppl"} <= summary["best"].keys()
    assert "val_bpc" not in summary["best"]
    sample = command("sample", "runs/word_lm/version_0", "--prompt", "the cat", "--length", 5, "--seed", 0)
    assert sample.out.startswith("the cat ")


def test_the_cell_is_one_flag(small_fit: Callable[..., Result], tmp_path: Path) -> None:
    result = small_fit("--model.recurrent=torch")
    assert result.code == 0, result.err
    assert "torch.nn.LSTM has no layer_norm, recurrent_dropout: what the config sets is left out" in result.out
    assert isinstance(load_run(tmp_path / RUN).task.net.lstm, torch.nn.LSTM)


def test_a_fit_that_diverges_stops_and_says_why(small_fit: Callable[..., Result], tmp_path: Path) -> None:
    result = small_fit("--model.lr=1e30", "--trainer.max_epochs=9", "--trainer.gradient_clip_val=0")
    assert result.code == 1
    assert result.error.startswith("the training has diverged: the training loss is nan in epoch 0, after step ")
    summary = json.loads((tmp_path / RUN / "summary.json").read_text())
    assert summary["epochs"] < 1
    assert summary["best"] is None
    assert "the training loss is nan" in summary["stop_reason"]
    assert summary["finished"]  # there is nothing to test, and nothing to resume


def test_a_new_text_is_tested_with_the_runs_own_vocabulary(
    command: Callable[..., Result], small_fit: Callable[..., Result], text_file: Path, tmp_path: Path
) -> None:
    assert small_fit("--model.zoneout=[0.1,0.2]").code == 0
    text_file.unlink()  # nothing of what the run was trained on is needed any more
    (tmp_path / "new.txt").write_text("the cat said ZZZ\n" * 9)
    result = command("test", "-c", RUN, "--ckpt_path", "best", "--data.test=new.txt", *SMALL[-1:])
    assert result.code == 0, result.err
    assert "test_bpc" in result.out
    assert "not" not in result.out  # no difference between the run's config and its checkpoint


def test_every_bundled_config_parses(tmp_path: Path) -> None:
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert {*CONFIG_NAMES, "wandb"} <= set(names)
    for name in names:
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert config.get("name", name) == name


# Each of the others runs in the tests of its task; those of a forecast name the columns of their data.
OF_PUBLIC_DATA = {path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("forecast_")}
OF_PUBLIC_DATA -= {*CONFIG_NAMES, "wandb"}


@pytest.mark.parametrize("config", sorted(OF_PUBLIC_DATA))
def test_the_configs_of_public_data_run_without_it(command: Callable[..., Result], config: str) -> None:
    result = command("fit", "-c", config, "--trainer.fast_dev_run=1")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "there is no command 'fitt'"),
        (["fit"], "'fit' needs a config"),
        (["fit", "-c", "no_such_config"], "want a YAML file, a run's folder or one of adding,"),
        (["fit", "-c", "char_lm", "--model.dropuot=0.1"], "Option 'dropuot' is not accepted; did you mean 'dropout'?"),
        (
            ["fit", "-c", "ner", "--model.label_smoothing=1"],
            "'label_smoothing' is not accepted; it is one of another class",
        ),
        (["fit", "-c", "char_lm", "--trainer.max_epoch=1"], "did you mean 'max_epochs'?"),
        (["fit", "-c", "char_lm", "--model.hidden_size=big"], "Expected a <class 'int'>. Got value: big"),
        (["fit", "-c", "char_lm", "--model.recurrent=grru"], "got 'grru'; did you mean 'gru'?"),
        (["fit", "-c", "char_lm", "--model.dropout=1.5"], "dropout must be in [0, 1), got 1.5"),
        (["fit", "-c", "char_lm", "--model.zoneout=-1"], "zoneout"),
        (["fit", "-c", "char_lm", "--model.lr=-1"], "lr must be at least 0 and finite, got -1"),
        (["fit", "-c", "char_lm", "--data.path=missing.txt"], "there is no file, folder or match of a glob"),
        (["fit", "-c", "char_lm", "--data.path=empty.txt"], "train text is empty: 'empty.txt'"),
        (["fit", "-c", "char_lm", "--data.path=latin.txt"], "'latin.txt' is not utf-8 text (byte 3"),
        (["fit", "-c", "char_lm", "--data.path=short.txt"], "too short"),
        (["fit", "-c", "char_lm", "--data.max_vocab=1"], "max_vocab must be more than"),
        (["fit", "-c", "typo.yaml"], "does not accept option 'trainer.max_epoch'; did you mean 'max_epochs'?"),
        (["fit", "-c", "broken.yaml"], "while parsing a flow sequence"),
        (["fit", "-c", "char_lm", "--ckpt_path", "nowhere.ckpt"], "no run's folder or checkpoint at 'nowhere.ckpt'"),
        (["fit", "-c", "char_lm", "--ckpt_path", "best"], "needs a run to be that of"),
        (["test", "-c", "char_lm"], "'test' needs weights"),
        (["sample", "nowhere"], "there is no run's folder or checkpoint at 'nowhere'"),
        (["sample", "."], "has no checkpoints/best.ckpt"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    command: Callable[..., Result], tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "typo.yaml").write_text((CONFIGS / "char_lm.yaml").read_text().replace("max_epochs", "max_epoch"))
    (tmp_path / "broken.yaml").write_text("model: [1, 2\n")
    result = command(*arguments)
    assert message in result.error
    assert not (tmp_path / "runs").exists()


def test_help_and_version(command: Callable[..., Result]) -> None:
    assert "lstm-fused COMMAND" in command("--help").out
    assert command().code == 2
    assert "0.1.0" in command("--version").out
    assert "--top-k" in command("sample", "--help").out
    help = command("fit", "--help")
    assert (help.code, help.err) == (0, "")
    assert "--early_stopping.patience" in help.out


def test_debug_shows_the_traceback(command: Callable[..., Result]) -> None:
    result = command("fit", "-c", "nope", "--debug")
    assert result.code == 1
    assert "Traceback" in result.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_with_the_code_a_shell_expects(text_file: Path, tmp_path: Path, number: int, code: int) -> None:
    arguments = ["fit", "-c", "char_lm", "--data.path", text_file, *SMALL, "--trainer.max_epochs=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_modules", *map(str, arguments), "--early_stopping.patience=100000"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        last = tmp_path / RUN / "checkpoints" / "last.ckpt"
        deadline = time.monotonic() + PATIENCE
        while not last.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert load_checkpoint(last)["global_step"] > 0


def test_a_failure_that_nobody_foresaw_is_still_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("lightning_modules.cli._run", fail)
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == "lstm-fused: error: ZeroDivisionError: division by zero (--debug shows where)\n"


def test_the_arguments_of_a_layer_are_listed_whatever_stands_behind(command: Callable[..., Result]) -> None:
    for words, argument in ((("-c", "char_lm"), "--zoneout"), (("gru",), "--num_layers"), ((), "--zoneout")):
        result = command("fit", "--model.recurrent.help", *words)
        assert (result.code, argument in result.out) == (0, True), result.err
