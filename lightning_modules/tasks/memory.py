"""Training a recurrent layer to remember: targets, metrics and predictions."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.callbacks.memory_picture import MemoryPicture
from lightning_modules.data.memory import Example, MemoryBatch, MemoryDataModule
from lightning_modules.models.memory import MemoryModel
from lightning_modules.tasks.base import RecurrentTask
from lightning_modules.tasks.exported import Exported, WithLengths

# Of ``lstm-fused export``: what is remembered of a sequence of numbers.
EXAMPLE = """\
steps = np.array(json.loads(sys.argv[1]) if len(sys.argv) > 1 else about["example"], np.float32)  # [T, numbers]
(outputs,) = model(inputs=steps[:, None], lengths=np.array([len(steps)]))
if about["target"] == "number":
    print(f"{outputs[0, 0]:.4f}")
elif about["target"] == "class":
    print(about["classes"][outputs[0].argmax()])
else:  # after every step; the last ones recall
    print(*(about["classes"][k] for k in outputs[-about["recalled"] :, 0].argmax(-1)))
"""


class Outcome(NamedTuple):
    """What a model says of the sequences of a batch, and what it was to say."""

    lengths: Tensor  # int64 [B]
    outputs: Tensor  # probabilities [B, O], numbers [B], or probabilities [recalled, B, O]
    targets: Tensor | None  # int64 [B], float32 [B], or int64 [recalled, B]; None where they are not known


class MemoryTask(RecurrentTask[MemoryDataModule]):
    """Trains a :class:`MemoryModel` on data whose target depends on inputs long before it.

    The data defines the target (see :class:`~lightning_modules.data.memory.MemoryDataModule`): a class after the
    last step (cross-entropy, ``accuracy``), a number after the last step (the squared error, ``mse``), or a class after
    every step (the mean cross-entropy of all steps; ``accuracy`` of those that recall).

    ``dropout`` acts on the recurrent layer's output and is 0 by default: what is generated anew is not overfitted.

    Args:
        input_size: numbers a step; taken from the data if not given, as the next three.
        output_size: numbers in a target.
        target: ``class``, ``number`` or ``classes``.
        recalled: of ``classes``, the steps at a sequence's end whose accuracy counts.
        dropout: rate of the dropout above.
        shared: those of :class:`RecurrentTask`.
    """

    def __init__(
        self,
        input_size: int | None = None,
        output_size: int | None = None,
        target: str | None = None,
        recalled: int | None = None,
        dropout: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(dropout=dropout, **shared)

    # The model ------------------------------------------------------------------------------------------------------

    @classmethod
    def size_names(cls) -> tuple[str, ...]:
        return ("input_size", "output_size", "target", "recalled")

    def data_sizes(self, data: MemoryDataModule) -> dict[str, Any]:
        return {name: getattr(data, name) for name in self.size_names()}

    def new_net(self) -> MemoryModel:
        return MemoryModel(
            self.hparams.input_size,
            self.hparams.output_size,
            self.new_layer,
            every_step=self.hparams.target == "classes",
            dropout=self.hparams.dropout,
        )

    @property
    def loss_unit(self) -> str:
        return {"number": "squared error", "classes": "nats a step"}.get(self.hparams.target, "nats a sequence")

    def new_metrics(self, data: MemoryDataModule) -> dict[str, Metric]:
        if data.target == "number":
            return {"mse": MeanSquaredError()}
        return {"accuracy": MulticlassAccuracy(data.output_size, average="micro")}

    def own_callbacks(self) -> list[Callback]:
        return [MemoryPicture()]

    def to_export(self, data: MemoryDataModule) -> Exported:
        batch = next(iter(data.val_dataloader()))
        number = self.hparams.target == "number"
        about = {
            "target": self.hparams.target,
            "classes": None if number else [data.class_name(k) for k in range(self.hparams.output_size)],
            "recalled": self.hparams.recalled,
            "example": batch.inputs[: batch.lengths[0], 0].tolist(),
        }
        return Exported(
            WithLengths(self.net, "none" if number else "softmax"),
            {"inputs": (batch.inputs, ("T", "B", None)), "lengths": (batch.lengths, ("B",))},
            ["outputs"],
            about,
            EXAMPLE,
        )

    # The steps ------------------------------------------------------------------------------------------------------

    def batch_loss(
        self, batch: MemoryBatch, batch_idx: int, metrics: MetricCollection | None = None
    ) -> tuple[Tensor, int | Tensor]:
        outputs = self(batch.inputs, batch.lengths)
        targets: Any = batch.targets  # known wherever there is a loss
        if self.hparams.target == "number":
            if metrics is not None:
                metrics["mse"].update(outputs[:, 0], targets)
            return F.mse_loss(outputs[:, 0], targets), len(outputs)
        if metrics is not None:
            scores, recalled = self._recalled(outputs, targets, batch.lengths)
            metrics["accuracy"].update(scores.flatten(0, -2), recalled.flatten())
        if self.hparams.target == "class":
            return F.cross_entropy(outputs, targets), len(outputs)
        real = torch.arange(len(outputs), device=outputs.device)[:, None] < batch.lengths
        return F.cross_entropy(outputs[real], targets[real]), batch.lengths.sum()

    def _recalled(self, outputs: Tensor, targets: Tensor | None, lengths: Tensor) -> tuple[Tensor, Any]:
        """Of classes after every step those that recall, [recalled, B, O] and [recalled, B]; others as they are."""
        if self.hparams.target != "classes":
            return outputs, targets
        steps = lengths + torch.arange(-self.hparams.recalled, 0, device=lengths.device)[:, None]
        columns = torch.arange(len(lengths), device=lengths.device)
        return outputs[steps, columns], None if targets is None else targets[steps, columns]

    # Predictions ----------------------------------------------------------------------------------------------------

    def predict_step(self, batch: MemoryBatch, batch_idx: int = 0) -> Outcome:
        outputs, targets = self._recalled(self(batch.inputs, batch.lengths), batch.targets, batch.lengths)
        outputs = outputs[:, 0] if self.hparams.target == "number" else outputs.softmax(-1)
        return Outcome(batch.lengths, outputs, targets)

    def write_predictions(self, batches: list[Outcome], data: MemoryDataModule, folder: Path) -> str:
        """A row a sequence, as ``predictions.csv``: its length, the target where it is known, and the prediction.

        The prediction of a class has its probability beside it; where several are recalled, that of all of them.
        """
        path = folder / "predictions.csv"
        rows = self.rows(batches, data)
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(row | {k: f"{v:.6f}" for k, v in row.items() if isinstance(v, float)} for row in rows)
        return f"{len(rows):,} sequences in {path}"

    def rows(self, outcomes: list[Outcome], data: MemoryDataModule) -> list[dict[str, Any]]:
        """A row of ``predictions.csv`` for every sequence, as plain values."""
        rows: list[dict[str, Any]] = []
        for lengths, outputs, targets in outcomes:
            for column, length in enumerate(lengths.tolist()):
                row = {"sequence": len(rows), "length": length, "target": ""}
                if self.hparams.target == "number":
                    row |= {"target": "" if targets is None else float(targets[column])}
                    row |= {"prediction": float(outputs[column])}
                else:
                    probabilities, classes = outputs[..., column, :].max(-1)
                    row |= {"target": "" if targets is None else _names(targets[..., column], data)}
                    row |= {"prediction": _names(classes, data), "probability": float(probabilities.prod())}
                rows.append(row)
        return rows

    @torch.inference_mode()
    def predict_examples(self, examples: Any, data: MemoryDataModule) -> list[dict[str, Any]]:
        """A row of ``predictions.csv`` for each of a list of sequences, in the form that ``data.to_inputs`` takes."""
        batch = data.collate([Example(data.to_inputs(example), None) for example in examples])
        batch = self.transfer_batch_to_device(batch, self.device, 0)
        return self.rows([self.predict_step(batch)], data)


def _names(classes: Tensor, data: MemoryDataModule) -> str:
    return "".join(map(data.class_name, classes.flatten().tolist()))
