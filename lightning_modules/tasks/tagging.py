"""Training a tagger: named entities and whatever else is marked in sentences."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from lightning_modules.callbacks.entity_picture import EntityPicture
from lightning_modules.data.conll import format_sentence
from lightning_modules.data.tag_schemes import allowed_transitions, entities, to_tags
from lightning_modules.data.tagging import LONGEST_WORD, NO_LABEL, TaggingBatch, TaggingDataModule
from lightning_modules.models.crf import LinearChainCRF
from lightning_modules.models.entity_metrics import EntityScore, count_entities
from lightning_modules.models.tagger import CharacterCNN, CharacterRNN, Tagger, split_sentences
from lightning_modules.tasks.base import RecurrentTask
from lightning_modules.tasks.exported import Exported

# Of ``lstm-fused export``: the tags of a sentence, and so many steps of a CRF on the way to them that it takes more
# than the twenty lines of other tasks: the best that may come after a word is summed up from the end of the sentence.
EXAMPLE = """\
words = (sys.argv[1] if len(sys.argv) > 1 else "the function str returns a string in Python 3").split()
ids = {word: k for k, word in enumerate(about["words"])}
plain = ["".join("0" if letter.isdecimal() else letter for letter in word.lower()) for word in words]
inputs = {"words": np.array([[ids.get(word, 0)] for word in plain]), "lengths": np.array([len(words)])}  # [T, B]
if about["characters"]:  # [letters, T, B], -1 past a word's end
    ids = {letter: k for k, letter in enumerate(about["characters"])}
    spelled = [[ids.get(letter, 0) for letter in word] + [-1] * about["longest_word"] for word in words]
    inputs["characters"] = np.array([letters[: about["longest_word"]] for letters in spelled]).T[:, :, None]
(scores,) = model(**inputs)
after = [np.array(about["last"])]
for score in scores[:0:-1, 0]:
    after.append((about["between"] + score + after[-1]).max(1))
before = about["first"]
for word, score, rest in zip(words, scores[:, 0], reversed(after)):
    label = (before + score + rest).argmax()
    before = about["between"][label]
    print(word, about["labels"][label])
