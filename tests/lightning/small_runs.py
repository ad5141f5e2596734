"""A small text, the arguments of a small run, and how a command ended: what several test files name."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

SMALL = (
    "--model.embedding_size=8",
    "--model.hidden_size=12",
    "--model.warmup_steps=2",
    "--data.batch_size=4",
    "--data.sequence_length=20",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
)

# A language model writes 600 characters at the end of a run by default.
SHORT_SAMPLE = '--trainer.callbacks+={"class_path":"lightning_modules.callbacks.TextSample","init_args":{"length":40}}'

# A run of three epochs that validates once in each, by the fixtures ``fit`` and ``whole``.
BATCHES = 7  # of an epoch
EPOCHS = 3
SHORT_RUN = (
    *SMALL,
    "--data.sequence_length=100",
    "--data.split=[0.6,0.2,0.2]",
    "--model.lr_schedule=constant",
    f"--trainer.max_epochs={EPOCHS}",
    "--trainer.log_every_n_steps=1",
)

slow = partial(pytest.param, marks=pytest.mark.slow)  # a case that `make test-all` tries, beside others of its kind

# The configs that run without external data, one task or recipe each.
CONFIG_NAMES = ("char_lm", "word_lm", "awd_lm", "sentiment", "series_classification", "ner", "forecast", "music")
CONFIG_NAMES += ("remember", "adding", "copying", "smnist")


def make_text(lines: int = 120, seed: int = 0) -> str:
    """Sentences of a few words in an order that is neither constant nor random: there is something to learn."""
    words = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "hill", "and", "slept", "there"]
    value, sentences = seed + 1, []
    for _ in range(lines):
        sentence = []
        for _ in range(6):
            value = (value * 1103515245 + 12345) % 2**31
            sentence.append(words[(value >> 16) % len(words)])
        sentences.append(" ".join(sentence))
    return "\n".join(sentences) + "\n"


def make_reviews(lines: int = 80) -> str:
    """A table of texts and labels."""
    texts = make_text(lines, seed=1).splitlines()
    return "".join(f"{text}\t{'good' if text.count('the') > 1 else 'bad'}\n" for text in texts)


@contextmanager
def undrawn() -> Iterator[list[str]]:
    """Pictures are made and not painted, which takes most of a second each: where a test is of something else.

    Gives the names of their files.
    """
    names: list[str] = []

    def leave_out(canvas: FigureCanvasAgg, path: str | Path) -> None:
        names.append(Path(path).name)
        Path(path).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "print_png", leave_out)
        yield names


class Result:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one sentence that a failed command says."""
        assert self.code not in (0, None)
        assert "Traceback" not in self.out + self.err
        lines = [line for line in self.err.splitlines() if line.startswith("lstm-fused: error: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("lstm-fused: error: ")
