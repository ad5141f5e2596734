"""Whether a precision runs on this machine's CPU: tried with a batch, before anything is created for a run."""

import copy
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import Precision

from lightning_modules.data.base import TaskDataModule
from lightning_modules.tasks import RecurrentTask


def check_precision(trainer: Trainer, task: RecurrentTask, data: TaskDataModule, command: str) -> None:
    """Runs one batch of the data on a copy of the task in the trainer's precision, for a fit forwards and backwards.

    What a CPU computes in half precision depends on its instruction set, on the layer (``nn.LSTM`` is oneDNN's under
    autocast) and on the release of torch.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: torch cannot do it here, but could in float32; or the optimizer refuses the precision.
    """
    plugin, single = trainer.precision_plugin, Precision()
    if plugin.precision == single.precision or trainer.strategy.root_device.type != "cpu":
        return
    loaders = {"fit": "train_dataloader", "validate": "val_dataloader"}
    batch = next(iter(getattr(data, loaders.get(command, f"{command}_dataloader"))()))
    error = _failure(plugin, task, batch, command)
    if error is not None and _failure(single, task, batch, command) is None:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"trainer.precision '{plugin.precision}' does not run on this CPU ({reason}); '32-true' does"
        ) from error
    if command == "fit":
        with suppress(RuntimeError):  # a task may ask for its trainer
            converted: Any = plugin.convert_module(copy.deepcopy(task))
            converted.configure_optimizers()


def _failure(plugin: Precision, task: RecurrentTask, batch: Any, command: str) -> RuntimeError | None:
    """What torch says when the batch is run, if it fails."""
    trial: Any = plugin.convert_module(copy.deepcopy(task))
    batch = plugin.convert_input(batch)
    trial.train(command == "fit")
    try:
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(command == "fit"):
            with plugin.forward_context():
                loss = trial.predict_step(batch, 0) if command == "predict" else trial.batch_loss(batch, 0)[0]
            if command == "fit":
                loss.backward()
    except RuntimeError as error:
        return error
    return None