"""


class TaggerOfTensors(nn.Module):
    """The net as it is exported, with the tensors of a batch one by one, and the characters of every word."""

    def __init__(self, net: Tagger) -> None:
        super().__init__()
        self.net = net

    def forward(self, words: Tensor, lengths: Tensor, characters: Tensor | None = None) -> tuple[Tensor]:
        """
        Args:
            words: [T, B].
            lengths: [B].
            characters: [``LONGEST_WORD``, T, B], -1 past a word's end.
        """
        absent: Any = None  # the net reads no labels, and characters where it has some
        if characters is None:
            return (self.net(TaggingBatch(words, lengths, absent, absent, absent, absent)),)
        spellings = torch.arange(words.numel(), device=words.device).view_as(words)
        characters = characters.flatten(1)
        counts = (characters >= 0).sum(0).clamp(min=1)  # none past a sentence's end
        return (self.net(TaggingBatch(words, lengths, spellings, characters.clamp(min=0), counts, absent)),)


class TaggingTask(RecurrentTask[TaggingDataModule]):
    """Trains a :class:`Tagger` on sentences whose entities are tagged.

    The loss is in nats a token: with a conditional random field (``crf``) that of whole sentences, shared by their
    tokens, without it the cross-entropy of each tag. Judged are the entities that are found whole and with the right
    type: ``f1``, ``precision`` and ``recall`` over all types (micro averages, as CoNLL and seqeval have them), and
    ``f1_TYPE`` of each where there are several. ``dropout`` acts on what goes into the recurrent layers and on what
    comes out; make these bidirectional (``--model.recurrent.bidirectional true``).

    Args:
        vocab_size: number of words; taken from the data if not given.
        num_frequent_words: how many of them were seen more than once; taken from the data if not given.
        num_characters: number of characters; taken from the data if not given.
        num_types: number of types of entities; taken from the data if not given.
        scheme: the tags to learn, ``bio`` or ``iobes``; that of the data if not given.
        embedding_size: size of a word's embedding; if not given that of the data's pretrained vectors, or else 100.
        characters: how a word's spelling is read: ``cnn``, ``rnn`` (a layer of the class of ``recurrent``) or ``none``.
        character_embedding_size: size of a character's embedding.
        character_hidden_size: filters of the ``cnn``, or units a direction of the ``rnn``.
        crf: whether tags are scored together and only such are chosen that may follow one another.
        unknown_rate: rate at which a word that was seen once is taken for unknown in training.
        shared: those of :class:`RecurrentTask`.
    """

    loss_unit = "nats a token"

    def __init__(
        self,
        vocab_size: int | None = None,
        num_frequent_words: int | None = None,
        num_characters: int | None = None,
        num_types: int | None = None,
        scheme: Literal["bio", "iobes"] | None = None,
        embedding_size: int | None = None,
        characters: Literal["cnn", "rnn", "none"] = "cnn",
        character_embedding_size: int = 30,
        character_hidden_size: int = 50,
        crf: bool = True,
        unknown_rate: float = 0.5,
        **shared: Any,
    ) -> None:
        for name, value in {
            "embedding_size": embedding_size,
            "character_embedding_size": character_embedding_size,
            "character_hidden_size": character_hidden_size,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if characters not in ("cnn", "rnn", "none"):
            raise ValueError(f"characters must be 'cnn', 'rnn' or 'none', got {characters!r}")
        if not 0 <= unknown_rate <= 1:
            raise ValueError(f"unknown_rate must be in [0, 1], got {unknown_rate}")
        super().__init__(**shared)

    # The model ------------------------------------------------------------------------------------------------------

    @classmethod
    def size_names(cls) -> tuple[str, ...]:
        return ("vocab_size", "num_frequent_words", "num_characters", "num_types", "scheme")

    def data_sizes(self, data: TaggingDataModule) -> dict[str, Any]:
        known = data.known
        return {
            "vocab_size": len(known["words"]),
            "num_frequent_words": known["num_frequent_words"],
            "num_characters": len(known["characters"]),
            "num_types": len(known["types"]),
            "scheme": known["scheme"],
        }

    def new_net(self) -> Tagger:
        hparams = self.hparams
        allowed = allowed_transitions(hparams.num_types, hparams.scheme)
        sizes = (hparams.num_characters, hparams.character_embedding_size)
        characters: CharacterCNN | CharacterRNN | None = None
        if hparams.characters == "cnn":
            characters = CharacterCNN(*sizes, hparams.character_hidden_size)
        elif hparams.characters == "rnn":
            characters = CharacterRNN(*sizes, lambda size: self.new_layer(size, hparams.character_hidden_size, 1))
        return Tagger(
            hparams.vocab_size,
            hparams.num_frequent_words,
            len(allowed) - 1,
            self.new_layer,
            embedding_size=100 if hparams.embedding_size is None else hparams.embedding_size,
            characters=characters,
            dropout=hparams.dropout,
            variational=hparams.variational,
            unknown_rate=hparams.unknown_rate,
            crf=LinearChainCRF(allowed) if hparams.crf else None,
        )

    def build(self, data: TaggingDataModule) -> None:
        """Builds the net; its embedding begins with the data's pretrained vectors, where there are any."""
        vectors = data.initial_vectors() if self.net is None else None
        if vectors is not None:
            size = vectors.weight.shape[1]
            if self.hparams.embedding_size not in (None, size):
                raise ValueError(
                    f"embedding_size must be that of the vectors, {size}, got {self.hparams.embedding_size}"
                )
            self.hparams.embedding_size = size
        super().build(data)
        if vectors is not None:
            vectors.copy_to(self.net.embedding)

    def new_metrics(self, data: TaggingDataModule) -> dict[str, Metric]:
        self.labels = data.labels
        self.types = data.types
        count = len(self.types)
        scores: tuple[Literal["f1", "precision", "recall"], ...] = ("f1", "precision", "recall")
        metrics: dict[str, Metric] = {name: EntityScore(count, name) for name in scores}
        if count > 1:
            # Names of metrics must not have dots.
            names = [f"f1_{type_ or 'entity'}".replace(".", "_") for type_ in self.types]
            metrics |= {name: EntityScore(count, "f1", k) for k, name in enumerate(names)}
        return metrics

    def own_callbacks(self) -> list[Callback]:
        return [EntityPicture()]

    def step_names(self, batch: TaggingBatch, data: TaggingDataModule) -> list[list[str]]:
        words = data.known["words"]
        columns = zip(batch.words.t().tolist(), batch.lengths.tolist(), strict=True)
        return [[words[word] for word in column[:length]] for column, length in columns]

    def text_batch(self, text: str, data: TaggingDataModule) -> TaggingBatch:
        """A sentence whose words white space separates, all tagged ``O``."""
        tokens = text.split()
        if not tokens:
            raise ValueError(f"text must have a word, got {text!r}")
        return data.collate([(tokens, ["O"] * len(tokens))])

    def to_export(self, data: TaggingDataModule) -> Exported:
        batch = next(iter(data.val_dataloader()))
        inputs: dict[str, Any] = {"words": (batch.words, ("T", "B")), "lengths": (batch.lengths, ("B",))}
        if self.net.characters is not None:
            # Of a fixed length: torch's convolution is exported for no other.
            characters = F.pad(batch.characters, (0, 0, 0, LONGEST_WORD - len(batch.characters)))
            inside = torch.arange(LONGEST_WORD)[:, None] < batch.character_lengths
            of_words = characters.masked_fill(~inside, -1)[:, batch.spellings]
            inputs["characters"] = (of_words, (None, "T", "B"))
        known = data.known
        about = {"words": known["words"], "labels": data.labels, "longest_word": LONGEST_WORD}
        about["characters"] = None if self.net.characters is None else known["characters"]
        if self.net.crf is not None:
            between, first, last = self.net.crf._scores(torch.zeros(1))[1]
            about |= {"between": between.tolist(), "first": first.tolist(), "last": last.tolist()}
        else:
            zeros = [0.0] * len(data.labels)
            about |= {"between": [zeros] * len(zeros), "first": zeros, "last": zeros}
        return Exported(
            TaggerOfTensors(self.net),
            inputs,
            ["scores"],
            about,
            EXAMPLE,
        )

    # The steps ------------------------------------------------------------------------------------------------------

    def batch_loss(
        self, batch: TaggingBatch, batch_idx: int, metrics: MetricCollection | None = None
    ) -> tuple[Tensor, int]:
        """Of a batch, in nats a token."""
        scores = self(batch)
        count = int(batch.lengths.sum())
        if self.net.crf is not None:
            loss = self.net.crf(scores, batch.labels, batch.lengths).sum() / count
        else:
            loss = F.cross_entropy(scores.flatten(0, 1), batch.labels.flatten(), ignore_index=NO_LABEL)
        if metrics is not None:
            gold = split_sentences(batch.labels, batch.lengths)
            found = self.net.decode(scores, batch.lengths)
            counts = count_entities(_names(found, self.labels), _names(gold, self.labels), self.types)
            for metric in metrics.values():
                if isinstance(metric, EntityScore):
                    metric.update(counts)
        return loss, count

    # Predictions ----------------------------------------------------------------------------------------------------

    def predict_step(self, batch: TaggingBatch, batch_idx: int) -> list[list[int]]:
        """The labels of each sentence."""
        labels: list[list[int]] = self.net.decode(self(batch), batch.lengths)
        return labels

    def write_predictions(self, batches: list[list[list[int]]], data: TaggingDataModule, folder: Path) -> str:
        """The sentences in CoNLL columns with a BIO tag as one more column, as ``predictions.conll``."""
        path = folder / "predictions.conll"
        found = 0
        labels = [labels for batch in batches for labels in batch]
        with open(path, "w", newline="\n", encoding="utf-8") as file:
            # With trainer.limit_predict_batches the last ones have none.
            sentences = data.sentences("predict")[: len(labels)]
            for sentence, tags in zip(sentences, _bio_tags(labels, data.labels), strict=True):
                file.write(format_sentence(sentence, tags))
                found += len(entities(tags))
        return f"{len(labels):,} sentences with {found:,} entities, in {path}"

    @torch.inference_mode()
    def predict_examples(self, examples: list[list[str]], data: TaggingDataModule) -> list[list[str]]:
        """The BIO tags of sentences' tokens; a sentence may be a string, whose tokens white space separates.

        Raises ValueError for an empty token, TypeError where sentences are neither.
        """
        if isinstance(examples, str):
            raise TypeError(f"examples must be a list of sentences, got the string {examples[:40]!r}")
        sentences = [example.split() if isinstance(example, str) else list(example) for example in examples]
        for k, tokens in enumerate(sentences):
            if not all(isinstance(token, str) and token for token in tokens):
                raise ValueError(f"a sentence must be tokens of a character or more, got {tokens} as sentence {k}")
        filled = [k for k, tokens in enumerate(sentences) if tokens]
        tags: list[list[str]] = [[] for _ in sentences]
        was_training = self.training
        self.eval()
        for start in range(0, len(filled), data.hparams.batch_size):
            chosen = filled[start : start + data.hparams.batch_size]
            batch = data.collate([(sentences[k], None) for k in chosen])
            batch = TaggingBatch(*(tensor.to(self.device) for tensor in batch))
            labels = self.net.decode(self(batch), batch.lengths)
            for k, of_sentence in zip(chosen, _bio_tags(labels, data.labels), strict=True):
                tags[k] = of_sentence
        self.train(was_training)
        return tags


def _names(sentences: list[list[int]], labels: list[str]) -> list[list[str]]:
    return [[labels[label] for label in sentence] for sentence in sentences]


def _bio_tags(sentences: list[list[int]], labels: list[str]) -> list[list[str]]:
    return [to_tags(entities(tags), len(tags)) for tags in _names(sentences, labels)]
