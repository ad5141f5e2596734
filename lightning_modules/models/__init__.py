"""Models: plain ``nn.Module``s, and the thin LightningModules that train them."""

from lightning_modules.models.language_model import LanguageModel
from lightning_modules.models.language_model_task import LanguageModelTask

__all__ = ["LanguageModel", "LanguageModelTask"]
