"""Training a classifier of sequences: texts, or series of numbers."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_modules.callbacks.confusion_picture import ConfusionPicture
from lightning_modules.data.labeled import LabeledBatch, LabeledDataModule
from lightning_modules.data.labeled_text import word_pattern
from lightning_modules.data.vocabulary import Vocabulary
from lightning_modules.models.sequence_classifier import SequenceClassifier
from lightning_modules.tasks.base import RecurrentTask
from lightning_modules.tasks.exported import Exported, WithLengths

# Of ``lstm-fused export``: the label of a text, or of a series of numbers.
TEXT_EXAMPLE = """\
import re

text = sys.argv[1] if len(sys.argv) > 1 else "a film that nobody should miss, and a good one"
pieces = re.findall(about["piece"], text.lower().strip() if about["options"]["lowercase"] else text.strip())
ids = {token: k for k, token in enumerate(about["tokens"])}
tokens = np.array([[ids.get(piece, 0)] for piece in pieces[: about["options"]["max_length"]]])  # [T, B]
(probabilities,) = model(inputs=tokens, lengths=np.array([len(tokens)]))
for label, probability in zip(about["labels"], probabilities[0]):
    print(f"{label}: {probability:.3f}")
"""
SERIES_EXAMPLE = """\
series = np.array(json.loads(sys.argv[1]) if len(sys.argv) > 1 else about["example"], np.float32)  # [T, channels]
series = (series - np.array(about["mean"], np.float32)) / np.array(about["deviation"], np.float32)
(probabilities,) = model(inputs=series[:, None], lengths=np.array([len(series)]))
for label, probability in zip(about["labels"], probabilities[0]):
    print(f"{label}: {probability:.3f}")
