"""Models: plain ``nn.Module``s that know nothing of training; :mod:`lightning_modules.tasks` trains them."""

from typing import Any

from lightning_modules.models.language_model import LanguageModel
from lightning_modules.models.tagger import Tagger

__all__ = ["LanguageModel", "LanguageModelTask", "Tagger"]


def __getattr__(name: str) -> Any:
    """``LanguageModelTask`` was here once: configs and scripts of that time go on working."""
    if name == "LanguageModelTask":
        from lightning_modules.tasks.language_model import LanguageModelTask

        return LanguageModelTask
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
