"""Training a forecaster: the next steps of a time series, beside the forecasts that need no model."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection

from lightning_modules.callbacks.forecast_picture import ForecastPicture
from lightning_modules.data.series import SeriesDataModule, Windows
from lightning_modules.data.series_files import SeriesTable
from lightning_modules.models.forecaster import Forecaster
from lightning_modules.models.metrics import Mean
from lightning_modules.tasks.base import RecurrentTask
from lightning_modules.tasks.exported import Exported
from lightning_modules.trainer_parts import datamodule_of

LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}
BASELINES = ("persistence", "seasonal")
# Of ``lstm-fused export``: the steps after a window, whose columns are a JSON file or those of ``about``.
EXAMPLE = """\
columns = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else about["example"]
values = np.array([columns[name] for name in about["numeric"]], float).T  # [T, columns], NaN where there is a gap
values = (values - about["means"]) / about["scales"]
gaps = np.isnan(values[:, [about["numeric"].index(name) for name in about["gaps"]]])
for t in range(1, len(values)):  # a gap has the value before it
    values[t] = np.where(np.isnan(values[t]), values[t - 1], values[t])
of_category = [np.array(columns[name])[:, None] == cells for name, cells in about["categories"].items()]
window = np.hstack([np.nan_to_num(values), *of_category, gaps]).astype(np.float32)
for step, forecast in enumerate(model(input=window[:, None])[0][:, 0], 1):
    print(step, *(f"{name} {value:.6g}" for name, value in zip(about["targets"], forecast)))
