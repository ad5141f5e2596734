"""Forecasting: what a table is read as, windows, gaps, baselines, and a run from beginning to end."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from exact_resume import check_exact_resume
from small_runs import Result

from lightning_modules import load_run
from lightning_modules.data import SeriesDataModule
from lightning_modules.data.series_files import next_times, read_series
from lightning_modules.models.forecaster import Forecaster
from lightning_modules.models.recurrent import build_recurrent
from lightning_modules.runs import CONFIGS
from lightning_modules.tasks import ForecastTask

SMALL = ("--model.hidden_size=6", "--data.window=8", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false")
RUN = Path("runs/forecast/version_0")


def write(path: Path, rows: int = 120, gaps: tuple[int, ...] = (), season: int = 6) -> Path:
    """A table with a time, a seasonal target, a covariate and a wind direction."""
    lines = ["day,wind,load,temp"]
    for row in range(rows):
        temp = "NA" if row in gaps else f"{10 + 3 * math.sin(2 * math.pi * row / season) + 0.01 * row:.4f}"
        lines.append(f"{np.datetime64('2020-01-01') + row},{'NSW'[row % 3]},{row % 7},{temp}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "weather.csv")


def values(path: Path, name: str = "temp") -> torch.Tensor:
    return read_series(path).numbers(name)


# The data -------------------------------------------------------------------------------------------------------------


def test_a_table_is_cut_in_time_and_targets_stay_in_their_split(table: Path) -> None:
    data = SeriesDataModule(str(table), window=8, horizon=3, season=6, split=(0.5, 0.25, 0.25))
    assert (data.scaling["time"], data.scaling["targets"], data.scaling["covariates"]) == ("day", ["temp"], [])
    rows = values(table)
    for name, (start, end) in {"train": (0, 60), "valid": (60, 90), "test": (90, 120)}.items():
        data.setup("test" if name == "test" else "fit")
        steps = [step for _, step in data._examples[name]]
        assert steps == list(range(max(start, 8), end - 3 + 1))
    train = rows[:60]
    assert data.scaling["means"] == [pytest.approx(float(train.mean()))]
    assert data.scaling["scales"] == [pytest.approx(float(train.std()))]
    assert data.scaling["naive_errors"] == [pytest.approx(float((train[6:] - train[:-6]).abs().mean()))]
    batch = next(iter(data.test_dataloader()))
    series, step = batch.examples[5].tolist()
    assert series == 0
    for name, expected in {
        "input": rows[step - 8 : step],
        "target": rows[step : step + 3],
        "persistence": rows[step - 1].expand(3),
        "seasonal": rows[step - 6 : step - 3],
    }.items():
        got = data.unscaled(getattr(batch, name)[:, 5].double())[..., 0]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_season_shorter_than_the_horizon_repeats_its_last(table: Path) -> None:
    data = SeriesDataModule(str(table), window=8, horizon=5, season=2)
    batch = next(iter(data.val_dataloader()))
    step = int(batch.examples[0, 1])
    rows = values(table)
    expected = rows[[step - 2, step - 1, step - 2, step - 1, step - 2]]
    torch.testing.assert_close(data.unscaled(batch.seasonal[:, 0].double())[..., 0], expected, rtol=1e-5, atol=1e-5)


def test_gaps_are_never_targets_and_the_model_is_told(tmp_path: Path) -> None:
    gaps = (20, 21, 70, 100, 101, 102, 119)
    data = SeriesDataModule(str(write(tmp_path / "t.csv", gaps=gaps)), window=8, horizon=2, season=6)
    assert data.scaling["gaps"] == ["temp"]
    assert data.input_size == 2
    rows = values(tmp_path / "t.csv")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            for b, (_, step) in enumerate(batch.examples.tolist()):
                assert batch.known[:, b, 0].equal(~rows[step : step + 2].isnan())
                missing = rows[step - 8 : step].isnan()
                assert batch.input[:, b, 1].equal(missing.float())
                filled = data.unscaled(batch.input[:, b, :1].double())[:, 0]
                torch.testing.assert_close(filled[~missing], rows[step - 8 : step][~missing], rtol=1e-5, atol=1e-5)
                before = rows[:step][~rows[:step].isnan()]
                assert float(data.unscaled(batch.persistence[0, b].double())) == pytest.approx(
                    float(before[-1]), rel=1e-5
                )
    assert not any(step == 101 for _, step in data._examples["test"])  # nothing known there


def test_covariates_of_numbers_and_of_words(table: Path) -> None:
    data = SeriesDataModule(str(table), covariates="all", window=8)
    assert data.scaling["covariates"] == ["wind", "load"]
    assert data.scaling["categories"] == {"wind": ["N", "S", "W"]}
    assert data.input_size == 1 + 1 + 3
    batch = next(iter(data.val_dataloader()))
    step = int(batch.examples[0, 1])
    assert batch.input[-1, 0, 2:].tolist() == [float((step - 1) % 3 == k) for k in range(3)]


def test_tables_by_split_are_series_of_their_own(tmp_path: Path) -> None:
    for name in ("train_a", "train_b", "valid"):
        write(tmp_path / f"{name}.csv", rows=40)
    data = SeriesDataModule(str(tmp_path), window=8)
    data.setup("fit")
    assert not data.has_test()
    assert {series for series, _ in data._examples["train"]} == {0, 1}
    assert len(data._examples["train"]) == 2 * 32


def test_a_table_in_two_splits_is_told(table: Path, tmp_path: Path) -> None:
    (tmp_path / "again.csv").symlink_to(table)
    data = SeriesDataModule(train=str(table), valid=str(write(tmp_path / "v.csv")), test=str(tmp_path / "again.csv"))
    with pytest.raises(ValueError, match="a file must be in one split"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "the columns"),
        ("day,temp\n", {}, "must have a line that names the columns and rows below it, got 1 lines"),
        ("1,2\n3,4\n", {}, "line 1: want the columns' names, got 1, 2"),
        ("a,a\n1,2\n", {}, "line 1: the column 'a' is named twice"),
        ("a,b\n1,2\n3\n", {}, "line 3: want 2 columns"),
        ("a,b\n1,2\n3,x\n4,5\n", {}, "line 3: column 'b' must be a finite number or empty, got 'x'"),
        ("# made by me\na,b\n1,2\n3,inf\n4,5\n", {}, "line 4: column 'b' must be a finite number or empty, got 'inf'"),
        ("a,b\n1,2\n3,1e300\n4,5\n", {}, "line 3: column 'b' must be a finite number or empty, got '1e300'"),
        ("a,b\n1,2\n3,4\n", {"targets": "c"}, "has no column 'c'; want one of a, b"),
        ("a,b\n1,2\n3,4\n", {"targets": "b", "covariates": ["b"]}, "must be other columns than targets, got 'b'"),
        ("a,b\n1,NA\n3,NA\n4,NA\n", {}, "column 'b' must have at least 2 values in the train rows, got 0"),
        ("a,b\n" + "1,2\n" * 9, {}, "season must be shorter than the train rows, and the values"),
        ("a,b\n" + "".join(f"1,{k}\n" for k in range(9)), {}, "the train rows are too few for a window of 48"),
    ],
)
def test_bad_tables_are_told(tmp_path: Path, text: str, options: dict, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        SeriesDataModule(str(path), **options).setup("fit")


def test_what_is_harmless_is_read_right(tmp_path: Path, table: Path) -> None:
    """A byte order mark, Windows' line ends, quotes, semicolons and comments change nothing."""
    text = table.read_text()
    other = tmp_path / "other.csv"
    other.write_bytes(("\ufeff# a comment\r\n" + text.replace(",", ";").replace("\n", "\r\n")).encode())
    quoted = tmp_path / "quoted.csv"
    quoted.write_text("\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()))
    for path in (other, quoted):
        assert read_series(path).columns == read_series(table).columns


@pytest.mark.parametrize(
    ("times", "following"),
    [
        (["1981-12-30", "1981-12-31"], ["1982-01-01", "1982-01-02"]),
        (["1960-11", "1960-12"], ["1961-01", "1961-02"]),
        (["2016-07-01 22:00:00", "2016-07-01 23:00:00"], ["2016-07-02 00:00:00", "2016-07-02 01:00:00"]),
        (["7", "9"], ["11", "13"]),
        (["1981-12-01", "1981-12-30", "1981-12-31"], ["+1", "+2"]),
        (["Monday", "Tuesday"], ["+1", "+2"]),
        (["x"], ["+1", "+2"]),
    ],
)
def test_times_go_on(times: list[str], following: list[str]) -> None:
    assert next_times(times, 2) == following


# The net --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("word", ["fused", "torch", "gru", "rnn"])
def test_a_new_net_begins_near_persistence(word: str, recursive: bool) -> None:
    net = Forecaster(5, 2, 3, lambda size: build_recurrent(word, size, hidden_size=4), recursive=recursive, dropout=0.0)
    torch.nn.init.zeros_(net.head.weight)
    torch.nn.init.zeros_(net.head.bias)
    input, last = torch.randn(6, 4, 5), torch.randn(4, 2)
    assert net(input, last).equal(last.expand(3, 4, 2))


def test_recursion_feeds_forecasts_back() -> None:
    torch.manual_seed(0)
    net = Forecaster(3, 1, 3, lambda size: build_recurrent("fused", size, hidden_size=4), recursive=True).eval()
    input = torch.randn(6, 2, 3)
    together = net(input, input[-1, :, :1])
    for step in range(3):
        net.horizon = 1
        forecast = net(input, input[-1, :, :1])
        torch.testing.assert_close(forecast[0], together[step])
        input = torch.cat((input, torch.cat((forecast[0], input[-1, :, 1:]), dim=1)[None]))


# A run ----------------------------------------------------------------------------------------------------------------


def test_a_run_from_fit_to_forecasts(command: Callable[..., Result], table: Path, tmp_path: Path) -> None:
    result = command("fit", "-c", "forecast", "--data.path", table, "--data.season=6", "--data.horizon=2", *SMALL)
    assert result.code == 0, result.err
    assert "forecast temp, 2 steps after 8" in result.out
    test = json.loads((RUN / "summary.json").read_text())["test"]
    names = {f"test_{metric}{name}" for metric in ("mae", "rmse", "mase") for name in ("", "_persistence", "_seasonal")}
    assert set(test) == names | {"test_loss"}
    assert (RUN / "forecast.png").stat().st_size > 10_000

    # The figures of the baselines, by hand; and MASE is MAE over the train rows' seasonal error.
    rows = values(table)
    steps = range(96, 119)
    truth = torch.stack([rows[step : step + 2] for step in steps])
    persistence = torch.stack([rows[step - 1].expand(2) for step in steps])
    seasonal = torch.stack([rows[step - 6 : step - 4] for step in steps])
    naive = float((rows[6:84] - rows[:78]).abs().mean())
    for name, forecast in (("persistence", persistence), ("seasonal", seasonal)):
        error = forecast - truth
        assert test[f"test_mae_{name}"] == pytest.approx(float(error.abs().mean()), rel=1e-4)
        assert test[f"test_rmse_{name}"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)
        assert test[f"test_mase_{name}"] == pytest.approx(float(error.abs().mean()) / naive, rel=1e-4)

    # Forecasts of the test split are what the figures are of.
    assert command("predict", "-c", RUN, "--ckpt_path", "best").code == 0
    with open(RUN / "forecasts.csv", newline="", encoding="utf-8") as file:
        forecasts = list(csv.DictReader(file))
    errors = [float(row["forecast"]) - float(row["truth"]) for row in forecasts]
    assert sum(map(abs, errors)) / len(errors) == pytest.approx(test["test_mae"], rel=1e-3)
    assert forecasts[0]["time"] == str(np.datetime64("2020-01-01") + 96)

    # New data: the steps after the table's end, from a file and from memory.
    new = write(tmp_path / "new.csv", rows=30)
    predict = command("predict", "-c", RUN, "--ckpt_path", "best", "--data.predict", new)
    assert predict.code == 0, predict.err
    with open(RUN / "forecasts.csv", newline="", encoding="utf-8") as file:
        forecasts = list(csv.DictReader(file))
    assert [row["time"] for row in forecasts] == ["2020-01-31", "2020-02-01"]
    assert [row["truth"] for row in forecasts] == ["", ""]
    example = {"temp": values(new).tolist(), "day": list(range(30))}
    again = load_run(RUN).predict([example])
    assert [float(row["forecast"]) for row in forecasts] == pytest.approx(again[:, 0, 0].tolist(), rel=1e-4)


def test_the_config_runs_as_it_is(command: Callable[..., Result]) -> None:
    result = command("fit", "-c", "forecast", "--trainer.fast_dev_run=true")
    assert result.code == 0, result.err
    assert "for want of a table of yours" in result.out


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("forecast*.yaml")), ids=lambda path: path.stem)
def test_the_configs_name_what_there_is(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    assert content["name"] == config.stem
    ForecastTask(**content["model"]["init_args"])
    SeriesDataModule(**content["data"]["init_args"])


@pytest.mark.parametrize("layer", ["torch", "gru", "rnn"])
def test_other_layers(command: Callable[..., Result], table: Path, layer: str) -> None:
    result = command(
        "fit", "-c", "forecast", "--data.path", table, f"--model.recurrent={layer}", *SMALL,
        "--trainer.fast_dev_run=true", "--model.recursive=true", "--data.horizon=3", "--data.covariates=all",
    )  # fmt: skip
    assert result.code == 0, result.err


def test_a_bidirectional_layer_does_not_recur(command: Callable[..., Result], table: Path) -> None:
    error = command(
        "fit", "-c", "forecast", "--data.path", table, "--model.recurrent.bidirectional=true", "--model.recursive=true"
    ).error
    assert "recursive must be False with a bidirectional layer" in error


def test_resume_inside_an_epoch_is_exact(table: Path, tmp_path: Path, make_trainer: Callable) -> None:
    def new_data() -> SeriesDataModule:
        return SeriesDataModule(str(table), window=8, batch_size=16)

    def new_task() -> ForecastTask:
        return ForecastTask(hidden_size=5, recurrent_dropout=0.2, dropout=0.2)

    check_exact_resume(new_task, new_data, make_trainer, tmp_path / "resume", step=3)
