"""What inspections take from a run: its recurrent layer at work on its own data, and its weights before training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_modules.callbacks.run_summary import recurrent_layer
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.injection import parameters_of
from lightning_modules.loading import DEFAULT_DATA, DEFAULT_TASK, LoadedRun, _import
from lightning_modules.runs import checkpoint_file, run_folder
from lightning_modules.tasks import RecurrentTask


@dataclass
class AtWork:
    """A recurrent layer on one batch, without gradients."""

    layer: nn.Module
    input: Tensor  # [T, B, I]
    lengths: Tensor | None  # int64 [B]; None where all are T
    state: Any  # the initial one; None is zeros
    output: Tensor  # [T, B, O]
    batch: Any  # the task's

    def real_steps(self) -> Tensor:
        """bool [T, B]: the steps that are no padding."""
        T, B = self.input.shape[:2]
        if self.lengths is None:
            return torch.ones(T, B, dtype=torch.bool)
        return torch.arange(T)[:, None] < self.lengths


def layer_of(task: RecurrentTask) -> nn.Module:
    """The task's largest recurrent layer, of whichever class it is."""
    layer = recurrent_layer(task.net)
    if layer is not task.net:
        return layer
    return next((m for m in task.net.modules() if isinstance(m, task.recurrent_class)), task.net)


def valid_batch(run: LoadedRun) -> Any:
    """The first batch of the run's own valid split.

    Raises what the data module raises where the data cannot be read any more.
    """
    run.data.setup("validate")
    return next(iter(run.data.val_dataloader()))


def at_work(task: RecurrentTask, batch: Any) -> AtWork:
    """What goes through the recurrent layer as the task's net, in eval, runs on a batch."""
    layer, seen = layer_of(task), []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        seen.append((*args, *[None] * (2 - len(args)), kwargs, result[0]))

    task.eval()
    handle = layer.register_forward_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            task.batch_loss(batch, 0)
    finally:
        handle.remove()
    input, state, kwargs, output = seen[0]
    lengths = kwargs.get("lengths")
    if isinstance(input, PackedSequence):
        input, lengths = pad_packed_sequence(input)
        output, _ = pad_packed_sequence(output)
    return AtWork(layer, input, lengths, kwargs.get("hx", state), output, batch)


def initial_weights(folder: str | Path, which: str = "best") -> dict[str, Tensor]:
    """The parameters that the run began with, made again from its seed, options and data as ``fit`` makes them.

    torch's random numbers are left as they were.

    Raises:
        ValueError: the run has no seed, or its data is not what it was.
        OSError: its data cannot be read any more.
    """
    path = checkpoint_file(folder, which)
    checkpoint = load_checkpoint(path)
    config_path = run_folder(path) / "config.yaml"
    config = yaml.safe_load(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    seed = config.get("seed_everything")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"the run's config.yaml must have its seed as seed_everything, got {seed!r}")
    model, data = config.get("model") or {}, config.get("data") or {}
    task_class: Any = _import(model.get("class_path", DEFAULT_TASK), RecurrentTask)
    data_class: Any = _import(data.get("class_path", DEFAULT_DATA), object)
    known = parameters_of(data_class)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = dict.fromkeys(task_class.size_names())
        task = task_class(**task_class.hparams_of(checkpoint) | sizes)
        datamodule = data_class(**{k: v for k, v in (data.get("init_args") or {}).items() if k in known})
        datamodule.setup("fit")
        task.build(datamodule)
    weights = {name: parameter.detach() for name, parameter in task.named_parameters()}
    for name, weight in weights.items():
        if weight.shape != checkpoint["state_dict"][name].shape:
            raise ValueError(
                f"the data must be that of the run, got {name} of shape {list(weight.shape)} instead of "
                f"{list(checkpoint['state_dict'][name].shape)}"
            )
    return weights
