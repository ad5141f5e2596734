"""A new task is a class path: a toy task from outside the package goes through every command."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import Result
from torch import nn
from toy_task import BitsDataModule, OwnLayer, ParityTask

from lightning_modules import load_run
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.models.recurrent import build_recurrent, last_outputs, output_size, run_recurrent

CONFIG = """
name: parity
seed_everything: 3
model:
  class_path: toy_task.ParityTask
  init_args:
    hidden_size: 6
    lr: 0.02
    recurrent:
      class_path: fused
      init_args:
        bidirectional: true
        zoneout: 0.1
data:
  class_path: toy_task.BitsDataModule
early_stopping:
  monitor: val_accuracy
  mode: max
trainer:
  max_epochs: 3
  enable_progress_bar: false
"""
RUN = Path("runs/parity/version_0")


@pytest.fixture
def fit(command: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "parity.yaml").write_text(CONFIG)
    return lambda *arguments: command("fit", "-c", "parity.yaml", *arguments)


def test_a_task_from_outside_goes_through_every_command(
    fit: Callable[..., Result], command: Callable[..., Result], tmp_path: Path
) -> None:
    result = fit()
    assert result.code == 0, result.err
    assert "48 sequences of bits" in result.out
    summary = json.loads((RUN / "summary.json").read_text())
    assert summary["data"] == {"sequences": 48}
    assert {"test_loss", "test_accuracy"} <= set(summary["test"])
    assert (RUN / "learning_curves.png").stat().st_size > 10_000
    rows = list(csv.DictReader((RUN / "metrics.csv").open()))
    best = max(float(row["val_accuracy"]) for row in rows if row["val_accuracy"])
    assert summary["best"]["val_accuracy"] == pytest.approx(best)

    test = command("test", "-c", RUN, "--ckpt_path", "best")
    assert test.code == 0, test.err
    assert str(summary["test"]["test_loss"])[:6] in test.out
    predict = command("predict", "-c", RUN, "--ckpt_path", "best")
    assert predict.code == 0, predict.err
    assert "48 sequences in" in predict.out
    assert len((RUN / "parity.csv").read_text().splitlines()) == 48
    assert "a ParityTask draws no samples" in command("sample", RUN).error

    loaded = load_run(RUN)
    assert isinstance(loaded.task, ParityTask)
    assert isinstance(loaded.data, BitsDataModule)
    assert not loaded.task.training


def test_a_run_of_it_goes_on_exactly(fit: Callable[..., Result], command: Callable[..., Result]) -> None:
    assert fit("--trainer.max_epochs=2").code == 0
    again = command("fit", "-c", RUN, "--ckpt_path", "last", "--trainer.max_epochs=3", "--seed_everything=8")
    assert again.code == 0, again.err
    assert fit().code == 0
    resumed, whole = (load_checkpoint(f"runs/parity/version_{k}/checkpoints/last.ckpt") for k in (1, 2))
    assert resumed["global_step"] == whole["global_step"] == 18
    for name, value in whole["state_dict"].items():
        assert value.equal(resumed["state_dict"][name]), name


@pytest.mark.parametrize("layer", ["torch", "gru", "rnn", "toy_task.OwnLayer"])
def test_any_layer_takes_the_place_of_the_fused_one(
    fit: Callable[..., Result], layer: str, recwarn: pytest.WarningsRecorder
) -> None:
    result = fit(f"--model.recurrent={layer}", "--trainer.fast_dev_run=true")
    assert result.code == 0, result.err
    # What the config's layer had and this one has not is left out, and said.
    assert "left out" in result.out
    assert "zoneout" in result.out


def test_an_option_that_a_layer_lacks_is_refused(fit: Callable[..., Result]) -> None:
    error = fit("--model.recurrent=gru", "--model.zoneout=0.1").error
    assert error == "zoneout must be off with the layer torch.nn.GRU, which lacks it, got 0.1"
    assert not Path("runs").exists()


class Wrong(nn.Module):
    """A layer with something wrong, by its hidden size."""

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.bidirectional, self.batch_first = hidden_size, bidirectional, hidden_size == 4

    def forward(self, input, state=None):
        if self.hidden_size == 1:
            return input
        if self.hidden_size == 2:
            return input[0], None
        if self.hidden_size == 3:
            raise RuntimeError("no way")
        return input, None


@pytest.mark.parametrize(
    ("hidden_size", "message"),
    [
        (1, r"recurrent must be a layer that gives \(output, state\), got Tensor of Wrong"),
        (2, r"recurrent must be a layer whose output is \[T, B, O\], got \[1, 5\] for T = 2, B = 1 of Wrong"),
        (3, r"recurrent must be a layer that runs on an input \[T, B, 5\]; Wrong fails: no way"),
        (4, r"recurrent must take \[T, B, I\], and Wrong has batch_first=True"),
    ],
)
def test_a_layer_that_is_none_is_told(hidden_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_recurrent(Wrong, 5, hidden_size=hidden_size)


def test_backwards_over_padding_needs_lengths() -> None:
    layer = build_recurrent(Wrong, 5, hidden_size=9, num_layers=None)
    layer.bidirectional = True
    with pytest.raises(ValueError, match="recurrent must take 'lengths' to run backwards"):
        run_recurrent(layer, torch.zeros(3, 2, 5), torch.tensor([3, 1]))


@pytest.mark.parametrize("word", ["fused", "torch", "gru", "rnn", OwnLayer])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_sequence_alone_and_in_a_batch_give_the_same(word: str | type, bidirectional: bool) -> None:
    if word is OwnLayer and bidirectional:
        pytest.skip("runs forwards alone")
    torch.manual_seed(1)
    options = {} if word is OwnLayer else {"bidirectional": bidirectional}
    layer = build_recurrent({"class_path": "toy_task.OwnLayer", "init_args": {}} if word is OwnLayer else
                            {"class_path": word, "init_args": options}, 3, hidden_size=4)  # fmt: skip
    size = output_size(layer, 3)
    lengths = torch.tensor([5, 2, 1, 4])
    padded = torch.randn(5, 4, 3)
    output = run_recurrent(layer, padded, lengths)
    directions = 2 if bidirectional else 1
    last = last_outputs(output, lengths, directions)
    assert last.shape == (4, size)
    for b, length in enumerate(lengths.tolist()):
        alone = run_recurrent(layer, padded[:length, b : b + 1], torch.tensor([length]))
        torch.testing.assert_close(output[:length, b], alone[:, 0])
        assert output[length:, b].eq(0).all()
        torch.testing.assert_close(last[b], last_outputs(alone, torch.tensor([length]), directions)[0])
