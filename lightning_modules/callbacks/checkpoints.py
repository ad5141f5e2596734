"""The best and the last checkpoint of a run, and the best weights at its end."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.checkpoints import load_checkpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, the checkpoint of the epoch with the lowest ``monitor`` (strictly: a tie is not better).

    A resumed run writes to a folder of its own. The best checkpoint so far is copied there, from beside the
    checkpoint that the run resumes from, so that the best stays the best of the whole training.
    """

    def __init__(self, monitor: str = "val_loss", mode: str = "min") -> None:
        super().__init__(filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._trainer = trainer

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        score = state_dict.get("best_model_score")
        if self._trainer.state.fn != "fit" or score is None:
            return
        before = Path(self._trainer.ckpt_path).with_name("best.ckpt")
        if not before.is_file() or self._score(before) != float(score):
            rank_zero_warn(
                f"no best.ckpt with the score so far lies beside '{self._trainer.ckpt_path}': the best of this "
                f"run is that of its own epochs"
            )
            return
        best = Path(self.dirpath) / "best.ckpt"
        if self._trainer.is_global_zero and best.resolve() != before.resolve():
            best.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(before, best)
        self._trainer.strategy.barrier()
        path = str(best)
        super().load_state_dict(
            state_dict
            | {
                "dirpath": self.dirpath,
                "best_model_path": path,
                "kth_best_model_path": path,
                "best_k_models": {path: score},
                "last_model_path": "",
            }
        )

    def _score(self, path: Path) -> float | None:
        """The score that the checkpoint at ``path`` was the best with."""
        score = load_checkpoint(path).get("callbacks", {}).get(self.state_key, {}).get("best_model_score")
        return None if score is None else float(score)


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, the checkpoint of the last epoch: what to resume from.

    (Lightning's ``save_last`` writes one only in epochs that improve.)
    """

    def __init__(self) -> None:
        super().__init__(filename="last", monitor=None, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is nothing to continue: the file of the run resumed from is left as it is."""


class RestoreBest(Callback):
    """Loads the weights of ``best.ckpt`` when training ends, so that what is tested next is the best model.

    Without it the module holds the weights of the last epoch, which early stopping has just judged worse.
    ``best_epoch`` is the epoch the weights are of, counted from 0; ``None`` where no checkpoint was made.
    """

    def __init__(self) -> None:
        self.best_epoch: int | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
        if best is None or not best.best_model_path:
            return
        checkpoint = load_checkpoint(best.best_model_path)
        pl_module.load_state_dict(checkpoint["state_dict"])
        self.best_epoch = checkpoint["epoch"]
