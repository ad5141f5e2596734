"""The classifier: its net, its figures, its commands, on texts and on series."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import Result
from torch import Tensor

from lightning_modules import load_run
from lightning_modules.callbacks import RNGState
from lightning_modules.callbacks.confusion_picture import draw_confusion
from lightning_modules.cli import main
from lightning_modules.data import LabeledSeriesDataModule, LabeledTextDataModule
from lightning_modules.data.generated import generated_movements, generated_reviews
from lightning_modules.models.recurrent import build_recurrent
from lightning_modules.models.sequence_classifier import POOLINGS, SequenceClassifier
from lightning_modules.tasks import ClassificationTask

SMALL = ("--model.hidden_size=8", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false")


def text_table(count: int = 120) -> str:
    return "".join(f"{text}\t{label}\n" for text, label in generated_reviews(count))


def ts_file(count: int = 48) -> str:
    header = "@timeStamps false\n@classLabel true circle-left circle-right eight line spiral zigzag\n@data\n"
    lines = []
    for series, label in generated_movements(count):
        channels = [",".join(f"{number:.5f}" for number in channel) for channel in series.T.tolist()]
        lines.append(":".join([*channels, label.replace(" ", "-")]))
    return header + "\n".join(lines) + "\n"


# The net --------------------------------------------------------------------------------------------------------------


def new_net(word: str = "fused", bidirectional: bool = False, **options: object) -> SequenceClassifier:
    torch.manual_seed(0)
    spec = {"class_path": word, "init_args": {"bidirectional": bidirectional}}
    net = SequenceClassifier(3, lambda size: build_recurrent(spec, size, hidden_size=5, num_layers=2), **options)
    return net.double().eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("word", ["fused", "torch", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_sequence_alone_and_in_a_batch_give_the_same(pooling: str, word: str, bidirectional: bool) -> None:
    lengths = torch.tensor([4, 1, 6, 3])
    tokens = torch.randint(10, (6, 4))
    numbers = torch.randn(6, 4, 2, dtype=torch.float64) * 5
    for options, inputs in (({"vocab_size": 10}, tokens), ({"channels": 2}, numbers)):
        net = new_net(word, bidirectional, pooling=pooling, **options)
        logits = net(inputs, lengths)
        assert logits.shape == (4, 3)
        for b, length in enumerate(lengths.tolist()):
            alone = net(inputs[:length, b : b + 1], torch.tensor([length]))
            torch.testing.assert_close(logits[b], alone[0], rtol=1e-12, atol=1e-12)


def test_poolings_are_what_their_names_say() -> None:
    output = torch.randn(5, 2, 5, dtype=torch.float64)
    output[3:, 1] = 0  # past the end of the second
    lengths = torch.tensor([5, 3])
    nets = {name: new_net(pooling=name, vocab_size=4) for name in POOLINGS}
    pooled = {name: net.pool(output, lengths)[1] for name, net in nets.items()}
    weights = nets["attention"].attention.weights(output, lengths)
    torch.testing.assert_close(weights.sum(0), torch.ones(2, dtype=torch.float64))
    assert weights[3:, 1].eq(0).all()
    real = output[:3, 1]
    for name, expected in {
        "last": real[-1],
        "mean": real.mean(0),
        "max": real.amax(0),
        "attention": (weights[:3, 1, None] * real).sum(0),
    }.items():
        torch.testing.assert_close(pooled[name], expected, msg=name)


def test_words_are_dropped_in_training_alone() -> None:
    net = new_net(vocab_size=10, word_dropout=0.3)
    seen: list[Tensor] = []
    net.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tokens, lengths = torch.randint(1, 10, (50, 40)), torch.full((40,), 50)
    net(tokens, lengths)
    net.train()(tokens, lengths)
    assert seen[0].equal(tokens)
    dropped = seen[1] == 0
    assert 0.25 < dropped.double().mean() < 0.35
    assert seen[1][~dropped].equal(tokens[~dropped])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 4, "pooling": "sum"}, "pooling must be one of last, mean, max, attention, got 'sum'"),
        ({}, "one of vocab_size and channels must be above 0, got 0 and 0"),
        ({"channels": 2, "word_dropout": 0.1}, "word_dropout must be 0 for series of numbers"),
        ({"vocab_size": 4, "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"vocab_size": 4, "embedding_size": 0}, "embedding_size must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_told(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_net(**options)


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small trained runs of both configs, on files of 120 texts and 48 series, one file each."""
    folder = tmp_path_factory.mktemp("classification")
    for name, config, content in (
        ("texts.tsv", "sentiment", text_table()),
        ("series.ts", "series_classification", ts_file()),
    ):
        (folder / name).write_text(content, encoding="utf-8")
        arguments = ("fit", "-c", config, f"--data.path={folder / name}", f"--runs={folder}", *SMALL)
        assert main([*arguments, "--data.split=[6,2,2]"]) == 0
    return folder


