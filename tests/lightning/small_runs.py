"""A small text, the arguments of a small run, and how a command ended: what several test files name."""

SMALL = (
    "--model.embedding_size=8",
    "--model.hidden_size=12",
    "--model.warmup_steps=2",
    "--data.batch_size=4",
    "--data.sequence_length=20",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
)

# The configs that anyone can rely on, a task or a recipe each, without data of one's own.
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
