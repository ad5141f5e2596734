"""A sample of the model's text when training has ended."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from lightning_modules.generation import generate
from lightning_modules.runs import folder_of
from lightning_modules.trainer_parts import datamodule_of, is_trial


class TextSample(Callback):
    """Writes ``sample.txt`` to the run's folder, and prints it: the valid text's first words and how the model goes on.

    Args:
        length: tokens to make up.
        temperature: see :func:`lightning_modules.generation.next_token_distribution`.
    """

    def __init__(self, length: int = 600, temperature: float = 0.8) -> None:
        self.length, self.temperature = length, temperature

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        folder = folder_of(trainer)
        if not trainer.is_global_zero or is_trial(trainer):
            return
        prompt = " ".join(datamodule_of(trainer).text("valid").split()[:6])[:40]
        try:
            text = generate(
                pl_module.net,
                datamodule_of(trainer).vocabulary,
                prompt=prompt,
                length=self.length,
                temperature=self.temperature,
                seed=0,
            )
        except ValueError as error:
            print(f"No sample: {error}.")
            return
        if folder is not None:
            (folder / "sample.txt").write_text(text + "\n", encoding="utf-8")
        print(f"\nA sample at temperature {self.temperature}, after '{prompt}':\n{text}\n")
