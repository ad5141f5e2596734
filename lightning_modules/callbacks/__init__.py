"""Callbacks: checkpoints and exact resume, the best weights at the end, and what a run leaves to read."""

from lightning_modules.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, RestoreBest
from lightning_modules.callbacks.interruption import Interruption
from lightning_modules.callbacks.learning_curves import LearningCurves
from lightning_modules.callbacks.progress import ProgressBar
from lightning_modules.callbacks.rng_state import RNGState
from lightning_modules.callbacks.run_summary import RunSummary
from lightning_modules.callbacks.text_sample import TextSample

__all__ = [
    "BestCheckpoint",
    "Interruption",
    "LastCheckpoint",
    "LearningCurves",
    "ProgressBar",
    "RNGState",
    "RestoreBest",
    "RunSummary",
    "TextSample",
]
