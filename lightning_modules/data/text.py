"""The data module for language models: a text, its vocabulary, and its contiguous batches."""

from typing import Any, Literal

from torch import Tensor

from lightning_modules.data.base import SPLITS, TaskDataModule
from lightning_modules.data.contiguous import ContiguousLoader, entropy
from lightning_modules.data.reading import default_text, find_splits, list_files, read_files
from lightning_modules.data.vocabulary import Vocabulary

SPLITS_OF_STAGE = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ("test",)}


class TextDataModule(TaskDataModule):
    """Text for a language model, word by word or character by character.

    The text comes from ``path``, cut into train, valid and test by ``split`` - or, where ``path`` is a folder with
    files named after train and valid (and test), from those files. ``train``, ``valid`` and ``test`` name the files
    of a split and win over ``path``. With none of these it is the text of Python's own help pages.

    The vocabulary is that of the train text alone. It goes into every checkpoint, and a checkpoint's vocabulary is
    used in place of one of the text's own.

    Args:
        path: a file, a folder or a glob.
        train: a file, a folder or a glob of the train text; needs ``valid``.
        valid: the same of the valid text.
        test: the same of the test text.
        split: shares of train, valid and test, in the text's order; they are scaled to sum 1. A share of 0 for test
            leaves the test out.
        level: whether a token is a character (``char``) or a word (``word``).
        max_vocab: the most tokens to know, special ones included; the rarest become ``<unk>``. All by default.
        batch_size: columns of a batch, over all processes.
        sequence_length: steps of a batch.
        encoding: of the files.
    """

    def __init__(
        self,
        path: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        level: Literal["char", "word"] = "char",
        max_vocab: int | None = None,
        batch_size: int = 32,
        sequence_length: int = 64,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__()
        if (train is None) != (valid is None):
            missing = "valid" if valid is None else "train"
            raise ValueError(f"train and valid name the files of a split together: {missing} is missing")
        if len(split) != 3 or min(split) < 0 or not split[0] > 0 or not split[1] > 0:
            raise ValueError(f"split must be three shares, of which train and valid are above 0, got {tuple(split)}")
        self.save_hyperparameters()
        self._files = {"train": train, "valid": valid, "test": test}
        self._vocabulary: Vocabulary | None = None
        self._texts: dict[str, str] = {}
        self._tokens: dict[str, Tensor] = {}

    # The text -------------------------------------------------------------------------------------------------------

    def text(self, name: str) -> str:
        """The text of the split ``name``, read once. Raises ValueError where there is none or it is empty."""
        if name not in self._texts:
            if self._files[name] is not None:
                self._texts[name] = read_files(list_files(self._files[name]), self.hparams.encoding)
            elif self._files["train"] is None:
                self._texts = self._texts_of_path() | self._texts
        if name not in self._texts:
            raise ValueError(f"there is no {name} text; name one with --data.{name}")
        if not self._texts[name].strip():
            source = self._files[name] or self.hparams.path
            raise ValueError(f"the {name} text is empty" + (f": '{source}'" if source else ""))
        return self._texts[name]

    def _texts_of_path(self) -> dict[str, str]:
        if self.hparams.path is not None and (files := find_splits(self.hparams.path)):
            return {name: read_files(files[name], self.hparams.encoding) for name in files}
        text = (
            default_text()
            if self.hparams.path is None
            else read_files(list_files(self.hparams.path), self.hparams.encoding)
        )
        shares = self.hparams.split
        cuts = [_next_space(text, round(len(text) * sum(shares[:count]) / sum(shares))) for count in range(4)]
        pieces = {name: text[start:end] for name, start, end in zip(SPLITS, cuts, cuts[1:], strict=False)}
        return pieces if shares[2] > 0 else {name: pieces[name] for name in ("train", "valid")}

    def has_test(self) -> bool:
        """Whether there is a test text."""
        if self._files["test"] is None and self._files["train"] is None:
            self.text("train")  # reads the path
        return self._files["test"] is not None or "test" in self._texts

    # The tokens -----------------------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens' names: a loaded checkpoint's, or else those of the train text."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.build(self.text("train"), self.hparams.level, self.hparams.max_vocab)
        return self._vocabulary

    def tokens(self, name: str) -> Tensor:
        """The ids of a split's text, int64 [N]."""
        if name not in self._tokens:
            self._tokens[name] = self.vocabulary.encode(self.text(name))
        return self._tokens[name]

    def summary(self) -> dict[str, Any]:
        """Figures of the text: tokens, vocabulary, the valid text's share of ``<unk>`` and its entropy in nats."""
        valid = self.tokens("valid")
        names = SPLITS if self.has_test() else ("train", "valid")
        return {
            "level": self.vocabulary.level,
            "vocabulary": len(self.vocabulary),
            "tokens": {name: len(self.tokens(name)) for name in names},
            "valid_unknown_share": float((valid == 0).double().mean()),
            "valid_unigram_entropy": entropy(valid),
        }

    def describe(self) -> list[str]:
        summary = self.summary()
        tokens = ", ".join(f"{name} {count:,}" for name, count in summary["tokens"].items())
        return [
            f"tokens: {tokens}; vocabulary {summary['vocabulary']:,}, of which the valid text misses "
            f"{summary['valid_unknown_share']:.2%}; its unigram entropy is {summary['valid_unigram_entropy']:.3f} nats"
        ]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"vocabulary": self.vocabulary.state_dict()}

    @classmethod
    def options_of_state(cls, state: dict[str, Any]) -> dict[str, Any]:
        return {"level": state["vocabulary"]["level"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        vocabulary = Vocabulary(**state_dict["vocabulary"])
        if vocabulary.level != self.hparams.level:
            raise ValueError(
                f"the checkpoint's tokens are of level {vocabulary.level!r}, the data's of {self.hparams.level!r}"
            )
        if vocabulary != self._vocabulary:
            self._vocabulary = vocabulary
            self._tokens.clear()

    # The batches ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads what ``stage`` needs, so that a bad file or a short text is told before anything else begins."""
        for name in SPLITS_OF_STAGE[stage]:
            self._loader(name, self.hparams.batch_size)

    def _loader(self, name: str, batch_size: int) -> ContiguousLoader:
        return ContiguousLoader(
            self.tokens(name),
            batch_size,
            self.hparams.sequence_length,
            rank=self.rank,
            world_size=self.world_size,
            name=f"{name} text",
        )

    def train_dataloader(self) -> ContiguousLoader:
        return self._loader("train", self.hparams.batch_size)

    def val_dataloader(self) -> ContiguousLoader:
        return self._loader("valid", self.hparams.batch_size)

    def test_dataloader(self) -> ContiguousLoader:
        return self._loader("test", self.hparams.batch_size)

    def predict_dataloader(self) -> ContiguousLoader:
        """The test text in one column, which is its order of reading."""
        return self._loader("test", 1)


def _next_space(text: str, position: int) -> int:
    """The first position from ``position`` on that tears no word."""
    while 0 < position < len(text) and not text[position].isspace():
        position += 1
    return position
