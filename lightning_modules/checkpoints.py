"""Reading and writing checkpoints: never code, never half a file, and one sentence for a bad one."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lightning_modules.files import replaced


def read(path: str | Path) -> Any:
    """What ``torch.save`` has put into a file, on the CPU: tensors and plain values alone, so that no code of it runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything but tensors and plain values.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at '{path}'")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"the checkpoint '{path}' is damaged, or holds objects other than tensors and plain values, "
            f"which are not loaded because they could run code"
        ) from None
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise ValueError(f"the checkpoint '{path}' is damaged and cannot be read ({type(error).__name__})") from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of a Lightning run, by :func:`read`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint of a Lightning run, is damaged, or holds anything but tensors and plain
            values.
    """
    checkpoint = read(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"'{path}' is not a checkpoint of a training run: it has no state_dict")
    return checkpoint


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's road to its files: reads them with :func:`read`, and replaces a file in one step.

    Not all of them are checkpoints: the strategies that start processes hand bare weights back in one.
    A run that is stopped while it writes, or a full disk, leaves the checkpoint that was there before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as unfinished, open(unfinished, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint: dict[str, Any] = read(path)
        return checkpoint
