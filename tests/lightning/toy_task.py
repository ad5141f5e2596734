"""A task from outside the package: the parity of a sequence of bits. All it needs is here and in its command line."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy

from lightning_modules.data import TaskDataModule
from lightning_modules.models.recurrent import last_outputs, num_directions, output_size, run_recurrent
from lightning_modules.tasks import RecurrentTask


class Bits(NamedTuple):
    input: Tensor  # [T, B, channels]
    lengths: Tensor  # [B]
    parity: Tensor  # [B]


class BitsDataModule(TaskDataModule):
    """Sequences of bits of 1 to ``longest`` steps."""

    def __init__(self, count: int = 48, longest: int = 6, channels: int = 2, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.offset = 0

    def has_test(self) -> bool:
        return True

    def summary(self) -> dict[str, Any]:
        return {"sequences": self.hparams.count}

    def describe(self) -> list[str]:
        return [f"{self.hparams.count} sequences of bits"]

    def examples(self, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, self.hparams.longest + 1, (self.hparams.count,), generator=generator)
        size = self.hparams.channels
        return [torch.randint(2, (int(length), size), generator=generator).float() for length in lengths]

    def collate(self, examples: list[Tensor], positions: list[int]) -> Bits:
        parity = torch.stack([example.sum() % 2 for example in examples])
        lengths = torch.tensor([len(example) for example in examples])
        return Bits(nn.utils.rnn.pad_sequence(examples, padding_value=7.0), lengths, parity)

    def loader(self, seed: int, shuffle: bool = False) -> Any:
        examples = self.examples(seed)
        lengths = [len(example) for example in examples]
        return self.example_loader(
            examples, self.collate, batch_size=self.hparams.batch_size, lengths=lengths, shuffle=shuffle
        )

    def setup(self, stage: str) -> None:
        pass

    def train_dataloader(self) -> Any:
        return self.loader(1, shuffle=True)

    def val_dataloader(self) -> Any:
        return self.loader(2)

    def test_dataloader(self) -> Any:
        return self.loader(3)

    def predict_dataloader(self) -> Any:
        return self.loader(4)


class ParityNet(nn.Module):
    def __init__(self, channels: int, new_layer: Any) -> None:
        super().__init__()
        self.layer = new_layer(channels)
        self.out = nn.Linear(output_size(self.layer, channels), 1)

    def forward(self, bits: Bits) -> Tensor:
        output = run_recurrent(self.layer, bits.input, bits.lengths)
        return self.out(last_outputs(output, bits.lengths, num_directions(self.layer)))[:, 0]


class ParityTask(RecurrentTask):
    """Whether the bits are an odd number.

    Args:
        channels: bits a step; taken from the data if not given.
        shared: those of :class:`RecurrentTask`.
    """

    loss_unit = "nats a sequence"

    def __init__(self, channels: int | None = None, **shared: Any) -> None:
        super().__init__(**shared)

    @classmethod
    def size_names(cls) -> tuple[str, ...]:
        return ("channels",)

    def data_sizes(self, data: BitsDataModule) -> dict[str, Any]:
        return {"channels": data.hparams.channels}

    def new_net(self) -> ParityNet:
        return ParityNet(self.hparams.channels, self.new_layer)

    def new_metrics(self, data: BitsDataModule) -> dict[str, Metric]:
        return {"accuracy": BinaryAccuracy()}

    def batch_loss(self, batch: Bits, batch_idx: int, metrics: MetricCollection | None = None) -> tuple[Tensor, int]:
        logits = self(batch)
        if metrics is not None:
            metrics["accuracy"].update(logits, batch.parity.int())
        return F.binary_cross_entropy_with_logits(logits, batch.parity), len(logits)

    def predict_step(self, batch: Bits, batch_idx: int) -> Tensor:
        return self(batch).sigmoid()

    def write_predictions(self, batches: list[Tensor], data: BitsDataModule, folder: Path) -> str:
        path = folder / "parity.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([[f"{p:.6f}"] for p in torch.cat(batches).tolist()])
        return f"{sum(map(len, batches))} sequences in {path}"


class OwnLayer(nn.Module):
    """A user's own layer: it has an output and a state, and takes no lengths."""

    def __init__(self, input_size: int, hidden_size: int, slow: float = 0.5) -> None:
        super().__init__()
        self.inner, self.slow = nn.Linear(input_size, hidden_size), slow

    def forward(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = input.new_zeros(input.shape[1], self.inner.out_features) if state is None else state[0]
        outputs = []
        for x in input:
            h = self.slow * h + torch.tanh(self.inner(x))
            outputs.append(h)
        return torch.stack(outputs), h[None]
