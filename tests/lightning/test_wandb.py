"""Weights & Biases: offline without an account, a resumed run, and a quick answer where the server is out of reach."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import SMALL, Result
from testing import PATIENCE

from lightning_modules.loggers import WandbLogger, run_loggers

wandb = pytest.importorskip("wandb")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    wandb.teardown()


def read_back(run: Path) -> dict[str, Any]:
    inspect = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return json.loads(inspect.stdout)


def test_offline_needs_no_account_and_can_be_read_back_and_gone_on_with(
    small_fit: Callable[..., Result], command: Callable[..., Result], tmp_path: Path, offline: None
) -> None:
    result = small_fit("-c", "wandb", "--early_stopping.patience=4", "--seed_everything=7", "--trainer.max_epochs=1")
    assert result.code == 0, result.err
    wandb.finish()
    [run] = tmp_path.glob("wandb/offline-run-*")
    record = read_back(run)
    folder = tmp_path / "runs" / "char_lm" / "version_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert record["config"]["hidden_size"] == 12
    assert record["config"]["batch_size"] == 4
    assert record["config"]["seed_everything"] == 7
    assert record["config"]["gradient_clip_val"] == 1.0
    assert record["config"]["early_stopping"]["patience"] == 4
    assert record["name"] == "char_lm/version_0"
    assert record["summary"]["val_loss"]["min"] == pytest.approx(summary["best"]["val_loss"])
    assert record["summary"]["test_loss"] == pytest.approx(summary["test"]["test_loss"])
    assert record["state"] == "finished"
    # The CSV file is written all the same.
    assert (folder / "metrics.csv").is_file()
    kept = json.loads((folder / "wandb.json").read_text())
    assert run.name.endswith(kept["id"])
    assert kept["name"] == "char_lm/version_0"

    result = command("fit", "-c", folder, "--ckpt_path", "last", "--trainer.max_epochs=2")
    assert result.code == 0, result.err
    wandb.finish()
    runs = list(tmp_path.glob(f"wandb/offline-run-*-{kept['id']}"))
    assert len(runs) == 2
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    assert json.loads((folder.parent / "version_1" / "wandb.json").read_text()) == kept


def test_a_given_id_is_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    (tmp_path / "wandb.json").write_text('{"id": "old", "name": "earlier"}')

    def started(**arguments: Any) -> tuple[str | None, str]:
        _, logger = run_loggers([partial(WandbLogger, **arguments)], tmp_path / "version_1", "run", tmp_path)
        return logger._wandb_init["id"], logger._wandb_init["name"]

    assert started(id=None) == ("old", "earlier")
    assert started(name="mine") == ("old", "mine")
    assert started(id="new") == ("new", "run/version_1")
    assert started(version="new") == ("new", "run/version_1")
    assert started(resume="never") == (None, "run/version_1")
    assert started(fork_from="other?_step=3") == (None, "run/version_1")
    monkeypatch.setenv("WANDB_RUN_ID", "of the environment")
    assert started() == (None, "run/version_1")


def test_all_arguments_of_lightnings_and_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    logger = WandbLogger(
        "name", "folder", entity="team", group="g", notes="n", prefix="p", resume=None, settings={"silent": True}
    )
    given = logger._wandb_init
    assert (given["name"], given["dir"], given["entity"], given["group"]) == ("name", "folder", "team", "g")
    assert (given["project"], given["resume"], logger._prefix) == ("lstm_fused", "allow", "p")
    assert (given["settings"].init_timeout, given["settings"].silent) == (5.0, True)
    assert WandbLogger(resume="must")._wandb_init["resume"] == "must"
    assert WandbLogger(fork_from="run?_step=1", resume=None)._wandb_init["resume"] is None
    assert WandbLogger(settings=wandb.Settings(init_timeout=9))._wandb_init["settings"].init_timeout == 9
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert WandbLogger()._project == "mine"


def test_arguments_on_the_command_line_and_in_yaml(command: Callable[..., Result], tmp_path: Path) -> None:
    config = {"class_path": "WandbLogger", "init_args": {"group": "g"}, "dict_kwargs": {"notes": "n"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"trainer": {"logger": config}}))
    for words in (
        ("-c", "wandb", "--trainer.logger.init_args.group=g", "--trainer.logger.dict_kwargs.notes=n"),
        ("--trainer.logger", "WandbLogger", "--trainer.logger.group", "g", "--trainer.logger.notes", "n"),
        ("--trainer.logger", "lightning.pytorch.loggers.WandbLogger", "--trainer.logger", json.dumps(config)),
        ("-c", "mine.yaml"),
    ):
        result = command("fit", "-c", "char_lm", *words, "--trainer.logger.id=abc", "--print_config")
        assert result.code == 0, result.err
        logger = yaml.safe_load(result.out)["trainer"]["logger"]
        assert logger["class_path"] == "lightning_modules.loggers.WandbLogger"
        assert [logger["init_args"][name] for name in ("id", "group", "notes")] == ["abc", "g", "n"]
    result = command("fit", "-c", "char_lm", "-c", "wandb", "--trainer.logger.entitee=team")
    assert "'entitee'" in result.error


def test_without_the_package(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = command("fit", "-c", "char_lm", "-c", "wandb")
    assert "pip install 'lstm-fused[wandb]'" in result.error
    result = command("fit", "-c", "char_lm", "-c", "wandb", "--trainer.logger.no_such=1")
    assert "pip install 'lstm-fused[wandb]'" in result.error


def fit(text_file: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    words = ["fit", "-c", "char_lm", "-c", "wandb", f"--data.path={text_file}", *SMALL]
    return subprocess.run(
        [sys.executable, "-m", "lightning_modules", *words],
        capture_output=True,
        text=True,
        cwd=text_file.parent,
        env=kept | {"OMP_NUM_THREADS": "1", "HOME": str(text_file.parent)} | environment,
        timeout=PATIENCE,
        check=False,
    )


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


def test_a_report_joins_the_runs_that_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their group, with its tables and pictures; where the runs were not logged to W&B it is not either."""
    from made_up_plan import make_plan

    from lightning_modules.experiments.ablate import Ablate
    from lightning_modules.experiments.report import Report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    seeds = {1: {"val_accuracy": 0.5}, 2: {"val_accuracy": 0.6}}
    report = Report(Ablate(), make_plan(tmp_path / "plan", {"baseline": seeds, "dropout": seeds}))
    report.write()
    assert not list(tmp_path.glob("**/offline-run-*"))
    logger = {"class_path": "lightning_modules.loggers.WandbLogger", "init_args": {"group": "ablate/plan"}}
    for config in tmp_path.glob("plan/*/*/*/config.yaml"):
        config.write_text(json.dumps({"trainer": {"logger": logger}}))
    report.write()
    [run] = tmp_path.glob("**/offline-run-*")
    record = read_back(run)
    assert record["name"] == "ablate/plan/report"
    assert record["summary"]["table"]["_type"] == "table-file"
    assert record["summary"]["table"]["ncols"] == 9
    assert record["summary"]["curves.png"]["_type"] == "image-file"
    assert b"ablate/plan" in next(run.glob("*.wandb")).read_bytes()
    assert json.loads((tmp_path / "plan/wandb.json").read_text())["name"] == "ablate/plan/report"


def test_the_sweep_is_one_for_wandb_and_its_commands_are_fits() -> None:
    """As W&B's agent makes a command of what its server has chosen; the server itself is not asked."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    from lightning_modules.experiments.base import Config
    from lightning_modules.runs import CONFIGS

    sweep = load_sweep_config(str(CONFIGS.parent / "sweeps" / "char_lm.yaml"))
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"] == {"name": "val_loss.min", "goal": "minimize"}
    chosen = {name: {"value": options.get("values", [options.get("min")])[-1]} for name, options in
              sweep["parameters"].items()}  # fmt: skip
    words = create_sweep_command(list(sweep["command"]))
    args = create_sweep_command_args({"args": chosen})["args"]
    assert words[:2] == ["lstm-fused", "fit"]
    assert words[-1] == "${args}"
    config = Config([*words[2:-1], *args])
    hparams = config.task.hparams
    assert (hparams.lr, hparams.dropout, hparams.recurrent_dropout) == (0.001, 0.5, 0.2)
    assert (hparams.weight_decay, hparams.layer_norm) == (0.01, False)
    assert config.parsed.trainer.logger.class_path == "lightning_modules.loggers.WandbLogger"
