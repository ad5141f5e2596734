"""Tasks of memory: the data by their published definitions, what is judged, and what becomes of predictions."""

import csv
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_resume import check_exact_resume
from lightning.pytorch import Trainer, seed_everything
from small_runs import Result
from torch.nn import functional as F

from lightning_modules import load_run
from lightning_modules.cli import main
from lightning_modules.data import (
    AddingDataModule,
    CopyingDataModule,
    RememberDataModule,
    SequentialMNISTDataModule,
)
from lightning_modules.data.memory import MemoryDataModule
from lightning_modules.data.mnist import drawn_digits
from lightning_modules.tasks import MemoryTask

SMALL = ("--trainer.enable_progress_bar=false", "--model.hidden_size=12", "--data.batch_size=20")


def new_data(name: str, **options: Any) -> MemoryDataModule:
    sizes = {"train_size": 30, "valid_size": 11, "test_size": 12, "batch_size": 8}
    if name == "remember":
        return RememberDataModule(**{"distances": [0, 3, 7], "symbols": 4} | sizes | options)
    if name == "adding":
        return AddingDataModule(**{"length": 9, "train_lengths": [4, 9]} | sizes | options)
    return CopyingDataModule(**{"delay": 5, "recalled": 3, "train_delays": [1, 5]} | sizes | options)


GENERATED = ("remember", "adding", "copying")


def new_task(data: MemoryDataModule | None = None, seed: int = 0, **options: Any) -> MemoryTask:
    """A small model of random weights, larger than a new one's: what it says of sequences differs."""
    seed_everything(seed)
    task = MemoryTask(**{"hidden_size": 7} | options)
    if data is not None:
        task.build(data)
        with torch.no_grad():
            for parameter in task.parameters():
                parameter.mul_(3)
        task.eval()
    return task


# The data -------------------------------------------------------------------------------------------------------------


def test_the_first_character_is_asked_for_after_each_distance() -> None:
    data = RememberDataModule(distances=[0, 4, 9], symbols=5, train_size=600)
    examples = list(data.examples("train"))
    assert [len(example.inputs) for example in examples[:4]] == [1, 5, 10, 1]
    for inputs, target in examples:
        assert inputs.sum(1).eq(1).all()  # one-hot
        assert inputs[0].argmax() == target
    ids = torch.cat([inputs.argmax(1) for inputs, _ in examples])
    assert ids.bincount(minlength=5).double().div(len(ids)).sub(0.2).abs().max() < 4 * (0.16 / len(ids)) ** 0.5
    other = RememberDataModule(distances=[9], train_distances=[2, 4])
    lengths = [[len(x.inputs) for x in list(other.examples(split))[:3]] for split in ("train", "valid", "test")]
    assert lengths == [[3, 5, 3], [10, 10, 10], [10, 10, 10]]
    assert "after 9 more of them (2, 4 in train)" in other.describe()[0]


def test_one_number_of_each_half_is_marked_and_their_sum_is_asked_for() -> None:
    data = AddingDataModule(length=11, test_size=400)
    sums = []
    for inputs, target in data.examples("test"):
        values, markers = inputs.unbind(1)
        (first, second) = markers.nonzero().flatten().tolist()
        assert markers.sum() == 2
        assert first < 5 <= second
        assert values.min() >= 0
        assert values.max() < 1
        assert target == pytest.approx(float(values[first] + values[second]))
        sums.append(float(target))
    assert np.mean((np.array(sums) - 1) ** 2) == pytest.approx(1 / 6, abs=0.03)  # chance, as published


def test_copying_is_that_of_arjovsky_et_al() -> None:
    """Symbols, T - 1 blanks, a delimiter, blanks; T + 10 blanks are wanted and then the symbols."""
    data = CopyingDataModule(delay=20)
    for inputs, target in list(data.examples("valid"))[:50]:
        ids = inputs.argmax(1)
        assert len(ids) == len(target) == 20 + 20
        assert ids[:10].min() >= 1
        assert ids[:10].max() <= 8
        assert ids[10:].tolist() == [0] * 19 + [9] + [0] * 10
        assert target.tolist() == [0] * 30 + ids[:10].tolist()
    assert f"{10 * math.log(8) / 40:.4f}" in data.describe()[0]


