"""The random number generators' states in every checkpoint."""

import os
import random
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RNGState(Callback):
    """Saves the states of torch's and Python's generators, and sets them before the first batch of a resumed run.

    Not earlier: building the model, a sanity check or another callback may draw numbers in between. The seed that they
    began with, Lightning's, is kept for reading.

    Of several processes each draws numbers of its own from the first batch on, so that no two have the same dropout
    masks: the first those that it would draw alone. Resumed, each gets its own back; on another number of processes
    those of the first part anew.
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

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """(Called on every rank after :meth:`state_dict`; rank 0 writes.)"""
        if trainer.world_size > 1:
            states: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, self.state_dict())
            checkpoint["callbacks"][self.state_key]["ranks"] = states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending is None:
            part(trainer.global_rank)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._pending is None:
            return
        state, self._pending = self._pending, None
        if is_own := len(ranks := state.get("ranks", ())) == trainer.world_size:
            state = ranks[trainer.global_rank]
        torch.set_rng_state(state["torch"])
        random.setstate(state["python"])
        if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        if not is_own:
            part(trainer.global_rank)


def part(rank: int) -> None:
    """Seeds the generators of all processes but the first from where they stand, alike in all of them, and the rank."""
    if rank > 0:
        seed = int(torch.randint(2**62, (rank,))[-1])
        torch.manual_seed(seed)
        random.seed(seed)
