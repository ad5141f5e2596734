"""Callbacks: how a run stops, is resumed exactly and is judged, and what it leaves to read."""

from lightning_modules.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, RestoreBest, best_checkpoint
from lightning_modules.callbacks.divergence import Divergence, TrainingDiverged
from lightning_modules.callbacks.early_stopping import EarlyStopping
from lightning_modules.callbacks.interruption import Interruption
from lightning_modules.callbacks.learning_curves import LearningCurves
from lightning_modules.callbacks.optimizer_flags import OptimizerFlags
from lightning_modules.callbacks.progress import ProgressBar
from lightning_modules.callbacks.rng_state import RNGState
from lightning_modules.callbacks.run_summary import RunSummary
from lightning_modules.callbacks.text_sample import TextSample
from lightning_modules.callbacks.train_figures import TrainFigures

__all__ = [
    "BestCheckpoint",
    "Divergence",
    "EarlyStopping",
    "Interruption",
    "LastCheckpoint",
    "LearningCurves",
    "OptimizerFlags",
    "ProgressBar",
    "RNGState",
    "RestoreBest",
    "RunSummary",
    "TextSample",
    "TrainFigures",
    "TrainingDiverged",
    "best_checkpoint",
]