@pytest.mark.parametrize("name", GENERATED)
def test_generated_data_is_a_function_of_its_seed(name: str) -> None:
    data, again, other = new_data(name), new_data(name), new_data(name, seed=1)

    def told(data: MemoryDataModule, split: str, position: int = 4) -> list:
        return data.examples(split)[position].inputs.tolist()

    splits = [told(data, split) for split in ("train", "valid", "test")]
    assert splits == [told(again, split) for split in ("train", "valid", "test")]
    for position, split in enumerate(splits):
        assert split not in splits[:position]
    assert told(other, "valid") != told(data, "valid")
    assert "generated" in data.describe()[0]

    class Second:
        current_epoch, global_rank, world_size = 1, 0, 1

    again.trainer = Second()
    assert told(again, "train") != told(data, "train")  # every epoch has its own sequences
    assert told(again, "valid") == told(data, "valid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "remember", "distances": []}, r"distances must be different numbers of at least 0, got \[\]"),
        ({"name": "remember", "distances": [3, 3]}, r"distances must be different numbers of at least 0, got \[3, 3\]"),
        ({"name": "remember", "train_distances": [-1]}, r"train_distances must be different .* got \[-1\]"),
        ({"name": "remember", "symbols": 27}, "symbols must be from 2 to 26, one letter each, got 27"),
        ({"name": "adding", "length": 1}, "length must be at least 2, got 1"),
        ({"name": "adding", "train_lengths": [5, 1]}, "train_lengths must be at least 2, got 1"),
        ({"name": "copying", "delay": 0}, "delay must be at least 1, got 0"),
        ({"name": "copying", "test_size": 0}, "test_size must be at least 1, got 0"),
    ],
)
def test_bad_sizes_are_told(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_data(**options)


# The model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["fused", "torch", "gru", "rnn"])
@pytest.mark.parametrize("name", ["remember", "copying"])
def test_a_sequence_alone_and_in_a_padded_batch_give_the_same(name: str, layer: str) -> None:
    data = new_data(name)
    task = new_task(data, recurrent=layer, num_layers=2)
    examples = [data.examples("train")[k] for k in range(6)]
    together = task.predict_step(data.collate(examples))
    for column, example in enumerate(examples):
        alone = task.predict_step(data.collate([example]))
        torch.testing.assert_close(together.outputs[..., column, :], alone.outputs[..., 0, :], rtol=1e-4, atol=1e-5)


def test_both_directions_are_read_at_their_ends() -> None:
    data = new_data("remember")
    options = {"class_path": "fused", "init_args": {"bidirectional": True}}
    task = new_task(data, recurrent=options)
    examples = [data.examples("train")[k] for k in range(3)]
    together = task.predict_step(data.collate(examples)).outputs
    alone = torch.cat([task.predict_step(data.collate([example])).outputs for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GENERATED)
def test_losses_and_metrics_are_means_over_what_is_asked_for(name: str, make_trainer: Callable[..., Trainer]) -> None:
    """Against one sequence after another, without padding."""
    data = new_data(name)
    task = new_task(data)
    trainer = make_trainer()
    trainer.validate(task, data, verbose=False)
    losses, right = [], []
    for inputs, target in data.examples("valid"):
        output = task(inputs[:, None], torch.tensor([len(inputs)])).detach().double()
        if name == "adding":
            losses.append(float(output[0, 0] - target) ** 2)
        elif name == "remember":
            losses.append(float(F.cross_entropy(output, target[None])))
            right.append(bool(output.argmax() == target))
        else:
            losses += F.cross_entropy(output[:, 0], target, reduction="none").tolist()
            right += (output[-3:, 0].argmax(1) == target[-3:]).tolist()
    figures = trainer.callback_metrics
    assert float(figures["val_loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    if name == "adding":
        assert float(figures["val_mse"]) == pytest.approx(np.mean(losses), rel=1e-5)
    else:
        assert float(figures["val_accuracy"]) == pytest.approx(np.mean(right))


def test_steps_of_unequal_sequences_count_alike() -> None:
    data = new_data("copying")
    task = new_task(data)
    examples = [data.examples("train")[k] for k in (0, 1)]
    loss, count = task.batch_loss(data.collate(examples), 0)
    alone = [task.batch_loss(data.collate([example]), 0) for example in examples]
    assert [int(steps) for _, steps in alone] == [7, 11]
    assert count == 18
    assert float(loss) == pytest.approx(sum(float(each) * int(steps) for each, steps in alone) / 18, rel=1e-5)


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has learned to name the first character after 0 and 2 steps, and hardly more."""
    runs = tmp_path_factory.mktemp("runs")
    sizes = ("--data.train_size=1200", "--data.valid_size=60", "--data.test_size=90", "--data.symbols=3")
    options = ("--data.distances=[0,2,30]", "--model.lr=0.02", "--trainer.max_epochs=2", f"--runs={runs}")
    assert main(["fit", "-c", "remember", *SMALL, *sizes, *options]) == 0
    return runs / "remember" / "version_0"


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_figures_and_its_picture(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["data"]["sequences"] == {"train": 1200, "valid": 60, "test": 90}
    assert {"test_loss", "test_accuracy"} <= summary["test"].keys()
    rows = read_csv(run / "accuracy_over_distance.csv")
    assert [row["distance"] for row in rows] == ["0", "2", "30"]
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies[0] == 1
    assert np.mean(accuracies) == pytest.approx(summary["test"]["test_accuracy"])
    assert (run / "accuracy_over_distance.png").stat().st_size > 10_000


def test_predictions_agree_with_the_test(run: Path, command: Callable[..., Result]) -> None:
    result = command("predict", "-c", run, "--ckpt_path", "best")
    assert result.code == 0, result.err
    rows = read_csv(run / "predictions.csv")
    assert list(rows[0]) == ["sequence", "length", "target", "prediction", "probability"]
    assert len(rows) == 90
    summary = json.loads((run / "summary.json").read_text())
    accuracy = np.mean([row["target"] == row["prediction"] for row in rows])
    assert accuracy == pytest.approx(summary["test"]["test_accuracy"])


def test_sequences_of_ones_own_are_predicted(run: Path, command: Callable[..., Result], tmp_path: Path) -> None:
    sequences = ["a", "bca", "cc", "b" + "ac" * 20]
    (tmp_path / "own.txt").write_bytes("\r\n".join(["\ufeff" + sequences[0], *sequences[1:], ""]).encode())
    result = command("predict", "-c", run, "--ckpt_path", "best", "--data.predict", tmp_path / "own.txt")
    assert result.code == 0, result.err
    rows = read_csv(run / "predictions.csv")
    assert [int(row["length"]) for row in rows] == [len(sequence) for sequence in sequences]
    assert {row["target"] for row in rows} == {""}
    assert [row["prediction"] for row in rows[:3]] == ["a", "b", "c"]
    in_memory = load_run(run).predict(sequences)
    assert [row["prediction"] for row in in_memory] == [row["prediction"] for row in rows]
    assert [row["probability"] for row in in_memory] == pytest.approx([float(r["probability"]) for r in rows], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("remember", "abc\nabx\n", r"line 2: a sequence must be of the letters abcd, got 'abx'"),
        ("remember", "\n", "has no sequences"),
        ("copying", "123", r"line 1: a sequence must be more than 3 digits, of which the last 3 give .*, got '123'"),
        ("copying", "12x09000", "line 1: .* got '12x09000'"),
        ("adding", "", "line 1: the columns must be sequence,value,marker, got ''"),
        ("adding", "value,marker\n", "line 1: the columns must be sequence,value,marker, got 'value,marker'"),
        ("adding", "sequence,value,marker\n", "has no sequences"),
        ("adding", "sequence,value,marker\n1,0.5\n", "line 2: there must be 3 columns, got 2"),
        ("adding", "sequence,value,marker\n1,0.5,x\n", "line 2: value and marker must be numbers, got 0.5,x"),
        ("adding", "sequence,value,marker\n1,nan,0\n", "line 2: value and marker must be finite, got nan,0"),
        ("adding", "sequence,value,marker\n1,1e39,0\n", "line 2: value and marker must be finite, got 1e39,0"),
        ("adding", "sequence,value,marker\na,0,0\nb,0,0\na,0,1\n", "line 4: .* stand together, and 'a' begins again"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "bad.txt").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        new_data(name, predict=str(tmp_path / "bad.txt")).setup("predict")
    assert "bad.txt" in str(error.value)


def test_a_missing_file_to_predict_is_told() -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.predict must name a file, and there is none at 'no'"):
        new_data("adding", predict="no").setup("predict")


def test_steps_of_a_csv_file_become_sequences(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("sequence,value,marker\nx,0.25,1\nx,0.5,0\ny,1,1\n")
    data = new_data("adding", predict=str(tmp_path / "own.csv"))
    found = [example.inputs.tolist() for example in data.examples_to_predict()]
    assert found == [[[0.25, 1], [0.5, 0]], [[1, 1]]]
    batch = next(iter(data.predict_dataloader()))
    assert batch.lengths.tolist() == [2, 1]
    task = new_task(data)
    rows = task.rows([task.predict_step(batch)], data)
    assert [row["target"] for row in rows] == ["", ""]
    assert all(isinstance(row["prediction"], float) for row in rows)


@pytest.mark.parametrize(("config", "layer"), [("remember", "rnn"), ("adding", "gru"), ("copying", "torch")])
def test_each_config_runs_and_with_other_layers(config: str, layer: str, command: Callable[..., Result]) -> None:
    few = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.enable_progress_bar=false")
    sizes = ("--data.train_size=8", "--data.valid_size=8", "--data.test_size=8")
    assert command("fit", "-c", config, "--trainer.fast_dev_run=1", *few[1:]).code == 0
    result = command("fit", "-c", config, *few, *sizes, f"--model.recurrent={layer}")
    assert result.code == 0, result.err
    folder = Path("runs") / config / "version_0"
    metric = "mse" if config == "adding" else "accuracy"
    assert f"test_{metric}" in json.loads((folder / "summary.json").read_text())["test"]
    pictures = {"remember": "accuracy_over_distance", "adding": "predictions", "copying": "accuracy_by_position"}
    assert (folder / f"{pictures[config]}.png").stat().st_size > 8_000
    if config == "copying":
        rows = read_csv(folder / "accuracy_by_position.csv")
        summary = json.loads((folder / "summary.json").read_text())
        assert [row["position"] for row in rows] == [str(k) for k in range(1, 11)]
        assert np.mean([float(row["accuracy"]) for row in rows]) == pytest.approx(summary["test"]["test_accuracy"])


@pytest.mark.parametrize("name", GENERATED)
def test_a_run_goes_on_exactly_in_the_middle_of_an_epoch(
    name: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    options = {"recurrent_dropout": 0.1, "dropout": 0.1, "lr": 1e-2}
    check_exact_resume(lambda: new_task(**options), lambda: new_data(name), make_trainer, tmp_path, step=6)


# Pictures of digits ---------------------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> Path:
    content = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(folder: Path, name: str, count: int, suffix: str = "", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(256, size=(count, 6, 4)), rng.integers(10, size=count)
    folder.mkdir(exist_ok=True)
    write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images)
    write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", labels)
    return images, labels


def test_pictures_are_read_pixel_by_pixel(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path, "train", 9, ".gz")
    data = SequentialMNISTDataModule(path=str(tmp_path), valid_size=4)
    assert not data.has_test()
    train, valid = data.examples("train"), data.examples("valid")
    assert (len(train), len(valid)) == (5, 4)  # the last ones are valid
    for position, (inputs, target) in enumerate([*train, *valid]):
        assert inputs[:, 0].tolist() == pytest.approx((images[position].flatten() / 255).tolist())
        assert target == labels[position]
    assert data.lengths("train") == [24]

    write_mnist(tmp_path, "t10k", 3, seed=1)
    data = SequentialMNISTDataModule(path=str(tmp_path), valid_size=4, train_size=2, pool=2)
    assert data.has_test()
    assert [len(data.examples(split)) for split in ("train", "valid", "test")] == [2, 4, 3]
    pooled = images[0].reshape(3, 2, 2, 2).mean((1, 3)).flatten() / 255
    assert data.examples("train")[0].inputs[:, 0].tolist() == pytest.approx(pooled.tolist())

    own = SequentialMNISTDataModule(
        train=str(tmp_path / "train-images-idx3-ubyte.gz"), valid=str(tmp_path / "t10k-images-idx3-ubyte")
    )
    assert [len(own.examples(split)) for split in ("train", "valid")] == [9, 3]
    assert not own.has_test()


def test_a_permutation_is_one_order_for_all_and_goes_into_the_checkpoint(tmp_path: Path) -> None:
    images, _ = write_mnist(tmp_path, "train", 9)
    data = SequentialMNISTDataModule(path=str(tmp_path), valid_size=4, permuted=True)
    inputs = [example.inputs[:, 0] for example in data.examples("train")]
    order = data.order(24)
    assert sorted(order) == list(range(24))
    assert order != sorted(order)
    for position, pixels in enumerate(inputs):
        assert pixels.tolist() == pytest.approx((images[position].flatten()[order] / 255).tolist())
    state = torch.load(_saved(data.state_dict(), tmp_path), weights_only=True)
    again = SequentialMNISTDataModule(seed=7, **SequentialMNISTDataModule.options_of_state(state))
    again.load_state_dict(state)
    assert again.order(24) == order
    with pytest.raises(ValueError, match=r"data\.permuted must be that of the checkpoint, True, got False"):
        SequentialMNISTDataModule().load_state_dict(state)


def _saved(state: dict, folder: Path) -> Path:
    torch.save(state, folder / "state.pt")
    return folder / "state.pt"


def test_bad_pictures_are_told(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", 4)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    good = images.read_bytes(), labels.read_bytes()

    def error(**options: Any) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            SequentialMNISTDataModule(**{"path": str(tmp_path), "valid_size": 2} | options).setup("fit")
        images.write_bytes(good[0])
        labels.write_bytes(good[1])
        return str(raised.value)

    assert (
        error(path=str(tmp_path / "no")) == f"data.path must name a folder with MNIST's files, got '{tmp_path / 'no'}'"
    )
    assert error(valid_size=4) == "valid_size must be less than the 4 train pictures it is cut from, got 4"
    images.write_bytes(good[0][:-1])
    assert error() == f"'{images}' must have 96 bytes after its head, and has 95"
    images.write_bytes(good[1])
    assert (
        error() == f"'{images}' must be an idx file of images, which begins with 0x00000803, and begins with 0x00000801"
    )
    images.write_bytes(b"")
    assert "and begins with nothing" in error()
    packed = gzip.compress(good[0])
    for damaged in (b"\x1f\x8b damaged", packed[:-9], packed[:12] + bytes(20) + packed[32:]):
        images.write_bytes(damaged)
        assert f"'{images}' is damaged: " in error()
    labels.write_bytes(good[1][:-1] + bytes([11]))
    assert error() == f"'{labels}', label 4: must be from 0 to 9, got 11"
    write_idx(labels, np.zeros(3))
    assert error() == f"'{images}' has 4 pictures and '{labels}' 3 labels"
    write_idx(images, np.zeros((0, 6, 4)))
    assert "is empty: its shape is [0, 6, 4]" in error()
    labels.unlink()
    assert error() == f"there is no file '{labels}'"
    with pytest.raises(ValueError, match="valid needs the train split beside it"):
        SequentialMNISTDataModule(valid="a")
    with pytest.raises(ValueError, match="the pixels of a picture must be from 0 to 255"):
        SequentialMNISTDataModule().to_inputs(np.full((4, 4), 256))


def test_the_stand_in_is_digits_and_a_function_of_its_seed() -> None:
    images, labels = drawn_digits(200, 0)
    again, _ = drawn_digits(200, 0)
    assert images.equal(again)
    assert not images.equal(drawn_digits(200, 1)[0])
    assert (images.shape, images.dtype) == ((200, 28, 28), torch.uint8)
    assert labels.bincount(minlength=10).min() > 5
    # Nearest means classify them well above chance: there is something to learn.
    flat = images.flatten(1).double()
    means = torch.stack([flat[:150][labels[:150] == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(flat[150:], means).argmin(1)
    assert (nearest == labels[150:]).double().mean() > 0.5


def test_the_digits_config_runs_and_a_run_goes_on_exactly(
    command: Callable[..., Result], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    write_mnist(tmp_path / "digits", "train", 50)
    write_mnist(tmp_path / "digits", "t10k", 20, seed=1)
    assert command("fit", "-c", "smnist", "--trainer.fast_dev_run=1").code == 0
    files = (f"--data.path={tmp_path / 'digits'}", "--data.valid_size=10", "--data.permuted=true", "--data.pool=1")
    result = command("fit", "-c", "smnist", *SMALL, *files, "--trainer.max_epochs=1", "--model.hidden_size=5")
    assert result.code == 0, result.err
    run = Path("runs/smnist/version_0")
    assert "test_accuracy" in json.loads((run / "summary.json").read_text())["test"]
    counts = np.array([list(row.values())[1:] for row in read_csv(run / "confusion.csv")], int)
    assert counts.shape == (10, 10)
    assert counts.sum() == 20
    assert (run / "confusion.png").stat().st_size > 10_000
    unlabelled = write_idx(tmp_path / "new.idx", np.random.default_rng(5).integers(256, size=(3, 6, 4)))
    predicted = command("predict", "-c", run, "--ckpt_path", "best", "--data.predict", unlabelled)
    assert predicted.code == 0, predicted.err
    rows = read_csv(run / "predictions.csv")
    assert [row["target"] for row in rows] == [""] * 3
    loaded = load_run(run)
    in_memory = loaded.predict(np.random.default_rng(5).integers(256, size=(3, 6, 4)))
    assert [row["prediction"] for row in in_memory] == [row["prediction"] for row in rows]

    def new() -> SequentialMNISTDataModule:
        return SequentialMNISTDataModule(path=str(tmp_path / "digits"), valid_size=10, batch_size=8)

    check_exact_resume(lambda: new_task(dropout=0.1), new, make_trainer, tmp_path / "resume", step=7)
