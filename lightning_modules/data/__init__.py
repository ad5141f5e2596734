"""Data modules, and the plain-file readers they stand on."""

from lightning_modules.data.base import TaskDataModule
from lightning_modules.data.batches import ExampleLoader
from lightning_modules.data.series import SeriesDataModule
from lightning_modules.data.text import TextDataModule
from lightning_modules.data.vocabulary import Vocabulary

__all__ = ["ExampleLoader", "SeriesDataModule", "TaskDataModule", "TextDataModule", "Vocabulary"]