"""


class ForecastInUnits(nn.Module):
    """The net as it is exported: of scaled windows, the targets first, forecasts in the units of the table.

    Args:
        net: a :class:`Forecaster`.
        means: of the targets.
        scales: of the targets.
    """

    means: Tensor
    scales: Tensor

    def __init__(self, net: Forecaster, means: list[float], scales: list[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("means", torch.tensor(means))
        self.register_buffer("scales", torch.tensor(scales))

    def forward(self, input: Tensor) -> tuple[Tensor]:
        return (self.net(input, input[-1, :, : len(self.means)]) * self.scales + self.means,)


class ForecastTask(RecurrentTask[SeriesDataModule]):
    """Trains a :class:`Forecaster` on windows of time series.

    The losses are of scaled values. The metrics are in the units of the table, over all targets and steps of the
    horizon: ``mae``, ``rmse`` and ``mase``, the mean absolute error over that of the seasonal naive forecast one step
    ahead on the train rows (Hyndman & Koehler 2006); ``mae_persistence`` and so on are those of the last value carried
    on, ``mae_seasonal`` those of the value a season earlier, where ``season`` is more than 1. ``dropout`` acts between
    the layers and on the last output. A bidirectional layer may look at the whole window, but not when ``recursive``.

    Args:
        input_size: channels of a window; taken from the data if not given.
        num_targets: columns to forecast; taken from the data if not given.
        horizon: steps to forecast; taken from the data if not given.
        loss: ``mse``, ``mae`` or ``huber``.
        recursive: forecast one step after another instead of all at once.
        shared: those of :class:`RecurrentTask`.
    """

    loss_unit = "of scaled values"

    def __init__(
        self,
        input_size: int | None = None,
        num_targets: int | None = None,
        horizon: int | None = None,
        loss: Literal["mse", "mae", "huber"] = "mse",
        recursive: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)

    # The model ------------------------------------------------------------------------------------------------------

    @classmethod
    def size_names(cls) -> tuple[str, ...]:
        return ("input_size", "num_targets", "horizon")

    def data_sizes(self, data: SeriesDataModule) -> dict[str, Any]:
        return {
            "input_size": data.input_size,
            "num_targets": len(data.scaling["targets"]),
            "horizon": data.hparams.horizon,
        }

    def new_net(self) -> Forecaster:
        hparams = self.hparams
        net = Forecaster(
            hparams.input_size,
            hparams.num_targets,
            hparams.horizon,
            self.new_layer,
            dropout=hparams.dropout,
            recursive=hparams.recursive,
        )
        if hparams.recursive and getattr(net.layer, "bidirectional", False):
            raise ValueError("recursive must be False with a bidirectional layer, which cannot go on step by step")
        return net

    def new_metrics(self, data: SeriesDataModule) -> dict[str, Metric]:
        names = ["", "_persistence"] + ["_seasonal"] * (data.scaling["season"] > 1)
        metrics: dict[str, Metric] = {}
        for name in names:
            metrics[f"mae{name}"] = MeanAbsoluteError()
            metrics[f"rmse{name}"] = MeanSquaredError(squared=False)
            metrics[f"mase{name}"] = Mean()
        return metrics

    def own_callbacks(self) -> list[Callback]:
        return [ForecastPicture()]

    def to_export(self, data: SeriesDataModule) -> Exported:
        batch = next(iter(data.val_dataloader()))
        series, step = batch.examples[0].tolist()
        scaling = data.scaling
        count = len(scaling["targets"])
        about = {
            "numeric": [n for n in scaling["targets"] + scaling["covariates"] if n not in scaling["categories"]],
            "example": data.columns("valid", series, step - data.hparams.window, step),
        }
        return Exported(
            ForecastInUnits(self.net, scaling["means"][:count], scaling["scales"][:count]),
            {"input": (batch.input, ("T", "B", None))},
            ["forecast"],
            scaling | about,
            EXAMPLE,
        )

    # The steps ------------------------------------------------------------------------------------------------------

    def batch_loss(self, batch: Windows, batch_idx: int, metrics: MetricCollection | None = None) -> tuple[Tensor, int]:
        """Of the targets that are known, and how many these are."""
        forecast = self(batch.input, batch.persistence[0])
        loss = LOSSES[self.hparams.loss](forecast[batch.known].float(), batch.target[batch.known])
        if metrics is not None:
            self._update(metrics, "", forecast, batch)
            for name in BASELINES:
                if f"mae_{name}" in metrics.keys(keep_base=True):
                    self._update(metrics, f"_{name}", getattr(batch, name), batch)
        return loss, int(batch.known.sum())

    def _update(self, metrics: MetricCollection, name: str, forecast: Tensor, batch: Windows) -> None:
        data = datamodule_of(self.trainer)
        known, target = batch.known, data.unscaled(batch.target.double())
        forecast = data.unscaled(forecast.double())
        metrics[f"mae{name}"].update(forecast[known], target[known])
        metrics[f"rmse{name}"].update(forecast[known], target[known])
        naive = torch.tensor(data.scaling["naive_errors"], dtype=torch.float64, device=target.device)
        metrics[f"mase{name}"].update(((forecast - target).abs() / naive)[known])

    # Predictions ----------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Windows, batch_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        """The examples [B, 2], the forecasts and the true values [H, B, C], in the units of the table."""
        data = datamodule_of(self.trainer)
        target = batch.target.masked_fill(~batch.known, torch.nan)
        forecast = self(batch.input, batch.persistence[0])
        return batch.examples, data.unscaled(forecast.double()), data.unscaled(target.double())

    def write_predictions(self, batches: list[tuple[Tensor, ...]], data: SeriesDataModule, folder: Path) -> str:
        """``forecasts.csv``: a row a step and target, with the truth where it is known."""
        path, rows = folder / "forecasts.csv", 0
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("series", "time", "step", "target", "forecast", "truth"))
            for examples, forecast, truth in batches:
                for b, (series, step) in enumerate(examples.tolist()):
                    name, times = data.series_name("predict", series), data.times("predict", series, step)
                    for k, time in enumerate(times):
                        for c, target in enumerate(data.scaling["targets"]):
                            true = float(truth[k, b, c])
                            known = "" if math.isnan(true) else f"{true:.6g}"
                            table.writerow((name, time, k + 1, target, f"{float(forecast[k, b, c]):.6g}", known))
                            rows += 1
        return f"{rows:,} forecasts in {path}"

    @torch.inference_mode()
    def predict_examples(self, examples: list[dict[str, list[float]]], data: SeriesDataModule) -> Tensor:
        """The steps after each series.

        Args:
            examples: of each series the columns by name, as many values of each, oldest first.

        Returns:
            [H, number of series, C], in the units of the columns.
        """
        tables = [
            SeriesTable(
                f"series {k}",
                {name: [str(value) for value in values] for name, values in example.items()},
                list(range(1, 1 + max(map(len, example.values())))),
            )
            for k, example in enumerate(examples)
        ]
        batch = data.windows_of(tables)
        return data.unscaled(self(batch.input.to(self.device), batch.persistence[0].to(self.device)).double())
