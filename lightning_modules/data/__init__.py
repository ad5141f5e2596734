"""Data modules, and the plain-file readers they stand on."""

from lightning_modules.data.base import TaskDataModule
from lightning_modules.data.batches import ExampleLoader
from lightning_modules.data.labeled_series import LabeledSeriesDataModule
from lightning_modules.data.labeled_text import LabeledTextDataModule
from lightning_modules.data.memory import AddingDataModule, CopyingDataModule, RememberDataModule
from lightning_modules.data.mnist import SequentialMNISTDataModule
from lightning_modules.data.music import MusicDataModule
from lightning_modules.data.series import SeriesDataModule
from lightning_modules.data.tagging import TaggingDataModule
from lightning_modules.data.text import TextDataModule
from lightning_modules.data.vocabulary import Vocabulary

__all__ = [
    "AddingDataModule",
    "CopyingDataModule",
    "ExampleLoader",
    "LabeledSeriesDataModule",
    "LabeledTextDataModule",
    "MusicDataModule",
    "RememberDataModule",
    "SequentialMNISTDataModule",
    "SeriesDataModule",
    "TaggingDataModule",
    "TaskDataModule",
    "TextDataModule",
    "Vocabulary",
]
