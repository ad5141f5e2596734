"""Series of numbers with a label each, from sktime's ``.ts`` files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.data.generated import MOVEMENTS, generated_movements
from lightning_modules.data.labeled import LabeledDataModule, Row
from lightning_modules.data.text_files import read_files
from lightning_modules.data.ts_files import read_ts


class LabeledSeriesDataModule(LabeledDataModule):
    """Series of numbers with a label each, for a classifier: channels by steps, of unequal lengths.

    Read are ``.ts`` files as sktime, aeon and the UEA and UCR archives have them; to predict also such without labels.
    Without files it is movements of a pen that are generated.

    Each channel is standardized: the mean and the deviation over all steps of the train split become 0 and 1. They go
    into every checkpoint, and a checkpoint's are used in place of those of the data.

    Args:
        path: a file, a folder or a glob.
        train: the same of the train split alone.
        valid: the same of the valid split; without it valid is cut from ``train``.
        test: the same of the test split.
        predict: the same of new series, whose labels need not be known; the test split if not given.
        split: shares of train, valid and test, where one is cut from another; they are scaled to sum 1. A share of 0
            for test leaves the test out.
        batch_size: series of a batch, over all processes.
        encoding: of the files, unless a byte order mark identifies it.
    """

    step = "step"

    def __init__(
        self,
        path: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        batch_size: int = 32,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__(path, train, valid, test, predict, split, batch_size, encoding)
        self._scaling: tuple[Tensor, Tensor] | None = None

    def not_data(self, file: Path) -> str | None:
        return None if file.suffix.lower() == ".ts" else "no .ts file"

    def read(self, files: Sequence[Path], labeled: bool) -> list[Row]:
        return [
            Row(series, label, f"'{file}', line {line}")
            for file in files
            for line, series, label in read_ts(file, read_files([file], self.hparams.encoding), labeled)
        ]

    def default_rows(self) -> list[Row]:
        movements = enumerate(generated_movements(MOVEMENTS), 1)
        return [Row(series, label, f"generated movement {number}") for number, (series, label) in movements]

    def names(self, name: str) -> tuple[str, list[str]]:
        return "row", [str(number) for number, _ in enumerate(self.rows(name), 1)]

    # The numbers ----------------------------------------------------------------------------------------------------

    @property
    def scaling(self) -> tuple[Tensor, Tensor]:
        """The mean and the deviation of each channel, [C]: a loaded checkpoint's, or else of the train split."""
        if self._scaling is None:
            rows = self.rows("train")
            channels = rows[0].content.shape[1]
            if other := next((row for row in rows if row.content.shape[1] != channels), None):
                raise ValueError(f"{other.place}: want {channels} channels as before, got {other.content.shape[1]}")
            steps = torch.cat([row.content for row in rows]).double()
            if not len(steps):
                raise ValueError("the train split must have a step, and all of its series are empty")
            deviation = steps.std(0, correction=0)
            deviation[deviation == 0] = 1  # a channel that never changes
            self._scaling = steps.mean(0).float(), deviation.float()
        return self._scaling

    @property
    def channels(self) -> int:
        return len(self.scaling[0])

    def learn(self) -> None:
        _ = self.scaling

    def encode(self, content: Any) -> Tensor:
        try:
            series = torch.as_tensor(np.asarray(content, dtype=np.float32))
        except (ValueError, TypeError) as error:
            raise ValueError(f"an example must be numbers [T, C]: {error}") from None
        if series.dim() == 1 and self.channels == 1:
            series = series[:, None]
        if series.dim() != 2 or series.shape[1] != self.channels:
            raise ValueError(f"an example must be numbers [T, {self.channels}], got {list(series.shape)}")
        if not series.isfinite().all():
            step = int((~series.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"an example must be finite numbers, got one that is not in step {step}")
        mean, deviation = self.scaling
        return (series - mean) / deviation

    # What is told of them -------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Also the number of channels."""
        return super().summary() | {"channels": self.channels}

    def describe(self) -> list[str]:
        lines = super().describe()
        lines.append(f"channels: {self.channels}, standardized with the means and deviations of train")
        if self._source("train")[0] == []:
            lines.insert(0, "data: generated movements of a pen; --data.path reads .ts files of your own")
        return lines

    # The checkpoint -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        mean, deviation = self.scaling
        return super().state_dict() | {"mean": mean.tolist(), "deviation": deviation.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._scaling = torch.tensor(state_dict["mean"]), torch.tensor(state_dict["deviation"])
