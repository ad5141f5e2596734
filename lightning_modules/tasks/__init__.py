"""Tasks: thin LightningModules, each a model with its losses, its metrics and what becomes of its predictions."""

from lightning_modules.tasks.base import RecurrentTask
from lightning_modules.tasks.classification import ClassificationTask
from lightning_modules.tasks.forecasting import ForecastTask
from lightning_modules.tasks.language_model import LanguageModelTask
from lightning_modules.tasks.memory import MemoryTask
from lightning_modules.tasks.music import MusicTask
from lightning_modules.tasks.tagging import TaggingTask

__all__ = [
    "ClassificationTask",
    "ForecastTask",
    "LanguageModelTask",
    "MemoryTask",
    "MusicTask",
    "RecurrentTask",
    "TaggingTask",
]
