"""Loggers: Weights & Biases that never keeps a run waiting, and a CSV file that is gone on with."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment


class WandbLogger(LightningWandbLogger):
    """Lightning's W&B logger with a short patience, and an answer where the server or the account is missing.

    With ``offline`` (or ``WANDB_MODE=offline``) it needs neither: the run lies in ``wandb/offline-run-*`` until
    ``wandb sync`` sends it.

    Args:
        project: the W&B project.
        name: of the run; by default that of the run's folder.
        save_dir: the folder in which ``wandb/`` is made.
        offline: write to the disk only.
        log_model: whether checkpoints are uploaded: ``True``, ``False`` or ``"all"``; not offline.
        init_timeout: seconds to wait for the server.
        tags: of the run.
    """

    def __init__(
        self,
        project: str = "lstm_fused",
        name: str | None = None,
        save_dir: str = ".",
        offline: bool = False,
        log_model: bool | str = False,
        init_timeout: float = 5.0,
        tags: list[str] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ModuleNotFoundError(
                "logging to W&B needs the package 'wandb': pip install 'lstm-fused[wandb]', or leave '-c wandb' out"
            ) from None
        super().__init__(
            project=project,
            name=name,
            save_dir=save_dir,
            offline=offline,
            log_model=log_model,
            tags=tags,
            settings=wandb.Settings(init_timeout=init_timeout),
        )

    def set_default_name(self, name: str) -> None:
        """Names the run, unless it has a name."""
        if self._wandb_init["name"] is None:
            self._wandb_init["name"] = self._name = name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
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
        return run


class ContinuedCSVLogger(CSVLogger):
    """Goes on with the ``metrics.csv`` of a run's folder, where Lightning's would begin it anew.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name="", version=folder.name)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
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
