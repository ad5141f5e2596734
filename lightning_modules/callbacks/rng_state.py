"""The random number generators' states in every checkpoint."""

import os
import random
from typing import Any

import torch
from lightning.pytorch import Callback


class RNGState(Callback):
    """Saves the states of torch's and Python's generators, and sets them before the first batch of a resumed run.

    Not earlier: building the model, a sanity check or another callback may draw numbers in between. The seed that they
    began with, Lightning's, is kept for reading.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        state = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if seed := os.environ.get("PL_GLOBAL_SEED"):
            state["seed"] = int(seed)
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending = state_dict

    def on_train_batch_start(self, *_: Any) -> None:
        if self._pending is None:
            return
        state, self._pending = self._pending, None
        torch.set_rng_state(state["torch"])
        random.setstate(state["python"])
        if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
