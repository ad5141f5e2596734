"""Every task small: its data in a few files, its options, and a new one in this process or on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import seed_everything
from small_runs import make_text

from lightning_modules import data, tasks
from lightning_modules.data.generated import generated_movements, generated_reviews
from lightning_modules.data.piano_rolls import chorales, write_npz


def write_text(folder: Path, seed: int) -> dict[str, str]:
    (folder / "text.txt").write_text(make_text(40, seed), encoding="utf-8")
    return {"path": str(folder / "text.txt")}


def write_reviews(folder: Path, seed: int) -> dict[str, str]:
    rows = [f"{text}\t{label}\n" for text, label in generated_reviews(300)][62 * seed :][:62]
    (folder / "reviews.tsv").write_text("".join(rows), encoding="utf-8")
    return {"path": str(folder / "reviews.tsv")}


def write_movements(folder: Path, seed: int) -> dict[str, str]:
    lines = ["@classLabel true circle-left circle-right eight line spiral zigzag", "@data"]
    for series, label in generated_movements(300)[62 * seed :][:62]:
        channels = [",".join(f"{number:.4f}" for number in channel) for channel in series[::3].T.tolist()]
        lines.append(":".join((*channels, label.replace(" ", "-"))))
    (folder / "movements.ts").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"path": str(folder / "movements.ts")}


def write_sentences(folder: Path, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    names, verbs = ("Anna", "Bert", "Clara-Maria", "D."), ("sees", "hears", "does not know")
    lines = []
    for k in range(62):
        tokens = []
        for _ in range(1 + k % 3):
            tokens += [f"{rng.choice(names)} B-PER", *(f"{word} O" for word in str(rng.choice(verbs)).split())]
        lines += [*tokens, ". O", ""]
    (folder / "sentences.conll").write_text("\n".join(lines), encoding="utf-8")
    return {"path": str(folder / "sentences.conll")}


def write_series(folder: Path, seed: int) -> dict[str, str]:
    steps = np.arange(131)
    values = np.sin(steps / 3 + seed) + 0.1 * np.random.default_rng(seed).normal(size=131)
    lines = [f"{step},{'NA' if step % 17 == 5 else f'{value:.4f}'}" for step, value in zip(steps, values, strict=True)]
    (folder / "series.csv").write_text("\n".join(["step,load", *lines]) + "\n", encoding="utf-8")
    return {"path": str(folder / "series.csv")}


def write_pieces(folder: Path, seed: int) -> dict[str, str]:
    write_npz(folder / "pieces.npz", [piece[: 5 + k % 9] for k, piece in enumerate(chorales(62, seed))])
    return {"path": str(folder / "pieces.npz")}


def write_digits(folder: Path, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    for kind, array in (
        ("images-idx3", rng.integers(256, size=(61, 4, 4))),
        ("labels-idx1", rng.integers(10, size=61)),
    ):
        head = np.array([0x800 + array.ndim, *array.shape], ">u4").tobytes()
        (folder / f"train-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
    return {"path": str(folder)}


def generate(folder: Path, seed: int) -> dict[str, Any]:
    return {"seed": seed}


class SmallTask(NamedTuple):
    """A bundled config, its classes, options of the model and the data, and what writes the data and names it."""

    config: str
    task: type[tasks.RecurrentTask]
    data: type[data.TaskDataModule]
    model_options: dict[str, Any]
    data_options: dict[str, Any]
    write: Callable[[Path, int], dict[str, Any]]

    def new_data(self, folder: Path, seed: int = 0, **options: Any) -> data.TaskDataModule:
        return self.data(**self.data_options | self.write(folder, seed) | options)

    def new_task(self, seed: int = 0, **options: Any) -> tasks.RecurrentTask:
        seed_everything(seed)
        return self.task(**{"hidden_size": 6, "lr": 1e-2} | self.model_options | options)

    def arguments(self, folder: Path) -> list[str]:
        """Of the command line."""
        options = {f"model.{name}": value for name, value in self.model_options.items()} | {"model.hidden_size": 6}
        options |= {f"data.{name}": value for name, value in (self.data_options | self.write(folder, 0)).items()}
        options |= {"trainer.enable_progress_bar": "false", "trainer.log_every_n_steps": 1}
        # As it was written for the command line: lists without spaces, true and null in YAML.
        return ["fit", "-c", self.config, *(f"--{name}={_in_yaml(value)}" for name, value in options.items())]


def _in_yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_in_yaml, value))}]"
    return {"True": "true", "None": "null"}.get(str(value), str(value))


# Splits whose last batch has a single example; every batch but those of the text and of windows is padded.
CUT = {"split": (37, 13, 12), "batch_size": 4}
GENERATED = {"train_size": 37, "valid_size": 13, "test_size": 13, "batch_size": 4}
RANDOM = {"dropout": 0.2, "recurrent_dropout": 0.1}
SMALL_TASKS = {
    "char_lm": SmallTask(
        "char_lm", tasks.LanguageModelTask, data.TextDataModule, {"embedding_size": 6, **RANDOM},
        {"batch_size": 4, "sequence_length": 20}, write_text,
    ),
    "sentiment": SmallTask(
        "sentiment", tasks.ClassificationTask, data.LabeledTextDataModule,
        {"embedding_size": 6, "word_dropout": 0.1, **RANDOM}, CUT, write_reviews,
    ),
    "series_classification": SmallTask(
        "series_classification", tasks.ClassificationTask, data.LabeledSeriesDataModule, RANDOM, CUT, write_movements
    ),
    "ner": SmallTask(
        "ner", tasks.TaggingTask, data.TaggingDataModule,
        {"embedding_size": 6, "characters": "rnn", "character_embedding_size": 4, "character_hidden_size": 3, **RANDOM},
        CUT, write_sentences,
    ),
    "forecast": SmallTask(
        "forecast", tasks.ForecastTask, data.SeriesDataModule, RANDOM,
        {"window": 8, "horizon": 3, "batch_size": 10}, write_series,
    ),
    "music": SmallTask("music", tasks.MusicTask, data.MusicDataModule, RANDOM, CUT, write_pieces),
    "remember": SmallTask(
        "remember", tasks.MemoryTask, data.RememberDataModule, RANDOM,
        {"distances": [0, 3, 7], "symbols": 4, **GENERATED}, generate,
    ),
    "adding": SmallTask(
        "adding", tasks.MemoryTask, data.AddingDataModule, RANDOM,
        {"length": 9, "train_lengths": [4, 9], **GENERATED}, generate,
    ),
    "copying": SmallTask(
        "copying", tasks.MemoryTask, data.CopyingDataModule, RANDOM,
        {"delay": 5, "recalled": 3, "train_delays": [1, 5], **GENERATED}, generate,
    ),
    "smnist": SmallTask(
        "smnist", tasks.MemoryTask, data.SequentialMNISTDataModule, RANDOM,
        {"valid_size": 13, "pool": 1, "batch_size": 4}, write_digits,
    ),
}  # fmt: skip
