"""Training a language model: what a step is, what is carried from batch to batch, what is logged."""

import csv
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map
from torchmetrics import Metric, MetricCollection

from lightning_modules.callbacks.averaging import NonMonotonicAveraging
from lightning_modules.callbacks.text_sample import TextSample
from lightning_modules.data.contiguous import ContiguousLoader
from lightning_modules.data.text import TextDataModule
from lightning_modules.data.vocabulary import UNKNOWN
from lightning_modules.generation import generate
from lightning_modules.models.language_model import LanguageModel
from lightning_modules.models.metrics import BitsPerCharacter, Mean, Perplexity
from lightning_modules.models.recurrent import detach
from lightning_modules.tasks.base import RecurrentTask, to_full_precision
from lightning_modules.tasks.exported import Exported
from lightning_modules.trainer_parts import datamodule_of

# Of ``lstm-fused export``: goes on from a prompt with the likeliest token, the state carried along.
EXAMPLE = """\
text = sys.argv[1] if len(sys.argv) > 1 else "the "
pieces = text.split() if about["level"] == "word" else list(text)
tokens = [[about["tokens"].index(piece) if piece in about["tokens"] else 0] for piece in pieces]  # [T, B]
state = {name: np.zeros(shape, np.float32) for name, shape in about["state"].items()}
for _ in range(40):
    logits, *parts = model(tokens=np.array(tokens), **state)
    state = dict(zip(state, parts))
    tokens = logits[-1:].argmax(-1)
    pieces.append(about["tokens"][tokens[0, 0]])
print((" " if about["level"] == "word" else "").join(pieces))
"""


