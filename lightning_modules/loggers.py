"""Lightning's loggers at home in a run's folder: what they log lies there, and a resumed run is gone on with."""

import csv
import json
import os
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jsonargparse import get_loader
from jsonargparse._typehints import ActionTypeHint, NestedArg  # type: ignore[attr-defined]  # no public name
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import Logger

from lightning_modules.callbacks.run_summary import write_json

WANDB_FILE = "wandb.json"  # in a run's folder: the W&B run's id and name
NO_WANDB = "logging to W&B needs the package 'wandb': pip install 'lstm-fused[wandb]', or leave '-c wandb' out"
# What to install for a logger of Lightning's whose package is missing; W&B's says it itself.
PACKAGES = {
    "TensorBoardLogger": "tensorboard",
    "MLFlowLogger": "mlflow-skinny",  # the smallest that has its client
    "CometLogger": "comet_ml",
    "NeptuneLogger": "neptune",
    "LitLogger": "litlogger",
}


class WandbLogger(lightning_loggers.WandbLogger):
    """Lightning's W&B logger with a short patience, and an answer where the server or the account is missing.

    With ``offline`` (or ``WANDB_MODE=offline``) it needs neither: the run lies in ``wandb/offline-run-*`` until
    ``wandb sync`` sends it.

    Args:
        name: of the run; by default that of the run's folder.
        save_dir: the folder in which ``wandb/`` is made.
        project: the W&B project; by default ``WANDB_PROJECT``, or ``lstm_fused``.
        init_timeout: seconds to wait for the server.
        settings: further settings: a mapping, or ``wandb.Settings``, which then has the ``init_timeout`` too.
        **kwargs: all others of Lightning's WandbLogger and of ``wandb.init``.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | Path = ".",
        *,
        project: str | None = None,
        init_timeout: float = 5.0,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ModuleNotFoundError(NO_WANDB) from None
        if not isinstance(settings, wandb.Settings):
            settings = wandb.Settings(**{"init_timeout": init_timeout} | (settings or {}))
        project = project or os.environ.get("WANDB_PROJECT", "lstm_fused")
        super().__init__(name, save_dir, project=project, settings=settings, **kwargs)
        # The command line passes every argument, unset ones as None, also instead of Lightning's default "allow".
        if all(self._wandb_init.get(way) is None for way in ("resume", "resume_from", "fork_from")):
            self._wandb_init["resume"] = "allow"
        self.keep_in: Path | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; its id and name are written into the folder ``keep_in`` when it begins."""
        import wandb

        if self._experiment is not None:
            return self._experiment
        try:
            run = super().experiment
        except (wandb.errors.CommError, wandb.errors.UsageError, TimeoutError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ConnectionError(
                f"W&B cannot be reached ({reason}): set WANDB_MODE=offline to keep the run on the disk and send it "
                f"later with 'wandb sync', or leave '-c wandb' out"
            ) from error
        run.define_metric("val_loss", step_metric="trainer/global_step", summary="min")
        if self.keep_in is not None and not run.disabled:
            self.keep_in.mkdir(parents=True, exist_ok=True)
            write_json({"id": run.id, "name": run.name}, self.keep_in / WANDB_FILE)
        return run


class _InTheRunsFolder:
    """Goes before a logger of Lightning's, which then needs no folder argument.

    Args:
        save_dir: the folder of all that it logs; by default it is the run's own, without a folder ``name/version_N``.
        name: of the folder in ``save_dir``.
        **kwargs: those of Lightning's logger.
    """

    def __init__(self, save_dir: str | Path | None = None, name: str | None = "lightning_logs", **kwargs: Any) -> None:
        # What comes next in the order of classes is Lightning's logger; jsonargparse reads this line for its options.
        super().__init__("." if save_dir is None else save_dir, name=name, **kwargs)  # type: ignore[call-arg]


class CSVLogger(_InTheRunsFolder, lightning_loggers.CSVLogger):
    """Lightning's CSV logger, in the run's folder."""


class TensorBoardLogger(_InTheRunsFolder, lightning_loggers.TensorBoardLogger):
    """Lightning's TensorBoard logger, in the run's folder."""


class MLFlowLogger(lightning_loggers.MLFlowLogger):
    """Lightning's MLflow logger, whose files are in the run's folder unless another place is given.

    Args:
        experiment_name: of MLflow's experiment.
        run_name: by default that of the run's folder.
        save_dir: the folder of MLflow's files, where no server is given; by default ``mlruns`` in the run's.
        **kwargs: those of Lightning's MLFlowLogger.
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        save_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        if (uri := kwargs.get("tracking_uri") or "file:").startswith("file:") or "://" not in uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 requires this for storage in files
        # It becomes an address, in which a # or a % of a folder's name would mean something else.
        super().__init__(experiment_name, run_name=run_name, save_dir=quote(save_dir or "./mlruns"), **kwargs)


OURS = {cls.__name__: f"{__name__}.{cls.__name__}" for cls in (WandbLogger, CSVLogger, TensorBoardLogger, MLFlowLogger)}


class LoggerAction(ActionTypeHint):
    """An argument whose loggers are those of this module, where they are named as Lightning's or by the name alone."""

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        try:
            check: Any = super()._check_type
            return check(_as_ours(value), append=append, cfg=cfg, mode=mode)
        except TypeError:  # without wandb nothing is known of what wandb.init takes
            named = f"{value} {None if cfg is None else cfg.get(self.dest)}"
            if WandbLogger.__name__ in named and find_spec("wandb") is None:
                raise ModuleNotFoundError(NO_WANDB) from None
            raise


def _as_ours(value: Any) -> Any:
    """What may stand for a logger or several, with this module's class paths."""
    if isinstance(value, NestedArg):
        return NestedArg(value.key, _as_ours(value.val)) if value.key == "class_path" else value
    if isinstance(value, list):
        return [_as_ours(item) for item in value]
    if isinstance(value, dict):
        return {**value, "class_path": _as_ours(value["class_path"])} if "class_path" in value else value
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] in ("[", "{"):
        with suppress(yaml.YAMLError):
            return _as_ours(get_loader("yaml")(value))
    module, _, name = value.rpartition(".")
    return OURS[name] if name in OURS and (not module or module.startswith(lightning_loggers.__name__)) else value