"""


class Prediction(NamedTuple):
    """The likeliest label of an example, and the probability of each label."""

    label: str
    probabilities: dict[str, float]


class ClassificationTask(RecurrentTask[LabeledDataModule]):
    """Trains a :class:`SequenceClassifier` on examples with a label each.

    The loss is the cross-entropy in nats an example; the metrics are ``accuracy`` and ``f1``, the mean of the F1 scores
    of the classes (macro), without classes that neither occur nor are predicted. ``dropout`` acts on the embedding,
    between the layers and on the pooled output.

    Args:
        num_classes: number of labels; taken from the data if not given, as are the next two.
        vocab_size: number of tokens, 0 for series of numbers.
        channels: numbers of a step, 0 for texts.
        embedding_size: size of a token's embedding; if not given that of the data's pretrained vectors, or else 128.
        pooling: ``last`` outputs of each direction, ``mean`` or ``max`` over the steps, or ``attention``.
        word_dropout: rate at which training replaces a token by ``<unk>``.
        label_smoothing: share of the training target that is spread over all labels.
        shared: those of :class:`RecurrentTask`.
    """

    loss_unit = "nats an example"

    def __init__(
        self,
        num_classes: int | None = None,
        vocab_size: int | None = None,
        channels: int | None = None,
        embedding_size: int | None = None,
        pooling: Literal["last", "mean", "max", "attention"] = "last",
        word_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        **shared: Any,
    ) -> None:
        for name, rate in {"word_dropout": word_dropout, "label_smoothing": label_smoothing}.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate}")
        super().__init__(**shared)

    # The model ------------------------------------------------------------------------------------------------------

    @classmethod
    def size_names(cls) -> tuple[str, ...]:
        return ("num_classes", "vocab_size", "channels")

    def data_sizes(self, data: LabeledDataModule) -> dict[str, Any]:
        return {"num_classes": len(data.labels), "vocab_size": data.vocab_size, "channels": data.channels}

    def new_net(self) -> SequenceClassifier:
        return SequenceClassifier(
            self.hparams.num_classes,
            self.new_layer,
            vocab_size=self.hparams.vocab_size,
            embedding_size=128 if self.hparams.embedding_size is None else self.hparams.embedding_size,
            channels=self.hparams.channels,
            pooling=self.hparams.pooling,
            dropout=self.hparams.dropout,
            word_dropout=self.hparams.word_dropout,
            variational=self.hparams.variational,
        )

    def build(self, data: LabeledDataModule) -> None:
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

    def new_metrics(self, data: LabeledDataModule) -> dict[str, Metric]:
        count = len(data.labels)
        return {"accuracy": MulticlassAccuracy(count, average="micro"), "f1": MulticlassF1Score(count, average="macro")}

    def own_callbacks(self) -> list[Callback]:
        return [ConfusionPicture()]

    def step_names(self, batch: LabeledBatch, data: LabeledDataModule) -> list[list[str]] | None:
        if not self.hparams.vocab_size:
            return None
        columns = zip(batch.inputs.t().tolist(), batch.lengths.tolist(), strict=True)
        vocabulary = _vocabulary(data)
        return [[vocabulary.tokens[token] for token in column[:length]] for column, length in columns]

    def text_batch(self, text: str, data: LabeledDataModule) -> Any:
        """The text of any label: it is not judged."""
        if not self.hparams.vocab_size:
            return super().text_batch(text, data)
        batch = next(data.batches_of([text]))
        return batch._replace(targets=torch.zeros_like(batch.targets))

    def to_export(self, data: LabeledDataModule) -> Exported:
        batch = next(iter(data.val_dataloader()))
        state = {k: v for k, v in data.state_dict().items() if k in ("mean", "deviation", "options")}
        about = {"labels": data.labels} | state
        if self.hparams.vocab_size:
            vocabulary = _vocabulary(data)
            about |= vocabulary.state_dict()
            about["piece"] = word_pattern() if vocabulary.level == "word" else "(?s)."
        else:
            mean, deviation = (torch.tensor(state[name]) for name in ("mean", "deviation"))
            about["example"] = (batch.inputs[: batch.lengths[0], 0] * deviation + mean).tolist()
        return Exported(
            WithLengths(self.net, "softmax"),
            {
                "inputs": (batch.inputs, ("T", "B") if self.hparams.vocab_size else ("T", "B", None)),
                "lengths": (batch.lengths, ("B",)),
            },
            ["probabilities"],
            about,
            TEXT_EXAMPLE if self.hparams.vocab_size else SERIES_EXAMPLE,
        )

    # The steps ------------------------------------------------------------------------------------------------------

    def batch_loss(
        self, batch: LabeledBatch, batch_idx: int, metrics: MetricCollection | None = None
    ) -> tuple[Tensor, int]:
        """In nats an example."""
        logits = self(batch.inputs, batch.lengths)
        smoothing = self.hparams.label_smoothing if metrics is None else 0.0
        loss = F.cross_entropy(logits, batch.targets, label_smoothing=smoothing)
        for name, metric in () if metrics is None else metrics.items(keep_base=True):
            if name != "loss":
                metric.update(logits, batch.targets)
        return loss, len(batch.targets)

    # Predictions ----------------------------------------------------------------------------------------------------

    def predict_step(self, batch: LabeledBatch, batch_idx: int) -> Tensor:
        """The probabilities of the labels, float32 [B, K]."""
        probabilities: Tensor = self(batch.inputs, batch.lengths).float().softmax(-1)
        return probabilities

    def write_predictions(self, batches: list[Tensor], data: LabeledDataModule, folder: Path) -> str:
        """Every example with its likeliest label and the probability of each label, as ``predictions.csv``."""
        path = folder / "predictions.csv"
        probabilities = torch.cat(batches)
        column, names = data.names("predict")
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow((column, "label", *(f"p_{label}" for label in data.labels)))
            # With trainer.limit_predict_batches the last ones have none.
            for name, row in zip(names[: len(probabilities)], probabilities.tolist(), strict=True):
                label = data.labels[max(range(len(row)), key=row.__getitem__)]
                table.writerow((name, label, *(f"{value:.6f}" for value in row)))
        return f"{len(probabilities):,} examples, in {path}"

    @torch.inference_mode()
    def predict_examples(self, examples: Sequence[Any], data: LabeledDataModule) -> list[Prediction]:
        """The labels of examples in memory: texts, or series of numbers [T, C].

        Raises ValueError for one that is empty, or is not as the model's data.
        """
        predictions = []
        for batch in data.batches_of(examples):
            moved = LabeledBatch(*(tensor.to(self.device) for tensor in batch))
            for row in self.predict_step(moved, 0).tolist():
                label = data.labels[max(range(len(row)), key=row.__getitem__)]
                predictions.append(Prediction(label, dict(zip(data.labels, row, strict=True))))
        return predictions


def _vocabulary(data: Any) -> Vocabulary:
    """Of data whose examples are texts, which alone has one."""
    vocabulary: Vocabulary = data.vocabulary
    return vocabulary
