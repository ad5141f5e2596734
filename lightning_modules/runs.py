"""Where configs and runs lie: bundled configs by name, a run's folder and what is in it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.trainer_parts import is_trial

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

CONFIGS = Path(__file__).parent / "configs"
ON_TRAIN = "val_loss_on_train"  # what callbacks.TrainFigures logs


def config_file(given: str) -> Path:
    """The YAML file that ``given`` means: a file, a run's folder, or the bare name of a bundled config.

    Raises FileNotFoundError where there is none.
    """
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if (path / "config.yaml").is_file():
        return path / "config.yaml"
    bundled = CONFIGS / f"{given}.yaml"
    if bundled.is_file():
        return bundled
    names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
    raise FileNotFoundError(f"there is no config '{given}'; want a YAML file, a run's folder or one of {names}")


def checkpoint_file(run: str | Path, which: str = "best") -> Path:
    """The checkpoint ``which`` (``best``, ``last``, ``interrupted``) of a run's folder; a file stands for itself.

    Raises FileNotFoundError where there is none.
    """
    path = Path(run).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run's folder or checkpoint at '{run}'")
    checkpoint = path / "checkpoints" / f"{which}.ckpt"
    if not checkpoint.is_file():
        raise FileNotFoundError(f"the folder '{run}' has no checkpoints/{which}.ckpt")
    return checkpoint


def folder_of(trainer: "Trainer") -> Path | None:
    """The folder of the trainer's run; ``None`` where it keeps none.

    Every rank must call this: rank 0 broadcasts it to the others.
    """
    if is_trial(trainer) or not trainer.loggers:  # log_dir would be the user's own folder
        return None
    folder = trainer.log_dir
    return None if folder is None else Path(folder)


def run_folder(checkpoint: str | Path) -> Path:
    """The folder of the run that a checkpoint belongs to, or the folder it lies in."""
    parent = Path(checkpoint).resolve().parent
    return parent.parent if parent.name == "checkpoints" else parent


def read_summary(folder: str | Path) -> dict[str, Any]:
    """What a run's ``summary.json`` says; nothing where there is none that can be read."""
    try:
        summary: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        return summary
    except (OSError, ValueError):
        return {}
