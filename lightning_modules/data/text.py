"""The data module for language models: a text, its vocabulary, and its contiguous batches."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from lightning_modules.data.base import SPLITS, TaskDataModule
from lightning_modules.data.contiguous import ContiguousLoader, entropy
from lightning_modules.data.cutting import cut_text
from lightning_modules.data.reading import DataFiles, list_files
from lightning_modules.data.text_files import check_encoding, default_text, not_text, read_files
from lightning_modules.data.vocabulary import Vocabulary
from lightning_modules.resuming import tell

SPLITS_OF_STAGE = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ()}
VOCABULARY_OPTIONS = ("max_vocab", "min_count")


class TextDataModule(TaskDataModule):
    """Text for a language model, word by word or character by character.

    The text comes from ``path``, cut into train, valid and test by ``split``; where ``path`` is a folder or a glob and
    its files are named after splits, from those files, and valid is cut from train where no file is named after it.
    ``train``, ``valid`` and ``test`` name the files of a split and win over ``path``: see
    :class:`~lightning_modules.data.reading.DataFiles` for all of it. With none of these it is the text of Python's own
    help pages.

    The vocabulary is that of the train text alone. It goes into every checkpoint, and a checkpoint's vocabulary is
    used in place of one of the text's own.

    A model that never saw ``<unk>`` in training gives it next to no probability: where that is so and valid or test
    have unknown tokens, figures without them are reported beside the whole (``val_ppl_known``), and one line says so.

    Args:
        path: a file, a folder or a glob.
        train: a file, a folder or a glob of the train text; needs ``valid``.
        valid: the same of the valid text.
        test: the same of the test text.
        predict: the same of a text to predict token by token; the test text if not given.
        split: shares of train, valid and test, in the text's order; they are scaled to sum 1. A share of 0 for test
            leaves the test out. Where files are named after train and test alone, the first two cut train.
        level: whether a token is a character (``char``) or a word (``word``), which is what white space separates.
        max_vocab: the most tokens to know, special ones included; the rarest become ``<unk>``. All by default.
        min_count: tokens that the train text has fewer times become ``<unk>``; 2 lets a model learn what an unknown
            word is from the words seen once.
        batch_size: columns of a batch, over all processes.
        sequence_length: steps of a batch.
        random_length: each epoch draws the steps of its training batches anew, around ``sequence_length``, in one of
            twenty around half of it; the learning rate of a step goes with them (AWD-LSTM; Merity et al. 2018, sec. 5).
        encoding: of the files, unless a byte order mark identifies it.
    """

    settled = ("max_vocab",)
    beside_content = ("batch_size", "sequence_length", "predict", "level", *VOCABULARY_OPTIONS)

    def __init__(
        self,
        path: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        level: Literal["char", "word"] = "char",
        max_vocab: int | None = None,
        min_count: int = 1,
        batch_size: int = 32,
        sequence_length: int = 64,
        random_length: bool = False,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__()
        if train is not None and valid is None:
            raise ValueError("train and valid name the files of a split together: valid is missing")
        if len(split) != 3 or min(split) < 0 or not split[0] > 0 or not split[1] > 0:
            raise ValueError(f"split must be three shares, of which train and valid are above 0, got {tuple(split)}")
        check_encoding(encoding)
        self.save_hyperparameters()
        self.files = DataFiles(path, train=train, valid=valid, test=test, not_data=partial(not_text, encoding=encoding))
        self._vocabulary: Vocabulary | None = None
        self._unknown_is_trained: bool | None = None
        self._texts: dict[str, str] = {}
        self._tokens: dict[str, Tensor] = {}
        self._checkpoint: dict[str, Any] = {}
        self._told: set[str] = set()

    # The text -------------------------------------------------------------------------------------------------------

    def text(self, name: str) -> str:
        """The text of the split ``name``, read once. Raises ValueError where there is none or it is empty."""
        if name not in self._texts:
            files, splits = self._source(name)
            if not splits:
                raise ValueError(f"there is no {name} text; name one with --data.{name}")
            if "train" in splits:
                self.files.check_disjoint()
            text = read_files(files, self.hparams.encoding) if files else default_text()
            pieces = [text]
            if len(splits) > 1:
                shares = [self.hparams.split[SPLITS.index(split)] for split in splits]
                pieces = cut_text(text, shares, words=self.hparams.level == "word")
            for split, piece in zip(splits, pieces, strict=True):
                if split == name or self.hparams[split] is None:  # another's piece, unless it has files of its own
                    self._texts[split] = piece
            self._tell(self.files.notes)
        if not self._texts[name] or self._texts[name].isspace():
            source = self.hparams[name] or self.hparams.path
            raise ValueError(f"the {name} text is empty" + (f": '{source}'" if source else ""))
        return self._texts[name]

    def _source(self, name: str) -> tuple[Sequence[Any], tuple[str, ...]]:
        """The files of a split, and into which splits they are cut; none where there is no such split."""
        if name == "predict":
            return list_files(self.hparams.predict), ("predict",)
        files, splits = self.files.source(name) or ([], ())
        if "test" in splits[1:] and not self.hparams.split[2] > 0:
            splits = splits[:-1]
        return (files, splits) if name in splits else ([], ())

    def has_test(self) -> bool:
        """Whether there is a test text."""
        return bool(self._source("test")[1])

    @property
    def split_to_predict(self) -> str:
        """``predict`` where a text for it is given, and else ``test``. Raises ValueError where there is neither."""
        if self.hparams.predict is not None:
            return "predict"
        if not self.has_test():
            raise ValueError("there is nothing to predict: name a text with --data.predict")
        return "test"

    def _tell(self, sentences: Sequence[str]) -> None:
        """Each once."""
        for sentence in sentences:
            if sentence not in self._told:
                self._told.add(sentence)
                tell(sentence)

    # The tokens -----------------------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens' names: a loaded checkpoint's, or else those of the train text."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.build(
                self.text("train"), self.hparams.level, self.hparams.max_vocab, self.hparams.min_count
            )
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
            "valid_unknown_share": self.unknown_share("valid"),
            "valid_unigram_entropy": entropy(valid),
        }

    def describe(self) -> list[str]:
        summary = self.summary()
        tokens = ", ".join(f"{name} {count:,}" for name, count in summary["tokens"].items())
        return [
            f"tokens: {tokens}; vocabulary {summary['vocabulary']:,}, of which the valid text misses "
            f"{summary['valid_unknown_share']:.2%}; its unigram entropy is {summary['valid_unigram_entropy']:.3f} nats"
        ]

    # The unknown ----------------------------------------------------------------------------------------------------

    def unknown_share(self, name: str) -> float:
        """The share of a split's tokens that are ``<unk>``."""
        return float((self.tokens(name) == 0).double().mean())

    @property
    def unknown_is_trained(self) -> bool:
        """Whether the train text, the checkpoint's where one is loaded, has ``<unk>``."""
        if self._unknown_is_trained is None:
            self._unknown_is_trained = bool((self.tokens("train") == 0).any())
        return self._unknown_is_trained

    def judges_untrained_unknown(self) -> bool:
        """Whether a split that is judged, of those read so far, has ``<unk>`` and training does not."""
        judged = [name for name in ("valid", "test", "predict") if name in self._tokens]
        return any(self.unknown_share(name) for name in judged) and not self.unknown_is_trained

    # The checkpoint -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "vocabulary": self.vocabulary.state_dict(),
            "unknown_is_trained": self.unknown_is_trained,
            "options": {name: self.hparams[name] for name in VOCABULARY_OPTIONS},
        }

    @classmethod
    def options_of_state(cls, state: dict[str, Any]) -> dict[str, Any]:
        return {"level": state["vocabulary"]["level"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        vocabulary = Vocabulary(**state_dict["vocabulary"])
        if vocabulary.level != self.hparams.level:
            raise ValueError(
                f"data.level must be that of the checkpoint's vocabulary, level {vocabulary.level!r}, "
                f"got {self.hparams.level!r}"
            )
        if vocabulary != self._vocabulary:
            self._vocabulary = vocabulary
            self._tokens.clear()
        # An older checkpoint does not tell: then it is as if all were trained, and nothing is left out of a figure.
        self._unknown_is_trained = state_dict.get("unknown_is_trained", True)
        self._checkpoint = state_dict
        if self.trainer is not None and self.trainer.state.fn == "fit":  # Lightning loads after setup
            self._tell_differences()

    def content(self, split: str) -> str:
        return self.text(split)

    def _tell_differences(self) -> None:
        """Says which options are those of the loaded checkpoint, not those given."""
        options = self._checkpoint.get("options", {})
        for name in VOCABULARY_OPTIONS:
            if options.get(name, self.hparams[name]) != self.hparams[name]:
                self._tell([f"data.{name} is {options[name]}, as in the checkpoint, not {self.hparams[name]}"])

    # The batches ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads what ``stage`` needs, so that a bad file or a short text is an error before anything else begins."""
        for name in SPLITS_OF_STAGE[stage]:
            self._loader(name, self.hparams.batch_size)
        if stage == "predict":
            self.predict_dataloader()
        if stage == "fit" and not self.unknown_is_trained:  # of the checkpoint's run, and not of this text either?
            self._unknown_is_trained = bool((self.tokens("train") == 0).any())
        self._tell_differences()
        if stage != "predict":
            self._tell_of_figures(stage)

    def _loader(self, name: str, batch_size: int) -> ContiguousLoader:
        return ContiguousLoader(
            self.tokens(name),
            batch_size,
            self.hparams.sequence_length,
            random_length=self.hparams.random_length and name == "train",
            seed=self.order_seed,
            epoch=self.current_epoch,
            rank=self.rank,
            world_size=self.world_size,
            name=f"{name} text",
        )

    def _tell_of_figures(self, stage: str) -> None:
        """Says which figures of the splits that are judged are not what they seem."""
        for name in ("valid", "test"):
            if {name, "train"} <= self._texts.keys() and self._texts[name] == self._texts["train"]:
                self._tell([f"The {name} text is the train text: its figures say nothing of new text."])
        judged = SPLITS_OF_STAGE[stage][-1]
        other = {"valid": "test", "test": "valid"}[judged]
        told = other in self._tokens and self.unknown_share(other) > 0
        if not told and self.judges_untrained_unknown():
            figure = "bpc" if self.hparams.level == "char" else "ppl"
            self._tell(
                [
                    f"Training never sees <unk>, which {self.unknown_share(judged):.2%} of the {judged} text's tokens "
                    f"are: each costs far more than a known one. The figures ending in _known ({figure}_known) are "
                    f"without them, and --early_stopping.monitor val_loss_known goes by them; --data.min_count 2 makes "
                    f"words seen once <unk>, which trains it."
                ]
            )

    def train_dataloader(self) -> ContiguousLoader:
        return self._loader("train", self.hparams.batch_size)

    def val_dataloader(self) -> ContiguousLoader:
        return self._loader("valid", self.hparams.batch_size)

    def test_dataloader(self) -> ContiguousLoader:
        return self._loader("test", self.hparams.batch_size)

    def predict_dataloader(self) -> ContiguousLoader:
        """The text to predict in one column, which is its order of reading."""
        return self._loader(self.split_to_predict, 1)
