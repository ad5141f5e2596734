"""The data module for forecasting: windows over time series, scaled by the train split's statistics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_modules.data.base import SPLITS, SPLITS_OF_STAGE, TaskDataModule
from lightning_modules.data.batches import ExampleLoader
from lightning_modules.data.reading import DataFiles, list_files
from lightning_modules.data.series_files import SeriesTable, next_times, read_series


class Windows(NamedTuple):
    """A batch of windows; all values are scaled. Sizes: W steps of the window, H of the horizon, B windows, C targets.

    Attributes:
        input: [W, B, I], the targets first, then the covariates, then 1 where a target was missing.
        target: [H, B, C], what comes after the window; 0 where it is missing.
        known: bool [H, B, C], where a target is not missing.
        persistence: [H, B, C], the last value known in the window.
        seasonal: [H, B, C], the value a season (or as few as are past) earlier.
        examples: [B, 2], each window's series and the step after it.
    """

    input: Tensor
    target: Tensor
    known: Tensor
    persistence: Tensor
    seasonal: Tensor
    examples: Tensor


class Series(NamedTuple):
    """A series ready for windows: float32, scaled."""

    name: str
    times: list[str] | None
    input: Tensor  # [N, I], gaps filled with the value before them
    target: Tensor  # [N, C], NaN where missing


class SeriesDataModule(TaskDataModule):
    """Time series from tables (CSV), for forecasting the next steps.

    A row is a step, a column a quantity, the first line names the columns. A single table is cut into train, valid and
    test in the order of time by ``split``; a window may reach back into the split before its own, its targets never do.
    Tables named by split are each a series of its own. Without data of one's own it is the EEG of four channels that
    matplotlib ships.

    Values are scaled by mean and standard deviation of the train rows. Where a value is missing (``NA``, empty), the
    window has the one before it and a flag; as a target it does not count, in training or in any figure.

    Args:
        path: a file, a folder or a glob.
        train: the same of the train tables.
        valid: the same of the valid tables; needs ``train``.
        test: the same of the test tables.
        predict: tables to forecast the steps after; without it, the test split's.
        split: shares of train, valid and test, in the order of time.
        time: the column of times, for tables and pictures; by default the first one, where it holds no numbers.
        targets: the columns to forecast; by default the last one.
        covariates: other columns that the model sees, or ``all``; one that holds no numbers is one-hot encoded.
        window: steps that the model sees.
        horizon: steps to forecast.
        season: steps of a season, for the seasonal naive forecast and MASE; 1 is none.
        batch_size: windows of a batch, over all processes.
        encoding: of the files.
    """

    def __init__(
        self,
        path: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        split: tuple[float, float, float] = (0.7, 0.1, 0.2),
        time: str | None = None,
        targets: str | list[str] | None = None,
        covariates: str | list[str] | None = None,
        window: int = 48,
        horizon: int = 1,
        season: int = 1,
        batch_size: int = 64,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__()
        for name, value in (("window", window), ("horizon", horizon), ("season", season)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if len(split) != 3 or min(split) < 0 or not split[0] > 0 or not split[1] > 0:
            raise ValueError(f"split must be three shares, of which train and valid are above 0, got {tuple(split)}")
        self.save_hyperparameters()
        self._files = DataFiles(path, train=train, valid=valid, test=test)
        self._scaling: dict[str, Any] | None = None
        self._tables: dict[tuple[Path, ...], list[SeriesTable]] = {}
        self._series: dict[str, list[Series]] = {}
        self._examples: dict[str, list[tuple[int, int]]] = {}

    # The tables -----------------------------------------------------------------------------------------------------

    def _read(self, files: Sequence[Path]) -> list[SeriesTable]:
        key = tuple(files)
        if key not in self._tables:
            self._tables[key] = [read_series(file, self.hparams.encoding) for file in files] or [default_series()]
        return self._tables[key]

    def _rows(self, name: str) -> list[tuple[SeriesTable, int, int]] | None:
        """The tables of a split with the rows, first and last + 1, that are its own; ``None`` where there is none."""
        source = self._files.source(name)
        if source is None:
            return None
        files, parts = source
        shares = dict(zip(SPLITS, self.hparams.split, strict=True))
        if parts == SPLITS and name == "test" and shares["test"] == 0:
            return None
        total = sum(shares[part] for part in parts)
        before = sum(shares[part] for part in parts[: parts.index(name)]) / total
        cut = []
        for table in self._read(files):
            count = len(table.lines)
            cut.append((table, round(before * count), round((before + shares[name] / total) * count)))
        return cut

    def has_test(self) -> bool:
        return self._rows("test") is not None

    # What is learned from the train split -----------------------------------------------------------------------------

    @property
    def scaling(self) -> dict[str, Any]:
        """The columns, their statistics and the scale of MASE: a checkpoint's, or those of the train rows."""
        if self._scaling is None:
            self._scaling = self._fit()
        return self._scaling

    def _fit(self) -> dict[str, Any]:
        rows = self._rows("train")
        assert rows is not None  # there is always a train split
        time, targets, covariates = self._chosen_columns(rows[0][0])
        categories: dict[str, list[str]] = {}
        means, scales, gaps = [], [], []
        for name in targets + covariates:
            if name in covariates and not all(table.is_numeric(name) for table, *_ in rows):
                cells = {cell.strip() for table, start, end in rows for cell in table.column(name)[start:end]}
                categories[name] = sorted(cells)
                continue
            values = torch.cat([table.numbers(name)[start:end] for table, start, end in rows])
            known = values[~values.isnan()]
            if len(known) < 2:
                raise ValueError(f"column '{name}' must have at least 2 values in the train rows, got {len(known)}")
            scale = float(known.std())
            means.append(float(known.mean()))
            scales.append(scale if scale > 0 else 1.0)
            if name in targets and len(known) < len(values):
                gaps.append(name)
        season = self.hparams.season
        naive = [naive_error(name, [table.numbers(name)[a:b] for table, a, b in rows], season) for name in targets]
        return {
            "time": time, "targets": targets, "covariates": covariates, "categories": categories, "means": means,
            "scales": scales, "gaps": gaps, "naive_errors": naive, "season": season,
        }  # fmt: skip

    def _chosen_columns(self, table: SeriesTable) -> tuple[str | None, list[str], list[str]]:
        """The columns of the times, the targets and the covariates, each of them there."""
        time = self.hparams.time
        if time is None and not table.is_numeric(next(iter(table.columns))):
            time = next(iter(table.columns))
        others = [name for name in table.columns if name != time]
        targets = self.hparams.targets or others[-1:]
        targets = [targets] if isinstance(targets, str) else list(targets)
        covariates = self.hparams.covariates or []
        if covariates == "all":
            covariates = [name for name in others if name not in targets]
        covariates = [covariates] if isinstance(covariates, str) else list(covariates)
        if both := [name for name in covariates if name in targets]:
            raise ValueError(f"covariates must be other columns than targets, got '{both[0]}' in both")
        for name in (*targets, *covariates, *([time] if time else [])):
            table.column(name)
        return time, targets, covariates

    @property
    def input_size(self) -> int:
        """I, the channels of a window."""
        categories = self.scaling["categories"]
        return len(self.scaling["means"]) + sum(map(len, categories.values())) + len(self.scaling["gaps"])

    def to_series(self, table: SeriesTable) -> Series:
        """A table's values, scaled, with gaps filled in the input alone.

        Raises:
            ValueError: a column is not there, or holds what is no number.
        """
        state = self.scaling
        numeric = [name for name in state["targets"] + state["covariates"] if name not in state["categories"]]
        values = torch.stack([table.numbers(name) for name in numeric], dim=1)
        values = (values - torch.tensor(state["means"])) / torch.tensor(state["scales"])
        target = values[:, : len(state["targets"])]
        parts = [carried_forward(values)]
        for name, categories in state["categories"].items():
            cells = [cell.strip() for cell in table.column(name)]
            parts.append(torch.tensor([[float(cell == category) for category in categories] for cell in cells]))
        gaps = [target[:, state["targets"].index(name)].isnan() for name in state["gaps"]]
        parts += [gap[:, None] for gap in gaps]
        times = table.column(state["time"]) if state["time"] is not None else None
        return Series(table.name, times, torch.cat([part.float() for part in parts], dim=1), target.float())

    def unscaled(self, values: Tensor) -> Tensor:
        """Targets [..., C] in the units of the table."""
        count = len(self.scaling["targets"])
        scales, means = (torch.tensor(self.scaling[name][:count], dtype=values.dtype) for name in ("scales", "means"))
        return values * scales.to(values.device) + means.to(values.device)

    # The windows ----------------------------------------------------------------------------------------------------

    def _prepare(self, name: str) -> None:
        """Reads a split's series and lists its windows: (series, the step after the window)."""
        if name in self._examples:
            return
        horizon, history = self.hparams.horizon, max(self.hparams.window, self.hparams.season)
        if name == "predict":
            if self.hparams.predict is None:
                self._prepare("test")
                self._series[name], self._examples[name] = self._series["test"], self._examples["test"]
                return
            tables = [read_series(file, self.hparams.encoding) for file in list_files(self.hparams.predict)]
            self._series[name] = [self.to_series(table) for table in tables]
            for series in self._series[name]:
                if len(series.input) < history:
                    raise ValueError(
                        f"'{series.name}' must have at least {history} rows (window, season), got {len(series.input)}"
                    )
            self._examples[name] = [(k, len(series.input)) for k, series in enumerate(self._series[name])]
            return
        rows = self._rows(name)
        if rows is None:
            raise ValueError(f"there is no {name} split; name one with --data.{name}")
        self._series[name] = [self.to_series(table) for table, *_ in rows]
        examples = []
        for k, (_, start, end) in enumerate(rows):
            known = ~self._series[name][k].target.isnan()
            for step in range(max(start, history), end - horizon + 1):
                if known[step : step + horizon].any():
                    examples.append((k, step))
        if not examples:
            raise ValueError(
                f"the {name} rows are too few for a window of {self.hparams.window}, a season of {self.hparams.season} "
                f"and a horizon of {horizon}: {', '.join(str(end - start) for _, start, end in rows)}"
            )
        self._examples[name] = examples

    def _collate(self, name: str, examples: list[tuple[int, int]]) -> Windows:
        window, horizon, season = self.hparams.window, self.hparams.horizon, self.scaling["season"]
        count = len(self.scaling["targets"])
        columns: list[tuple[Tensor, ...]] = []
        for k, step in examples:
            series = self._series[name][k]
            target = series.target[step : step + horizon]
            if len(target) < horizon:  # the future
                target = series.target.new_full((horizon, count), torch.nan)
            filled = series.input[:, :count]
            ahead = torch.arange(horizon)
            earlier = step + ahead - season * (ahead // season + 1)
            last = filled[step - 1].expand(horizon, count)
            columns.append((series.input[step - window : step], target, last, filled[earlier]))
        input, target, persistence, seasonal = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
        known = ~target.isnan()
        return Windows(input, target.nan_to_num(), known, persistence, seasonal, torch.tensor(examples))

    def content(self, split: str) -> Any:
        self._prepare(split)
        series = [(series.input, series.target) for series in self._series[split]]
        return series, self._examples[split], self.hparams.window, self.hparams.horizon

    def columns(self, name: str, series: int, start: int, end: int) -> dict[str, list[Any]]:
        """The rows from ``start`` to ``end`` of a split's table as plain values by column, ``None`` where missing."""
        rows = self._rows(name)
        assert rows is not None  # series and start come from examples of this split
        table, state = rows[series][0], self.scaling
        found: dict[str, list[Any]] = {}
        for column in state["targets"] + state["covariates"]:
            if column in state["categories"]:
                found[column] = [cell.strip() for cell in table.column(column)[start:end]]
            else:
                values = table.numbers(column)[start:end].tolist()
                found[column] = [None if value != value else value for value in values]
        return found

    def setup(self, stage: str) -> None:
        """Reads what ``stage`` needs, so that errors in the data are raised before anything else begins."""
        if stage == "fit":
            self._files.check_disjoint()
        for name in SPLITS_OF_STAGE[stage]:
            self._prepare(name)

    def _loader(self, name: str) -> ExampleLoader:
        self._prepare(name)
        return self.example_loader(
            self._examples[name],
            lambda examples, _: self._collate(name, examples),
            batch_size=self.hparams.batch_size,
            shuffle=name == "train",
            name=f"windows of the {name} rows",
        )

    def train_dataloader(self) -> ExampleLoader:
        return self._loader("train")

    def val_dataloader(self) -> ExampleLoader:
        return self._loader("valid")

    def test_dataloader(self) -> ExampleLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ExampleLoader:
        return self._loader("predict")

    def windows_of(self, tables: list[SeriesTable]) -> Windows:
        """The last window of each table: what the steps after it are forecast from."""
        self._series["memory"] = [self.to_series(table) for table in tables]
        return self._collate("memory", [(k, len(series.input)) for k, series in enumerate(self._series["memory"])])

    def times(self, name: str, series: int, step: int) -> list[str]:
        """The times of the horizon's steps from ``step`` on, as the table has them or as they go on after it."""
        times, horizon = self._series[name][series].times, self.hparams.horizon
        if times is None:
            return [str(step + k) for k in range(horizon)]
        inside = times[step : step + horizon]
        return inside + next_times(times, horizon - len(inside))

    def series_name(self, name: str, series: int) -> str:
        """The file that a series is from."""
        return self._series[name][series].name

    # What is told and kept ------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        names = [name for name in SPLITS if self._rows(name) is not None]
        for name in names:
            self._prepare(name)
        state = self.scaling
        return {
            "targets": state["targets"],
            "covariates": state["covariates"],
            "window": self.hparams.window,
            "horizon": self.hparams.horizon,
            "windows": {name: len(self._examples[name]) for name in names},
            "naive_errors": dict(zip(state["targets"], state["naive_errors"], strict=True)),
        }

    def describe(self) -> list[str]:
        summary = self.summary()
        windows = ", ".join(f"{name} {count:,}" for name, count in summary["windows"].items())
        lines = [f"forecast {', '.join(summary['targets'])}, {summary['horizon']} steps after {summary['window']}"]
        if summary["covariates"]:
            lines[0] += f", with {', '.join(summary['covariates'])}"
        if self._files.source("train") == ([], SPLITS):
            lines.append(f"data: {default_series().name}, for want of a table of yours (--data.path)")
        return [*lines, f"windows: {windows}", *self._files.notes]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"scaling": self.scaling, "window": self.hparams.window}

    @classmethod
    def options_of_state(cls, state: dict[str, Any]) -> dict[str, Any]:
        return {"window": state["window"], "season": state["scaling"]["season"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._scaling = state_dict["scaling"]
        self._series.clear()
        self._examples.clear()


def carried_forward(values: Tensor) -> Tensor:
    """[N, C] with each NaN replaced by the value before it in its column, by 0 (the mean) where there is none."""
    steps = torch.arange(len(values))[:, None].expand_as(values)
    last = torch.where(values.isnan(), -1, steps).cummax(0).values
    return torch.where(last < 0, torch.zeros_like(values), values.gather(0, last.clamp(min=0)))


def naive_error(column: str, series: Sequence[Tensor], season: int) -> float:
    """The mean absolute difference of values a season apart, by which MASE scales.

    Raises:
        ValueError: there is none, or it is 0.
    """
    errors = torch.cat([(x[season:] - x[:-season]).abs() for x in series])
    error = float(errors[~errors.isnan()].mean()) if (~errors.isnan()).any() else float("nan")
    if not error > 0:
        raise ValueError(
            f"season must be shorter than the train rows, and the values a season apart must differ, for the "
            f"scale of MASE: column '{column}', season {season}"
        )
    return error


def default_series() -> SeriesTable:
    """The EEG that matplotlib ships: 800 steps of four channels; waves by formula where it ships it no more."""
    import matplotlib.cbook

    try:
        sample: Any = matplotlib.cbook.get_sample_data("eeg.dat")
        with sample as file:
            values = torch.frombuffer(bytearray(file.read()), dtype=torch.float64).view(800, 4)
        name = "an EEG of four channels from matplotlib's sample data"
    except (FileNotFoundError, RuntimeError):
        steps = torch.arange(800, dtype=torch.float64)[:, None]
        noise = torch.randn(800, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values = (steps / torch.tensor([7.0, 11.0, 17.0, 25.0])).sin() + (steps / 40).cos() + 0.3 * noise
        name = "generated waves with noise"
    columns = {f"channel_{k}": [repr(float(x)) for x in values[:, k]] for k in range(values.shape[1])}
    return SeriesTable(name, columns, list(range(2, len(values) + 2)))
