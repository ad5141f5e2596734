"""Training on top of ``lstm_fused``: tasks, models, data, callbacks and the command ``lstm-fused``.

Importing this package imports nothing else; what is in it needs the extra ``lstm-fused[train]``.

``lightning_modules.load_run(folder)`` gives a trained model ready to be used.
"""

from typing import Any

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    if name == "load_run":
        from lightning_modules.loading import load_run

        return load_run
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
