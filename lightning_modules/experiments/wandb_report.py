"""The report in Weights & Biases, beside the runs that it is of."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from lightning_modules.experiments.report import Report, Result

SHARED = ("project", "entity", "group", "offline", "save_dir")  # options of the runs' logger that the report has too


def log_report(report: "Report", tables: dict[str, tuple[Sequence[str], list[list[Any]]]], pictures: list[str]) -> bool:
    """Logs tables (names of the columns, and rows) and pictures, where the runs were logged; whether they were.

    A report that is made again is logged into the same W&B run.
    """
    options = logger_options(report.results)
    if options is None:
        return False
    from lightning_modules.loggers import WANDB_FILE, WandbLogger

    kept = report.folder / WANDB_FILE
    run_id = json.loads(kept.read_text(encoding="utf-8"))["id"] if kept.is_file() else None
    logger = WandbLogger(
        f"{report.plan.experiment}/{report.folder.name}/report", id=run_id, job_type="report", **options
    )
    logger.keep_in = report.folder
    run = logger.experiment
    import wandb  # which WandbLogger has found, or has said what to install

    logged: dict[str, Any] = {
        name: wandb.Table(columns=list(columns), data=rows) for name, (columns, rows) in tables.items()
    }
    run.log(logged | {name: wandb.Image(str(report.folder / name)) for name in pictures})
    run.finish()
    return True


def logger_options(results: Sequence["Result"]) -> dict[str, Any] | None:
    """Of the W&B logger in the config of the newest of the runs; ``None`` where there is none."""
    if not results:
        return None
    config = yaml.safe_load((results[-1].folder / "config.yaml").read_text(encoding="utf-8"))
    given = (config.get("trainer") or {}).get("logger")
    for logger in given if isinstance(given, list) else [given]:
        if isinstance(logger, dict) and logger["class_path"].endswith("WandbLogger"):
            arguments = logger.get("init_args") or {}
            return {name: arguments[name] for name in SHARED if arguments.get(name) is not None}
    return None