class LanguageModelStep(nn.Module):
    """The net as it is exported, with the state in tensors of their own."""

    def __init__(self, net: LanguageModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        logits, state = self.net(tokens, h if c is None else (h, c))
        return (logits, *state) if c is not None else (logits, state)


class TokenPrediction(NamedTuple):
    """A token of a text, and its log-probability in nats after all that stands before it."""

    token: str
    log_probability: float


class LanguageModelTask(RecurrentTask[TextDataModule]):
    """Trains a :class:`LanguageModel` on contiguous batches of text.

    The layer's state that ends a batch begins the next one, detached: backpropagation through time is truncated at
    the batch. It is zero at the start of every epoch, and validation and test have one of their own.

    The losses are in nats a token; the metrics are ``ppl`` and, for characters, ``bpc``. Where the model never saw
    ``<unk>`` in training and is judged on a text that has it, there are ``loss_known``, ``ppl_known`` and ``bpc_known``
    too, means over the known tokens alone (each predicted after all that stands before it). ``dropout`` acts on the
    embedding, after each layer and before the decoder. Where the data draws the lengths of its batches, the learning
    rate of a step is that of the schedule times its length over ``data.sequence_length``.

    Args:
        vocab_size: number of tokens; taken from the data if not given.
        embedding_size: size of a token's embedding.
        tied: the decoder shares the embedding's weight.
        label_smoothing: share of the training target that is spread over all tokens.
        input_dropout: rate on the embedding's output; ``dropout`` if not given.
        embedding_dropout: rate at which words lose their embedding, in all of a batch at once.
        activation_penalty: coefficient of the mean square of the recurrent layers' output after dropout in the training
            loss (AR; Merity et al. 2017).
        change_penalty: coefficient of the mean square of that output's change from step to step, before dropout (TAR;
            the same paper).
        average_after: averages the weights, as NT-ASGD does (Merity et al. 2018), from the first validation on whose
            loss is worse than the best of those more than so many before it; with ``optimizer: SGD``.
        shared: those of :class:`RecurrentTask`.
    """

    loss_unit = "nats a token"

    def __init__(
        self,
        vocab_size: int | None = None,
        embedding_size: int = 128,
        tied: bool = False,
        label_smoothing: float = 0.0,
        input_dropout: float | None = None,
        embedding_dropout: float = 0.0,
        activation_penalty: float = 0.0,
        change_penalty: float = 0.0,
        average_after: int | None = None,
        **shared: Any,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        for name, value in (("activation_penalty", activation_penalty), ("change_penalty", change_penalty)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        if average_after is not None and average_after < 1:
            raise ValueError(f"average_after must be at least 1, got {average_after}")
        super().__init__(**shared)
        self.train_state: Any = None
        self.eval_state: Any = None
        self._lengths: list[int] = []  # of the batches since the optimizer's last step

    # The model ------------------------------------------------------------------------------------------------------

    @classmethod
    def size_names(cls) -> tuple[str, ...]:
        return ("vocab_size",)

    def data_sizes(self, data: TextDataModule) -> dict[str, Any]:
        return {"vocab_size": len(data.vocabulary)}

    def new_net(self) -> LanguageModel:
        return LanguageModel(
            self.hparams.vocab_size,
            self.new_layer,
            self.hparams.embedding_size,
            tied=self.hparams.tied,
            dropout=self.hparams.dropout,
            input_dropout=self.hparams.input_dropout,
            embedding_dropout=self.hparams.embedding_dropout,
            variational=self.hparams.variational,
        )

    def new_metrics(self, data: TextDataModule) -> dict[str, Metric]:
        metrics: dict[str, Metric] = {"ppl": Perplexity()}
        if data.vocabulary.level == "char":
            metrics["bpc"] = BitsPerCharacter()
        if data.judges_untrained_unknown():
            metrics |= {"loss_known": Mean()}
            metrics |= {f"{name}_known": metric.clone() for name, metric in metrics.items() if name in ("ppl", "bpc")}
        return metrics

    def own_callbacks(self) -> list[Callback]:
        after = self.hparams.average_after
        return [TextSample()] if after is None else [NonMonotonicAveraging(after), TextSample()]

    def step_names(self, batch: tuple[Tensor, Tensor], data: TextDataModule) -> list[list[str]]:
        return [[data.vocabulary.tokens[token] for token in column] for column in batch[0].t().tolist()]

    def text_batch(self, text: str, data: TextDataModule) -> tuple[Tensor, Tensor]:
        tokens = data.vocabulary.encode(text)
        if len(tokens) < 2:
            raise ValueError(f"text must have at least 2 tokens, got {text!r}")
        return tokens[:-1, None], tokens[1:, None]

    def to_export(self, data: TextDataModule) -> Exported:
        tokens = next(iter(data.val_dataloader()))[0]
        with torch.no_grad():
            _, state = self.net(tokens, None)
        parts = dict(zip(("h", "c"), state if isinstance(state, tuple) else (state,), strict=False))
        if not all(isinstance(part, Tensor) and part.dim() == 3 for part in parts.values()):
            raise ValueError(
                f"recurrent must be a layer whose state is h, or h and c, to be exported, got {self.recurrent_class}"
            )
        return Exported(
            LanguageModelStep(self.net),
            {
                "tokens": (tokens, ("T", "B")),
                **{name: (torch.zeros_like(part), (None, "B", None)) for name, part in parts.items()},
            },
            ["logits", *(f"{name}_n" for name in parts)],
            {
                "level": data.vocabulary.level,
                "tokens": data.vocabulary.tokens,
                "state": {name: [len(x), 1, x.shape[2]] for name, x in parts.items()},
            },
            EXAMPLE,
        )

    # The steps ------------------------------------------------------------------------------------------------------

    def batch_loss(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, metrics: MetricCollection | None = None
    ) -> tuple[Tensor, int]:
        """Of a batch (tokens and next tokens, int64 [T, B]), in nats a token."""
        tokens, targets = batch
        if metrics is None:
            return self._training_loss(tokens, targets, batch_idx), targets.numel()
        logits, state = self(tokens, self.eval_state if batch_idx > 0 else None)
        self.eval_state = detach(state)
        loss, known = token_loss(logits, targets), int((targets != 0).sum())
        for name, metric in metrics.items(keep_base=True):
            if name in ("ppl", "bpc"):
                metric.update(loss, weight=targets.numel())
            elif name.endswith("_known") and known:
                metric.update(token_loss(logits, targets, ignore_index=0), weight=known)
        return loss, targets.numel()

    def _training_loss(self, tokens: Tensor, targets: Tensor, batch_idx: int) -> Tensor:
        state = self.train_state if batch_idx > 0 else None
        smoothing, hparams = self.hparams.label_smoothing, self.hparams
        if not hparams.activation_penalty and not hparams.change_penalty:
            logits, state = self(tokens, state)
            self.train_state = detach(state)
            return token_loss(logits, targets, label_smoothing=smoothing)
        output, dropped, state = self.net.hidden(tokens, state)
        self.train_state = detach(state)
        loss: Tensor = token_loss(self.net.decoder(dropped), targets, label_smoothing=smoothing)
        loss = loss + hparams.activation_penalty * dropped.square().mean()
        if len(output) > 1:
            loss = loss + hparams.change_penalty * (output[1:] - output[:-1]).square().mean()
        return loss

    def model_step(self, batch: tuple[Tensor, Tensor], state: Any, label_smoothing: float = 0.0) -> tuple[Tensor, Any]:
        """The mean loss of a batch (tokens and next tokens, int64 [T, B]) in nats, and the state after it, detached."""
        tokens, targets = batch
        logits, state = self(tokens, state)
        return token_loss(logits, targets, label_smoothing=label_smoothing), detach(state)

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._lengths.append(len(batch[0]))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """A mean over few tokens is as large as one over many: a short batch would count for more than its share."""
        lengths, self._lengths = self._lengths, []
        options = datamodule_of(self.trainer).hparams
        if not options.get("random_length"):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        scale = sum(lengths) / len(lengths) / options.sequence_length
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * scale
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    # Predictions and samples ----------------------------------------------------------------------------------------

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """The next tokens, int64 [T, B], and their log-probabilities in nats, [T, B]."""
        if batch_idx == 0:
            self.eval_state = None
        tokens, targets = batch
        logits, self.eval_state = self(tokens, self.eval_state)
        return targets, logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)

    def write_predictions(self, batches: list[tuple[Tensor, Tensor]], data: TextDataModule, folder: Path) -> str:
        """Every token with its log-probability (nats), as ``predictions.csv``."""
        path = folder / "predictions.csv"
        tokens, total, count, known_total, known = data.vocabulary.tokens, 0.0, 0, 0.0, 0
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("token", "log_probability"))
            for targets, log_probabilities in batches:
                for token, value in zip(targets.flatten().tolist(), log_probabilities.flatten().tolist(), strict=True):
                    table.writerow((tokens[token], f"{value:.6f}"))
                    total, count = total + value, count + 1
                    if token != 0:
                        known_total, known = known_total + value, known + 1
        figures = f"perplexity {math.exp(-total / count):.3f}"
        if known and data.judges_untrained_unknown():
            figures += f" (of the {known:,} known tokens {math.exp(-known_total / known):.3f})"
        return f"{count:,} tokens, {figures}, in {path}"

    @torch.inference_mode()
    def predict_examples(self, examples: Iterable[str], data: TextDataModule) -> list[list[TokenPrediction]]:
        """The log-probability of every token of each text but its first, which nothing stands before.

        A token that the model does not know is ``<unk>``. Raises ValueError for a text of fewer than two tokens.
        """
        predictions = []
        for number, text in enumerate([examples] if isinstance(examples, str) else examples):
            ids, names = data.vocabulary.encode(text), data.vocabulary.tokens
            if len(ids) < 2:
                raise ValueError(f"a text to predict must have at least 2 tokens, and text {number} has {len(ids)}")
            found: list[TokenPrediction] = []
            for batch_idx, batch in enumerate(ContiguousLoader(ids, 1, data.hparams.sequence_length)):
                moved: Any = tuple(tensor.to(self.device) for tensor in batch)
                targets, values = (tensor.flatten().tolist() for tensor in self.predict_step(moved, batch_idx))
                found += [TokenPrediction(names[k], value) for k, value in zip(targets, values, strict=True)]
            predictions.append(found)
        return predictions

    @classmethod
    def add_sample_arguments(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--prompt", default="", help="the text to go on from")
        parser.add_argument("--length", type=int, default=500, help="how many tokens to draw")
        parser.add_argument(
            "--temperature", type=float, default=0.8, help="below 1 is more careful, 0 takes the likeliest"
        )
        parser.add_argument("--top-k", "--top_k", type=int, help="draw from the k likeliest tokens; all if not given")
        parser.add_argument("--top-p", "--top_p", type=float, default=1.0, help="draw from the likeliest that sum to p")
        parser.add_argument("--seed", type=int, help="the same seed gives the same text")

    def sample(self, data: TextDataModule, options: Namespace, folder: Path) -> str:
        if unknown := data.vocabulary.unknown_tokens(options.prompt):
            names = ", ".join(map(repr, unknown))
            print(f"The model does not know {names} of the prompt and takes each for {UNKNOWN}.", file=sys.stderr)
        return generate(
            self.net,
            data.vocabulary,
            prompt=options.prompt,
            length=options.length,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
        )

    def on_train_start(self) -> None:
        """The state of a checkpoint may be of another precision than this run."""
        super().on_train_start()
        if self.train_state is not None:
            dtype = next(self.net.parameters()).dtype
            self.train_state = tree_map(lambda x: x.to(dtype), self.train_state)

    # The checkpoint -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the carried state of every rank, so that a run resumed in the middle of an epoch goes on exactly."""
        super().on_save_checkpoint(checkpoint)
        if self.train_state is not None:
            # Each tensor [layers, B, H]; of all ranks [ranks, layers, B, H].
            all_gather: Callable[[Tensor], Any] = self.all_gather
            gathered = tree_map(lambda x: all_gather(x).view(-1, *x.shape).cpu(), self.train_state)
            checkpoint["train_state"] = {"ranks": self.trainer.world_size, "state": gathered}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("train_state")
        self.train_state = None
        rank, ranks = (0, 1) if self._trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        if isinstance(saved, Tensor):  # of a former version: h and c of all ranks, one after another
            h_and_c = saved.view(-1, 2, *saved.shape[1:])
            saved = {"ranks": len(h_and_c), "state": tuple(h_and_c.unbind(1))}
        if saved is not None and saved["ranks"] == ranks:
            self.train_state = tree_map(lambda x: x[rank].to(self.device), saved["state"])
        elif saved is not None and all(x.dim() == 4 for x in tree_leaves(saved["state"])):
            # The columns of a rank follow those of the rank before, on however many ranks.
            self.train_state = tree_map(
                lambda x: x.transpose(0, 1).flatten(1, 2).tensor_split(ranks, dim=1)[rank].to(self.device),
                saved["state"],
            )
        # A former version's loader counted its batches alone; how large they were stands in the data's options.
        options = checkpoint.get("datamodule_hyper_parameters") or {}
        loops = (checkpoint.get("loops") or {}).get("fit_loop", {}).get("state_dict", {})
        for state in loops.get("combined_loader", []):
            if "position" not in state:
                state |= {name: options[name] for name in ("batch_size", "sequence_length") if name in options}


def token_loss(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The mean loss of logits [T, B, V] for the next tokens, int64 [T, B], in nats."""
    return F.cross_entropy(to_full_precision(logits).flatten(0, 1), targets.flatten(), **options)
