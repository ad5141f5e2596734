"""The data module for taggers: sentences in CoNLL columns, their words, characters and tags."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.data.base import SPLITS, SPLITS_OF_STAGE, TaskDataModule
from lightning_modules.data.batches import ExampleLoader
from lightning_modules.data.conll import Sentence, parse_sentences, read_sentences
from lightning_modules.data.help_pages import tagged_help_pages
from lightning_modules.data.reading import DataFiles, list_files
from lightning_modules.data.tag_schemes import SCHEMES, entities, labels_of, to_tags
from lightning_modules.data.text_files import check_encoding, not_text
from lightning_modules.data.vectors import WordVectors, read_vectors
from lightning_modules.data.vocabulary import Vocabulary

LONGEST_WORD = 50  # characters of a word that are read: an address of the web must not make a whole batch as long
NO_LABEL = -1


class TaggingBatch(NamedTuple):
    """Sentences of T words at most.

    Attributes:
        words: ids, int64 [T, B].
        lengths: words of each sentence, int64 [B].
        spellings: which of the batch's U different words a word is, int64 [T, B].
        characters: the ids of these words' characters, int64 [L, U].
        character_lengths: how many each has, int64 [U].
        labels: int64 [T, B], ``NO_LABEL`` past each end and where there are none.
    """

    words: Tensor
    lengths: Tensor
    spellings: Tensor
    characters: Tensor
    character_lengths: Tensor
    labels: Tensor


class TaggingDataModule(TaskDataModule):
    """Sentences whose words are tagged with entities, from files in CoNLL columns.

    The token is the first column and its tag the last (:func:`~lightning_modules.data.conll.read_sentences`); tags are
    BIO, IOB1, IOBES or BILOU, and all are read right. ``path`` is cut into train, valid and test by ``split``,
    sentence by sentence in its order, unless its files are named after splits; ``train``, ``valid`` and ``test`` name
    the files of a split (:class:`~lightning_modules.data.reading.DataFiles` has the rules). Without any of them the
    sentences are those of Python's help pages, in which code and terms are to be found
    (:func:`~lightning_modules.data.help_pages.tagged_help_pages`).

    A word is known by its lower case with every digit as 0; its characters are read as they are. Words, characters and
    types of entities are those of the train split. They go into every checkpoint, and a checkpoint's are used in place
    of the data's own.

    Args:
        path: a file, a folder or a glob.
        train: a file, a folder or a glob of the train sentences.
        valid: the same of the valid sentences; cut from train if not given.
        test: the same of the test sentences.
        predict: the same of sentences to tag, of which only the first column is read; the test split if not given.
        split: shares of train, valid and test, scaled to sum 1. A share of 0 for test leaves the test out. Where there
            are files of train but none of valid, the first two cut train.
        scheme: the tags that the model learns, ``bio`` or ``iobes``. What it predicts is written as BIO.
        vectors: a file of word vectors in GloVe's text format, with which the embedding begins.
        batch_size: sentences of a batch, over all processes.
        encoding: of the files, unless a byte order mark identifies it.
    """

    def __init__(
        self,
        path: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        scheme: Literal["bio", "iobes"] = "bio",
        vectors: str | None = None,
        batch_size: int = 32,
        encoding: str = "utf-8",
    ) -> None:
        super().__init__()
        if len(split) != 3 or min(split) < 0 or not split[0] > 0 or not split[1] > 0:
            raise ValueError(f"split must be three shares, of which train and valid are above 0, got {tuple(split)}")
        if scheme not in SCHEMES:
            raise ValueError(f"scheme must be 'bio' or 'iobes', got {scheme!r}")
        check_encoding(encoding)
        self.save_hyperparameters()
        self.files = DataFiles(path, train=train, valid=valid, test=test, not_data=partial(not_text, encoding=encoding))
        self._vectors: WordVectors | None = None
        self._is_loaded = False
        self._sentences: dict[str, list[Sentence]] = {}
        self._words: Any = None  # a Vocabulary, when it is known
        self._state: Any = None  # a dict, likewise

    # The sentences --------------------------------------------------------------------------------------------------

    def sentences(self, name: str) -> list[Sentence]:
        """The sentences of a split, or of ``predict``, read once. Raises ValueError where there are none."""
        if name not in self._sentences:
            if name == "predict":
                self._sentences[name] = self._sentences_to_predict()
            else:
                self._read(name)
        return self._sentences[name]

    def _sentences_to_predict(self) -> list[Sentence]:
        if self.hparams.predict is not None:
            return read_sentences(list_files(self.hparams.predict), self.hparams.encoding, tagged=False)
        if not self.has_test():
            raise ValueError("there is no test split to predict; name sentences with --data.predict")
        return self.sentences("test")

    def _read(self, name: str) -> None:
        files, parts = self._source(name)
        if not parts:
            raise ValueError(f"there are no {name} sentences; name a file with --data.{name}")
        if files:
            sentences = read_sentences(files, self.hparams.encoding)
        else:
            sentences = parse_sentences(tagged_help_pages(), "Python's help pages")
        shares = [self.hparams.split[SPLITS.index(part)] for part in parts]
        if len(sentences) < sum(share > 0 for share in shares):
            raise ValueError(
                f"'{sentences[0].file}' must have a sentence for each of {', '.join(parts)}, which it is cut into, "
                f"got {len(sentences)}"
            )
        for part, some in zip(parts, _cut(sentences, shares), strict=True):
            if part == name or self.hparams[part] is None:  # another's piece, unless it has files of its own
                self._sentences[part] = some

    def _source(self, name: str) -> tuple[list[Path], tuple[str, ...]]:
        """The files of a split, none for the default data, and the splits that they are cut into."""
        files, parts = self.files.source(name) or ([], ())
        if name == "test" and len(parts) > 1 and not self.hparams.split[2] > 0:
            return [], ()
        return files, parts

    def has_test(self) -> bool:
        return bool(self._source("test")[1])

    def gold_tags(self, name: str) -> list[list[str]]:
        """The tags of a split's sentences in ``scheme``.

        Raises ValueError for an entity of a type that the train split never has.
        """
        tags = []
        for sentence in self.sentences(name):
            found = entities(sentence.tags)
            for type_, start, _ in found:
                if type_ not in self.types:
                    raise ValueError(
                        f"{sentence.place(start)}: want an entity of a type that the train sentences have "
                        f"({', '.join(self.types)}), got {sentence.tags[start]!r}"
                    )
            tags.append(to_tags(found, len(sentence.tokens), self.hparams.scheme))
        return tags

    # What is known of them ------------------------------------------------------------------------------------------

    @property
    def known(self) -> dict[str, Any]:
        """Words, characters and types of entities, as plain values: a loaded checkpoint's, or the train split's."""
        if self._state is None:
            sentences = self.sentences("train")
            counts = Counter(normalize(token) for sentence in sentences for token in sentence.tokens)
            words = Vocabulary.from_tokens(counts.elements(), "word")
            spellings = (character for sentence in sentences for token in sentence.tokens for character in token)
            types = sorted({type_ for sentence in sentences for type_, *_ in entities(sentence.tags)})
            if not types:
                raise ValueError("the train sentences must have an entity, got tags O alone")
            self._state = {
                "words": words.tokens,
                "num_frequent_words": 1 + sum(counts[word] > 1 for word in words.tokens[1:]),
                "characters": Vocabulary.from_tokens(spellings, "char").tokens,
                "types": types,
                "scheme": self.hparams.scheme,
            }
            self._build_lookups()
        state: dict[str, Any] = self._state
        return state

    def _build_lookups(self) -> None:
        self._words = Vocabulary("word", self._state["words"])
        self._characters = Vocabulary("char", self._state["characters"])
        self._label_ids = {label: k for k, label in enumerate(labels_of(self._state["types"], self._state["scheme"]))}

    def initial_vectors(self) -> WordVectors | None:
        """Pretrained vectors that a new model's embedding begins with; ``None`` where there is a checkpoint's."""
        if self.hparams.vectors is not None and self._vectors is None and not self._is_loaded:
            self._vectors = read_vectors(self.hparams.vectors, self.known["words"])
        return self._vectors

    @property
    def types(self) -> list[str]:
        """The types of entities, in the order of their labels."""
        types: list[str] = self.known["types"]
        return types

    @property
    def labels(self) -> list[str]:
        """The tags that the model chooses from, by id."""
        return labels_of(self.types, self.known["scheme"])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self.known

    @classmethod
    def options_of_state(cls, state: dict[str, Any]) -> dict[str, Any]:
        return {"scheme": state["scheme"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict["scheme"] != self.hparams.scheme:
            raise ValueError(
                f"data.scheme must be that of the checkpoint, {state_dict['scheme']!r}, got {self.hparams.scheme!r}"
            )
        names = ("words", "num_frequent_words", "characters", "types", "scheme")
        self._is_loaded = True
        self._state = {name: state_dict[name] for name in names}
        self._build_lookups()

    # The figures ----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Sentences, tokens and entities by split; words known, and the share of the valid words that are not."""
        splits = {name: self.sentences(name) for name in (SPLITS if self.has_test() else SPLITS[:2])}
        counts = {
            name: Counter(type_ for sentence in sentences for type_, *_ in entities(sentence.tags))
            for name, sentences in splits.items()
        }
        valid = [normalize(token) in self._words.ids for sentence in splits["valid"] for token in sentence.tokens]
        return {
            "sentences": {name: len(sentences) for name, sentences in splits.items()},
            "tokens": {name: sum(len(s.tokens) for s in sentences) for name, sentences in splits.items()},
            "entities": {name: {type_: count[type_] for type_ in self.types} for name, count in counts.items()},
            "vocabulary": len(self.known["words"]),
            "valid_unknown_share": 1 - sum(valid) / len(valid),
        }

    def describe(self) -> list[str]:
        figures = self.summary()
        lines = [
            f"{name}: {figures['sentences'][name]:,} sentences, {figures['tokens'][name]:,} tokens, entities: "
            + ", ".join(f"{type_ or 'all'} {count:,}" for type_, count in figures["entities"][name].items())
            for name in figures["sentences"]
        ]
        lines.append(
            f"words: {figures['vocabulary']:,} known, {figures['valid_unknown_share']:.2%} of the valid ones are not"
        )
        if not self._source("train")[0]:
            lines.insert(0, "sentences of Python's help pages, whose markup has become the tags")
        if self._vectors is not None:
            lines.append(self._vectors.describe(self.hparams.vectors))
        return [*self.files.notes, *lines]

    # The batches ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads what ``stage`` needs, so that errors in the data are raised before anything else begins."""
        if stage == "fit":
            self.files.check_disjoint()
        for name in SPLITS_OF_STAGE[stage]:
            self._loader(name)

    def _loader(self, name: str, shuffle: bool = False) -> ExampleLoader:
        sentences = self.sentences(name)
        tags = [None] * len(sentences) if name == "predict" else self.gold_tags(name)
        examples = list(zip([sentence.tokens for sentence in sentences], tags, strict=True))
        return self.example_loader(
            examples,
            self.collate,
            batch_size=self.hparams.batch_size,
            lengths=[len(sentence.tokens) for sentence in sentences],
            shuffle=shuffle,
            name=f"{name} sentences",
        )

    def collate(
        self, examples: Sequence[tuple[list[str], list[str] | None]], positions: Sequence[int] = ()
    ) -> TaggingBatch:
        """The batch of sentences: of each its tokens, and its tags in ``scheme`` where they are known."""
        self.known  # noqa: B018 the look-ups are made with it
        spellings: dict[str, int] = {}  # the different words by their order in the batch
        sentences = [
            [
                (self._words.ids.get(normalize(token), 0), spellings.setdefault(token, len(spellings)))
                for token in tokens
            ]
            for tokens, _ in examples
        ]
        words, positions_of_spellings = pad_sequence([torch.tensor(sentence) for sentence in sentences]).unbind(-1)
        characters = [self._characters.encode(token[:LONGEST_WORD]) for token in spellings]
        labels = [
            torch.full((len(tokens),), NO_LABEL)
            if tags is None
            else torch.tensor([self._label_ids[tag] for tag in tags])
            for tokens, tags in examples
        ]
        return TaggingBatch(
            words=words.contiguous(),
            lengths=torch.tensor([len(tokens) for tokens, _ in examples]),
            spellings=positions_of_spellings.contiguous(),
            characters=pad_sequence(characters),
            character_lengths=torch.tensor([len(ids) for ids in characters]),
            labels=pad_sequence(labels, padding_value=NO_LABEL),
        )

    def train_dataloader(self) -> ExampleLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> ExampleLoader:
        return self._loader("valid")

    def test_dataloader(self) -> ExampleLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ExampleLoader:
        return self._loader("predict")


def normalize(token: str) -> str:
    """What a word is known by: its lower case, with every digit as 0."""
    return re.sub(r"\d", "0", token.lower())


def _cut(sentences: list[Sentence], shares: Sequence[float]) -> list[list[Sentence]]:
    """Pieces of the given shares in the sentences' order; a share above 0 gets a sentence at least."""
    ends = [0]
    for k, share in enumerate(accumulate(shares), 1):
        later = sum(other > 0 for other in shares[k:])
        end = round(len(sentences) * share / sum(shares))
        ends.append(min(max(end, ends[-1] + (shares[k - 1] > 0)), len(sentences) - later))
    return [sentences[start:end] for start, end in pairwise(ends)]
