"""A trained model with all that it needs to be used: ``load_run``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.data.base import TaskDataModule
from lightning_modules.injection import parameters_of
from lightning_modules.runs import checkpoint_file, run_folder
from lightning_modules.tasks import RecurrentTask

# What a checkpoint without a run's folder around it is taken for.
DEFAULT_TASK = "lightning_modules.tasks.LanguageModelTask"
DEFAULT_DATA = "lightning_modules.data.TextDataModule"


@dataclass(frozen=True)
class LoadedRun:
    """A run's trained task, and its data module with the run's vocabulary or scaling."""

    task: RecurrentTask
    data: TaskDataModule
    checkpoint: Path

    def predict(self, examples: Any) -> Any:
        """What the task makes of data in memory: see ``predict_examples`` of the task's class."""
        return self.task.predict_examples(examples, self.data)


def load_run(folder: str | Path, which: str = "best") -> LoadedRun:
    """The model of a run's folder, ready to be used.

    Args:
        folder: a run's folder, or one of its checkpoint files.
        which: the checkpoint: ``best``, ``last`` or ``interrupted``.

    Raises:
        FileNotFoundError: there is no such folder or checkpoint.
        ValueError: it is not a sound checkpoint of a task.
    """
    path = checkpoint_file(folder, which)
    checkpoint = load_checkpoint(path)
    config_path = run_folder(path) / "config.yaml"
    config = yaml.safe_load(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    model, data = config.get("model") or {}, config.get("data") or {}
    task_class: Any = _import(model.get("class_path", DEFAULT_TASK), RecurrentTask)
    data_class: Any = _import(data.get("class_path", DEFAULT_DATA), TaskDataModule)
    try:
        state = checkpoint[data_class.__qualname__]
        known = parameters_of(data_class)
        options = {name: value for name, value in (data.get("init_args") or {}).items() if name in known}
        datamodule = data_class(**options | data_class.options_of_state(state))
        datamodule.load_state_dict(state)
        sizes = dict.fromkeys(task_class.size_names())
        task = task_class(**task_class.hparams_of(checkpoint) | sizes)
        task.build(datamodule)
        task.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"'{path}' is not a sound checkpoint of a {task_class.__name__}: {reason}") from error
    return LoadedRun(task.eval(), datamodule, path)


def _import(path: str, base: type) -> type:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(__import__(module, fromlist=[name]), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the run's config names the class '{path}', which cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"the run's config names '{path}', which is no {base.__name__}")
    return found
