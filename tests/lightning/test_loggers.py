"""Lightning's other loggers: in the run's folder, read back with their own readers."""

import csv
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.fabric.loggers.tensorboard
import pytest
import yaml
from lightning.pytorch import loggers as lightning_loggers
from small_runs import Result

from lightning_modules.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, run_loggers


def test_tensorboard_mlflow_and_csv_log_into_the_runs_folder(
    small_fit: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    mlflow = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    loggers = "[TensorBoardLogger, {class_path: CSVLogger, init_args: {flush_logs_every_n_steps: 7}}]"
    result = small_fit(
        "--name=lm#1 100%25",  # what has a meaning in an address is a name's letters here
        "--trainer.max_epochs=1",
        "--seed_everything=7",
        "--early_stopping.patience=4",
        "--trainer.logger",
        loggers,
        "--trainer.logger+",
        "MLFlowLogger",
    )
    assert result.code == 0, result.err
    assert "not found" not in result.err  # Lightning would print that it creates MLflow's experiment
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "text.txt"]
    folder = tmp_path / "runs" / "lm#1 100%25" / "version_0"
    test_loss = json.loads((folder / "summary.json").read_text())["test"]["test_loss"]

    events = reader.EventAccumulator(str(folder))
    events.Reload()
    assert [event.value for event in events.Scalars("test_loss")] == pytest.approx([test_loss])
    assert events.Scalars("val_loss")

    client = mlflow.MlflowClient((folder / "mlruns").as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    assert run.info.run_name == "lm#1 100%25/version_0"
    assert run.data.metrics["test_loss"] == pytest.approx(test_loss)
    told = {"seed_everything": "7", "gradient_clip_val": "1.0", "early_stopping/patience": "4", "hidden_size": "12"}
    assert told.items() <= run.data.params.items()

    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test_loss"]) for row in rows if row["test_loss"]] == pytest.approx([test_loss])
    hparams = yaml.unsafe_load((folder / "hparams.yaml").read_text())
    assert (hparams["seed_everything"], hparams["early_stopping"]["patience"]) == (7, 4)


def test_a_csv_logger_of_the_same_folder_is_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/name/version_0")

    def folders(*given: partial) -> list[str]:
        return [os.path.relpath(logger.log_dir) for logger in run_loggers(list(given), folder, "name", None)]

    own, other = str(folder), "mine/lightning_logs/version_0"
    assert folders() == [own]
    assert folders(partial(CSVLogger, save_dir=None)) == [own]
    assert folders(partial(CSVLogger), partial(CSVLogger)) == [own]
    assert folders(partial(CSVLogger, save_dir="runs", name="name")) == [own]
    assert folders(partial(CSVLogger, save_dir="mine"), partial(CSVLogger)) == [own, other]
    [logger] = run_loggers([partial(CSVLogger, flush_logs_every_n_steps=7)], folder, "name", None)
    assert logger._flush_logs_every_n_steps == 7
    with pytest.raises(ValueError, match=r"trainer\.logger\.name must come with trainer\.logger\.save_dir"):
        folders(partial(CSVLogger, name="x"))


@pytest.mark.parametrize("name", ["TensorBoardLogger", "MLFlowLogger"])
def test_given_folders_are_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip({"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}[name])
    cls = {"TensorBoardLogger": TensorBoardLogger, "MLFlowLogger": MLFlowLogger}[name]
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    _, logger = run_loggers([partial(cls, save_dir=str(tmp_path / "mine"))], Path("runs/name/version_0"), "name", None)
    assert Path(logger.save_dir).is_relative_to(tmp_path / "mine")
    assert isinstance(logger, getattr(lightning_loggers, name))


def test_names_mean_ours_wherever_they_stand(command: Callable[..., Result], tmp_path: Path) -> None:
    ours = "lightning_modules.loggers."

    def classes(*words: str) -> list[str]:
        result = command("fit", "-c", "char_lm", *words, "--print_config")
        assert result.code == 0, result.err
        loggers = yaml.safe_load(result.out)["trainer"]["logger"]
        return [logger["class_path"] for logger in (loggers if isinstance(loggers, list) else [loggers])]

    assert classes("--trainer.logger=TensorBoardLogger") == [ours + "TensorBoardLogger"]
    assert classes("--trainer.logger.class_path=CSVLogger") == [ours + "CSVLogger"]
    (tmp_path / "mine.yaml").write_text("trainer:\n  logger: [lightning.pytorch.loggers.TensorBoardLogger]\n")
    both = [ours + "TensorBoardLogger", ours + "MLFlowLogger"]
    assert classes("-c", "mine.yaml", "--trainer.logger+=MLFlowLogger") == both
    result = command("fit", "-c", "char_lm", "--trainer.logger=false", "--print_config")
    assert yaml.safe_load(result.out)["trainer"]["logger"] is False


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lightning.fabric.loggers.tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(lightning.fabric.loggers.tensorboard, "_TENSORBOARDX_AVAILABLE", False)
    monkeypatch.setattr(lightning.pytorch.loggers.mlflow, "_MLFLOW_AVAILABLE", False)
    for cls, package in ((TensorBoardLogger, "tensorboard"), (MLFlowLogger, "mlflow-skinny")):
        with pytest.raises(ModuleNotFoundError, match=f"trainer.logger {cls.__name__} .*: pip install {package}$"):
            run_loggers([partial(cls)], tmp_path, "name", None)