@pytest.mark.parametrize("config", ["sentiment", "series_classification"])
def test_a_run_leaves_its_figures_and_pictures(runs: Path, config: str) -> None:
    run = runs / config / "version_0"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["test"]) == {"test_loss", "test_accuracy", "test_f1"}
    assert {"val_loss", "val_accuracy", "val_f1"} <= set(summary["best"])
    assert summary["data"]["examples"] == (
        {"train": 72, "valid": 24, "test": 24} if config == "sentiment" else {"train": 29, "valid": 10, "test": 9}
    )
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    accuracies = [float(row["val_accuracy"]) for row in rows if row["val_accuracy"]]
    assert summary["best"]["val_accuracy"] == pytest.approx(max(accuracies))
    for name in ("confusion_valid.png", "confusion_test.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("config", ["sentiment", "series_classification"])
def test_predictions_tell_the_figures_of_the_test(runs: Path, config: str, command: Callable[..., Result]) -> None:
    run = runs / config / "version_0"
    result = command("predict", "-c", run, "--ckpt_path", "best")
    assert result.code == 0, result.err
    loaded = load_run(run)
    truth = loaded.data.rows("test")
    table = list(csv.DictReader((run / "predictions.csv").open(encoding="utf-8", newline="")))
    labels = loaded.data.labels
    first = "text" if config == "sentiment" else "row"
    assert list(table[0]) == [first, "label", *(f"p_{label}" for label in labels)]
    assert len(table) == len(truth)
    limited = command(
        "predict", "-c", run, "--ckpt_path=best", "--data.batch_size=2", "--trainer.limit_predict_batches=1"
    )
    assert "2 examples, in " in limited.out
    right, loss = 0, 0.0
    scores = []
    for row, true in zip(table, truth, strict=True):
        probabilities = {label: float(row[f"p_{label}"]) for label in labels}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert probabilities[row["label"]] == max(probabilities.values())
        right += row["label"] == true.label
        loss -= torch.tensor(probabilities[true.label]).log().item() / len(truth)
    for label in labels:
        predicted = [row["label"] == label for row in table]
        actual = [row.label == label for row in truth]
        if any(predicted) or any(actual):
            both = sum(p and a for p, a in zip(predicted, actual, strict=True))
            scores.append(2 * both / (sum(predicted) + sum(actual)))
    figures = json.loads((run / "summary.json").read_text())["test"]
    assert figures["test_accuracy"] == pytest.approx(right / len(truth))
    assert figures["test_f1"] == pytest.approx(sum(scores) / len(scores))
    assert figures["test_loss"] == pytest.approx(loss, rel=1e-4)
    if config == "sentiment":
        assert [row["text"] for row in table] == [row.content for row in truth]


def test_new_data_without_labels_and_data_in_memory(runs: Path, tmp_path: Path, command: Callable[..., Result]) -> None:
    texts = ["The film is not good", 'nobody ever heard of ünïcode, "quotes" and commas']
    (tmp_path / "new.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    run = runs / "sentiment" / "version_0"
    result = command("predict", "-c", run, "--ckpt_path", "best", f"--data.predict={tmp_path / 'new.txt'}")
    assert result.code == 0, result.err
    assert "2 examples, in " in result.out
    table = list(csv.DictReader((run / "predictions.csv").open(encoding="utf-8", newline="")))
    assert [row["text"] for row in table] == texts
    loaded = load_run(run)
    for row, prediction in zip(table, loaded.predict(texts), strict=True):
        assert row["label"] == prediction.label
        for label, value in prediction.probabilities.items():
            assert float(row[f"p_{label}"]) == pytest.approx(value, abs=2e-6)
    for examples, message in (
        (["fine", " "], r"examples\[1\] must have at least one token"),
        ([3], r"examples\[0\]: an example must be a text, got int"),
    ):
        with pytest.raises(ValueError, match=message):
            loaded.predict(examples)
    with pytest.raises(TypeError, match="examples must be a list of texts, got one text"):
        loaded.predict("fine")

    series = load_run(runs / "series_classification" / "version_0")
    example = series.data.rows("test")[0].content
    alone, among = series.predict([example]), series.predict([example, example[:3], example.numpy().tolist()])
    assert among[0].probabilities == pytest.approx(alone[0].probabilities, abs=1e-6)
    assert among[2].probabilities == pytest.approx(alone[0].probabilities, abs=1e-6)
    with pytest.raises(ValueError, match=r"examples\[0\]: an example must be numbers \[T, 2\], got \[4, 3\]"):
        series.predict([torch.zeros(4, 3)])
    with pytest.raises(ValueError, match=r"got one that is not in step 1"):
        series.predict([torch.tensor([[0, 0], [0, torch.nan]])])


@pytest.mark.parametrize("config", ["sentiment", "series_classification"])
def test_resume_inside_an_epoch_is_exact(
    runs: Path, tmp_path: Path, config: str, make_trainer: Callable[..., Trainer]
) -> None:
    class Losses(Callback):
        def __init__(self) -> None:
            self.values: list[float] = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.values.append(float(outputs["loss"]))

    kind, file = {
        "sentiment": (LabeledTextDataModule, "texts.tsv"),
        "series_classification": (LabeledSeriesDataModule, "series.ts"),
    }[config]

    def fit(seed: int, resume: Path | None = None) -> tuple[ClassificationTask, list[float]]:
        seed_everything(seed)
        words = {"word_dropout": 0.2} if config == "sentiment" else {}
        task = ClassificationTask(hidden_size=6, dropout=0.3, recurrent_dropout=0.2, lr=1e-2, **words)
        losses = Losses()
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(callbacks=[losses, RNGState(), *([saver] if resume is None else [])])
        trainer.fit(task, kind(str(runs / file), batch_size=16), ckpt_path=resume, weights_only=True)
        return task, losses.values

    whole, losses = fit(0)
    steps = len(losses) // 2
    for step in (1, steps, steps + 2):
        task, rest = fit(9, tmp_path / f"step={step}.ckpt")
        assert rest == losses[step:], step
        for name, value in whole.state_dict().items():
            assert value.equal(task.state_dict()[name]), name


@pytest.mark.parametrize("config", ["sentiment", "sst2", "series_classification"])
def test_the_configs_run_without_files(command: Callable[..., Result], config: str) -> None:
    result = command("fit", "-c", config, "--trainer.fast_dev_run=true")
    assert result.code == 0, result.err
    assert "data: " in result.out
    assert "generated" in result.out


@pytest.mark.parametrize(
    ("config", "layer"),
    [("sentiment", "torch"), ("series_classification", "gru"), ("series_classification", "rnn")],
)
def test_other_layers(runs: Path, command: Callable[..., Result], config: str, layer: str) -> None:
    data = runs / ("texts.tsv" if config == "sentiment" else "series.ts")
    result = command(
        "fit", "-c", config, f"--model.recurrent={layer}", f"--data.path={data}", "--trainer.fast_dev_run=true"
    )
    assert result.code == 0, result.err


# Pretrained vectors ---------------------------------------------------------------------------------------------------


def test_pretrained_vectors(runs: Path, tmp_path: Path, command: Callable[..., Result]) -> None:
    words = {"film": [1.0, 2, 3], "good": [4.0, 5, 6]}
    glove = tmp_path / "glove.txt"
    glove.write_text("".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in words.items()))
    data = f"--data.path={runs / 'texts.tsv'}"
    arguments = ("fit", "-c", "sentiment", data, f"--data.vectors={glove}", "--model.lr=0", *SMALL)
    result = command(*arguments, "--trainer.max_epochs=1")
    assert result.code == 0, result.err
    run = Path("runs/sentiment/version_0")
    summary = json.loads((run / "summary.json").read_text())["data"]
    assert summary["tokens_with_vector"] == 2
    assert f"2 of the vocabulary's {summary['vocabulary']} tokens have one of 3 numbers in '{glove}'" in result.out
    glove.unlink()  # the checkpoint has them
    loaded = load_run(run)
    for word, vector in words.items():
        row = loaded.task.net.embedding.weight[loaded.data.vocabulary.ids[word]]
        assert row.tolist() == pytest.approx(vector)
    assert command("test", "-c", run, "--ckpt_path=best").code == 0
    glove.write_text("film 1 2 3\n")
    error = command(*arguments, "--model.embedding_size=4").error
    assert error == "embedding_size must be that of the vectors, 3, got 4"


# The picture ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 9, 70])
def test_a_confusion_matrix_of_any_size_is_drawn(tmp_path: Path, count: int) -> None:
    counts = torch.eye(count, dtype=torch.int64) * 7
    counts[0] = 0  # a label that the split lacks
    path = tmp_path / "confusion.png"
    draw_confusion(counts, [f"a rather long label {k}" for k in range(count)], path, "valid split")
    assert path.stat().st_size > 3000


def test_bad_options_are_told(command: Callable[..., Result], tmp_path: Path) -> None:
    assert command("fit", "-c", "sentiment", "--data.path=nowhere").error == (
        "there is no file, folder or match of a glob at 'nowhere'"
    )
    assert not (tmp_path / "runs").exists()
    for options, message in (
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"split": (1, 0, 0)}, "split must be three shares, of which train and valid are above 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"encoding": "no"}, "unknown encoding 'no'"),
    ):
        with pytest.raises(ValueError, match=message):
            LabeledTextDataModule(**options)
    for options, message in (
        ({"word_dropout": 1.0}, r"word_dropout must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\), got -0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassificationTask(**options)