def made_later(cls: type[Logger], *args: Any, **arguments: Any) -> partial[Logger]:
    """What the command line makes of a logger before the run's folder is known, and where nothing is logged at all."""
    return partial(cls, *args, **arguments)


def run_loggers(given: list[partial[Logger]], folder: Path, name: str, resumed: Path | None) -> list[Logger]:
    """A run's loggers: one that writes ``metrics.csv`` into its folder, and then those of the config.

    Args:
        given: the config's, each as :func:`made_later` left it.
        folder: the run's.
        name: the run's.
        resumed: the folder of the run that is gone on with.
    """
    loggers = [_in_folder(logger.func, dict(logger.keywords), folder, name, resumed) for logger in given]
    own = [logger for logger in loggers if _writes_csv_into(logger, folder)]
    others = [logger for logger in loggers if logger not in own]
    return [own[0] if own else _in_folder(CSVLogger, {}, folder, name, resumed), *others]


def _writes_csv_into(logger: Logger, folder: Path) -> bool:
    return isinstance(logger, CSVLogger) and Path(logger.log_dir).resolve() == folder.resolve()


def _in_folder(cls: Any, arguments: dict[str, Any], folder: Path, name: str, resumed: Path | None) -> Logger:
    """Creates a logger; arguments that are not given come from the run."""
    if issubclass(cls, (CSVLogger, TensorBoardLogger)) and arguments.get("save_dir") is None:
        for option, default in (("name", "lightning_logs"), ("version", None)):
            if (value := arguments.get(option, default)) != default:
                raise ValueError(
                    f"trainer.logger.{option} must come with trainer.logger.save_dir, without which {cls.__name__} "
                    f"logs into the run's folder, got {value!r} alone"
                )
        arguments |= {"save_dir": folder.parent, "name": "", "version": folder.name}
        cls = _ContinuedCSVLogger if cls is CSVLogger else cls
    elif issubclass(cls, MLFlowLogger):
        arguments["run_name"] = arguments.get("run_name") or f"{name}/{folder.name}"
        arguments["save_dir"] = arguments.get("save_dir") or str(folder / "mlruns")
    elif issubclass(cls, WandbLogger):
        kept = {} if resumed is None or _names_a_run(arguments) else _read_wandb_file(resumed)
        arguments["id"] = arguments.get("id") or kept.get("id")
        arguments["name"] = arguments.get("name") or kept.get("name") or f"{name}/{folder.name}"
    try:
        logger: Logger = cls(**arguments)
    except ModuleNotFoundError as error:
        if (package := PACKAGES.get(cls.__name__)) is None:
            raise
        raise ModuleNotFoundError(
            f"trainer.logger {cls.__name__} needs a package that is not there: pip install {package}"
        ) from error
    if isinstance(logger, WandbLogger):
        logger.keep_in = folder
    return logger


def _names_a_run(arguments: dict[str, Any]) -> bool:
    """Whether W&B's arguments already say which run to resume, or that none is."""
    named = ("id", "version", "resume_from", "fork_from", "experiment")
    no = arguments.get("resume") in (False, "never")
    return no or "WANDB_RUN_ID" in os.environ or any(arguments.get(name) for name in named)


def _read_wandb_file(folder: Path) -> dict[str, str]:
    try:
        run: dict[str, str] = json.loads((folder / WANDB_FILE).read_text(encoding="utf-8"))
        return run
    except (OSError, ValueError):
        return {}


class _ContinuedCSVLogger(CSVLogger):
    """Goes on with the ``metrics.csv`` of a run's folder, where Lightning's would begin it anew."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _ContinuedWriter(self.log_dir)
        return self._experiment


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """(Lightning's removes the file here.)"""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])
