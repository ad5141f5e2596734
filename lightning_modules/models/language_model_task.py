"""Training a language model: what a step is, what is carried from batch to batch, what is logged."""

import math
from inspect import signature
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection

from lightning_modules.data import TextDataModule
from lightning_modules.models.language_model import LanguageModel, State
from lightning_modules.models.metrics import BitsPerCharacter, Perplexity
from lightning_modules.models.optimizers import (
    DecayPartition,
    build_optimizer,
    learning_rate_factor,
    partition_parameters,
)
from lightning_modules.models.recurrent import options_left_out


class LanguageModelTask(LightningModule):
    """Trains a :class:`LanguageModel` on contiguous batches of text.

    The state (h, c) that ends a batch begins the next one, detached: backpropagation through time is truncated at
    the batch. It is zero at the start of every epoch, and validation and test have one of their own.

    Logs ``train_loss`` (the objective, label smoothing included), and for validation and test ``val_loss`` in nats a
    token (never smoothed), ``val_ppl`` and, for characters, ``val_bpc``; ``test_`` likewise.

    Args:
        vocab_size: number of tokens; ``None`` takes it from the data module when training begins.
        embedding_size: size of a token's embedding.
        hidden_size: size of each LSTM layer.
        num_layers: number of LSTM layers.
        cell: what the layers are made of: ``fused`` (lstm_fused.FusedLSTM) or ``torch`` (nn.LSTM, which runs without
            layer norm, recurrent dropout, zoneout and locked masks).
        tied: the decoder shares the embedding's weight.
        dropout: rate on the embedding, after each layer and before the decoder.
        variational: dropout masks are locked over time.
        layer_norm: layer norm inside the LSTM.
        recurrent_dropout: rate on the hidden state from step to step.
        zoneout: rate at which h and c keep their previous value, one rate or two.
        forget_bias: initial bias of the forget gates; ``None`` leaves the layer's own.
        label_smoothing: share of the training target that is spread over all tokens.
        optimizer: ``adamw`` or ``sgd``.
        lr: learning rate.
        weight_decay: on weights alone; biases and norms are spared.
        decay_embeddings: weight decay acts on embeddings too.
        momentum: of SGD.
        lr_schedule: ``constant``, or ``cosine`` down to 0 at the end of the run.
        warmup_steps: steps over which the learning rate rises to ``lr``.
    """

    def __init__(
        self,
        vocab_size: int | None = None,
        embedding_size: int = 128,
        hidden_size: int = 256,
        num_layers: int = 1,
        cell: Literal["fused", "torch"] = "fused",
        tied: bool = False,
        dropout: float = 0.2,
        variational: bool = False,
        layer_norm: bool = True,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        forget_bias: float | None = 1.0,
        label_smoothing: float = 0.0,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        decay_embeddings: bool = False,
        momentum: float = 0.0,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        for name in ("lr", "weight_decay", "momentum", "warmup_steps"):
            if not self.hparams[name] >= 0:
                raise ValueError(f"{name} must be at least 0, got {self.hparams[name]}")
        self.net = None if vocab_size is None else self._new_net()
        self.train_state: State | None = None
        self.eval_state: State | None = None

    # The model ------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Lightning calls this before it loads any weights."""
        self.build(self.trainer.datamodule)

    def build(self, data: TextDataModule) -> None:
        """Builds the net for the data's vocabulary, unless it is built."""
        size = len(data.vocabulary)
        if self.net is None:
            self.hparams.vocab_size = size
            self.net = self._new_net()
        elif self.hparams.vocab_size != size:
            raise ValueError(f"vocab_size must be that of the data's vocabulary, {size}, got {self.hparams.vocab_size}")

    def _new_net(self) -> LanguageModel:
        return LanguageModel(**{name: self.hparams[name] for name in signature(LanguageModel).parameters})

    def setup(self, stage: str) -> None:
        # A NaN stays a NaN: by default torchmetrics leaves it out of the mean, and with "disable" forgets the weights.
        metrics = {"loss": MeanMetric(math.nan), "ppl": Perplexity(math.nan)}
        if self.trainer.datamodule.vocabulary.level == "char":
            metrics["bpc"] = BitsPerCharacter(math.nan)
        self.val_metrics = MetricCollection(metrics, prefix="val_")
        self.test_metrics = self.val_metrics.clone(prefix="test_")

    def left_out(self) -> list[str]:
        """The options that are on but that the chosen cell runs without."""
        return options_left_out(self.hparams.cell, self.hparams)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return self.net(tokens, state)

    # The steps ------------------------------------------------------------------------------------------------------

    def model_step(
        self, batch: tuple[Tensor, Tensor], state: State | None, label_smoothing: float = 0.0
    ) -> tuple[Tensor, State]:
        """The mean loss of a batch (tokens and next tokens, int64 [T, B]) in nats, and the state after it, detached."""
        tokens, targets = batch
        logits, (h, c) = self(tokens, state)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=label_smoothing)
        return loss, (h.detach(), c.detach())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.train_state = None
        loss, self.train_state = self.model_step(batch, self.train_state, self.hparams.label_smoothing)
        tokens = batch[0].numel()
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=tokens, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluation_step(batch, batch_idx, self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluation_step(batch, batch_idx, self.test_metrics)

    def _evaluation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, metrics: MetricCollection) -> None:
        if batch_idx == 0:
            self.eval_state = None
        loss, self.eval_state = self.model_step(batch, self.eval_state)
        metrics.update(loss, weight=batch[0].numel())
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=batch[0].numel())

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """The next tokens, int64 [T, B], and their log-probabilities in nats, [T, B]."""
        if batch_idx == 0:
            self.eval_state = None
        tokens, targets = batch
        logits, self.eval_state = self(tokens, self.eval_state)
        return targets, logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)

    # The optimizer --------------------------------------------------------------------------------------------------

    def decay_partition(self) -> DecayPartition:
        """Which parameters weight decay acts on, and which it spares."""
        return partition_parameters(self, self.hparams.decay_embeddings)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(
            self.decay_partition(),
            self.hparams.optimizer,
            self.hparams.lr,
            self.hparams.weight_decay,
            self.hparams.momentum,
        )
        # Asked here and not in a step, the trainer would open the train loader before a resumed run has told the
        # loader where to go on.
        factor = learning_rate_factor(
            self.hparams.lr_schedule, self.hparams.warmup_steps, lambda: self.trainer.estimated_stepping_batches
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # The checkpoint -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the carried state of every rank, so that a run resumed in the middle of an epoch goes on exactly."""
        if self.train_state is not None:
            state = self.all_gather(torch.stack(self.train_state))  # [2, layers, B, H], before it [ranks] if several
            checkpoint["train_state"] = state.view(-1, *self.train_state[0].shape).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("train_state")
        rank, ranks = (0, 1) if self._trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        if state is None or len(state) != 2 * ranks:  # with another number of ranks the columns are others
            self.train_state = None
        else:
            self.train_state = tuple(state.chunk(ranks)[rank].to(self.device))
