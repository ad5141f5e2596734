"""Forecasts beside the truth, as a picture."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.pictures import plain_names
from lightning_modules.runs import folder_of
from lightning_modules.trainer_parts import datamodule_of

STEPS = 200  # more could not be distinguished


class ForecastPicture(Callback):
    """Draws ``forecast.png`` in the run's folder: the test's last steps, their forecasts and the persistence forecast.

    Each target's first step of the horizon is drawn, for the last series of the test split.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, ...]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches.clear()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if trainer.world_size == 1:
            self._add(batch, pl_module, datamodule_of(trainer))

    def _add(self, batch: Any, pl_module: LightningModule, data: Any) -> None:
        examples, forecast, truth = pl_module.predict_step(batch, 0)
        persistence = data.unscaled(batch.persistence.double())
        self._batches.append(tuple(x.cpu() for x in (examples, forecast[0], truth[0], persistence[0])))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = folder_of(trainer)
        if trainer.is_global_zero and trainer.world_size > 1:  # whose batches were shares
            with torch.inference_mode():
                for batch in datamodule_of(trainer).test_dataloader().whole():
                    self._add(
                        pl_module.transfer_batch_to_device(batch, pl_module.device, 0),
                        pl_module,
                        datamodule_of(trainer),
                    )
        if self._batches and folder is not None and trainer.loggers:
            self.draw(folder / "forecast.png", datamodule_of(trainer))

    @plain_names()
    def draw(self, path: Path, data: Any) -> None:
        """Writes the picture of the batches seen."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        examples, forecast, truth, persistence = (torch.cat(x) for x in zip(*self._batches, strict=True))
        chosen = (examples[:, 0] == examples[-1, 0]).nonzero()[-STEPS:, 0]
        names = data.scaling["targets"][:6]
        figure = Figure(figsize=(8, 1.2 + 2.2 * len(names)), layout="constrained")
        all_axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        steps = examples[chosen, 1].tolist()
        for c, (axes, name) in enumerate(zip(all_axes, names, strict=True)):
            axes.plot(steps, persistence[chosen, c], color="#999999", linewidth=1, linestyle="--", label="last value")
            axes.plot(steps, truth[chosen, c], color="black", linewidth=1.4, label="truth")
            axes.plot(steps, forecast[chosen, c], color="#d55e00", linewidth=1.4, label="forecast")
            axes.set(ylabel=name)
            axes.grid(alpha=0.3)
        all_axes[-1].set(xlabel="step of the series (row)")
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, title="one step ahead, on the test split")
        FigureCanvasAgg(figure).print_png(path)
