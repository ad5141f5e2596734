"""The regularizers as functions, to see what each of them does.

Training uses what torch, Lightning and the fused kernel have; these are the same things small enough to read, print and
step through, each with its equation. They are held to torch's, and to finite differences, by the tests.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

# Dropout --------------------------------------------------------------------------------------------------------------


class Dropped(NamedTuple):
    """What :func:`dropout` gives."""

    output: Tensor
    mask: Tensor | None  # bool, True where a unit was kept; None where nothing was dropped


def dropout(input: Tensor, rate: float, training: bool = True, seed: int | None = None) -> Dropped:
    """Inverted dropout: ``output = input * mask / (1 - rate)``, with ``mask ~ Bernoulli(1 - rate)``.

    The division keeps the mean, so that nothing has to be scaled when the network is used (Srivastava et al. 2014,
    section 10).

    Args:
        input: of any shape.
        rate: share of the units that become zero, in [0, 1): a keep probability of 0.8 is a rate of 0.2.
        training: False gives the input itself, as a rate of 0 does.
        seed: the same seed gives the same mask; ``None`` draws from torch's generator.

    Returns:
        The output, and the mask to be looked at and to be given to :func:`dropout_backward`.

    Raises:
        ValueError: a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    if not training or rate == 0:
        return Dropped(input, None)
    generator = None if seed is None else torch.Generator(input.device).manual_seed(seed)
    mask = torch.rand(input.shape, generator=generator, device=input.device) >= rate
    return Dropped(input * mask / (1 - rate), mask)


def dropout_backward(d_output: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """The gradient of the input: ``d_input = d_output * mask / (1 - rate)``; it passes only where the mask does."""
    return d_output if mask is None else d_output * mask / (1 - rate)


# Layer normalization --------------------------------------------------------------------------------------------------


class Normalized(NamedTuple):
    """What :func:`layer_norm` gives."""

    output: Tensor
    normalized: Tensor  # x_hat: the input with mean 0 and variance 1 over its last dimension
    rstd: Tensor  # 1 / sqrt(variance + eps), [..., 1]


def layer_norm(input: Tensor, gain: Tensor, bias: Tensor, eps: float = 1e-5) -> Normalized:
    """Layer normalization: ``output = gain * x_hat + bias``, ``x_hat = (x - mean) / sqrt(variance + eps)``.

    Mean and variance (the biased one) are those of each sample's own features, never of the batch (Ba et al. 2016,
    equation 3).

    Args:
        input: x, [..., H].
        gain: [H].
        bias: [H].
        eps: above 0.
    """
    mean = input.mean(-1, keepdim=True)
    rstd = (input.var(-1, correction=0, keepdim=True) + eps).rsqrt()
    normalized = (input - mean) * rstd
    return Normalized(normalized * gain + bias, normalized, rstd)


def layer_norm_backward(
    d_output: Tensor, normalized: Tensor, rstd: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the input, the gain and the bias.

    With ``d = d_output * gain``, the mean over the features written ``<.>``::

        d_input = rstd * (d - <d> - x_hat * <d * x_hat>)
        d_gain  = sum of d_output * x_hat over the samples
        d_bias  = sum of d_output over the samples

    The two means are what the input moves in its own statistics.

    Args:
        d_output: [..., H].
        normalized, rstd: of :func:`layer_norm`.
        gain: [H].
    """
    d = d_output * gain
    d_input = rstd * (d - d.mean(-1, keepdim=True) - normalized * (d * normalized).mean(-1, keepdim=True))
    d_gain = (d_output * normalized).flatten(0, -2).sum(0)
    return d_input, d_gain, d_output.flatten(0, -2).sum(0)


# The L2 penalty -------------------------------------------------------------------------------------------------------


def l2_penalty(weights: Iterable[Tensor], coefficient: float) -> Tensor:
    """``coefficient / 2 * sum(w^2)``, to be added to the training loss.

    Its gradient is ``coefficient * w`` (:func:`l2_gradient`). With plain SGD that is weight decay; with an optimizer
    that scales gradients, such as Adam, it is not (Loshchilov & Hutter 2019). Biases and norms are usually spared:
    :func:`lightning_modules.models.optimizers.partition_parameters` separates them.
    """
    return coefficient / 2 * sum((weight.square().sum() for weight in weights), torch.zeros(()))


def l2_gradient(weight: Tensor, coefficient: float) -> Tensor:
    """The gradient of :func:`l2_penalty` with respect to one weight: ``coefficient * w``."""
    return coefficient * weight


# Early stopping -------------------------------------------------------------------------------------------------------


@dataclass
class EarlyStoppingMonitor:
    """Early stopping without a trainer: :meth:`step` takes each epoch's figure and returns whether to stop.

    An epoch improves where its figure is strictly better than the best so far by more than ``min_delta``; after
    ``patience`` epochs in a row that do not, or at a figure that is not finite, training should stop (Prechelt 1998).
    It decides as Lightning's ``EarlyStopping`` does.

    ::

        monitor = EarlyStoppingMonitor(patience=3)
        for epoch in range(100):
            ...
            monitor.step(val_loss, model.state_dict())
            if monitor.should_stop:
                break
        model.load_state_dict(monitor.best_state)

    Args:
        patience: epochs without improvement that are waited for, at least 1.
        min_delta: by how much a figure must be better, at least 0.
        mode: ``"min"`` where lower is better, ``"max"`` where higher is.
    """

    patience: int = 5
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"

    best: float | None = field(default=None, init=False)
    best_epoch: int | None = field(default=None, init=False)  # counted from 0
    best_state: Any = field(default=None, init=False)  # a copy of the state given with the best figure
    epochs: int = field(default=0, init=False)  # how many steps there were
    waited: int = field(default=0, init=False)  # epochs since the best
    reason: str | None = field(default=None, init=False)  # why to stop

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta must be at least 0, got {self.min_delta}")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")

    @property
    def should_stop(self) -> bool:
        """Whether there is a reason to stop."""
        return self.reason is not None

    def step(self, value: float, state: Any = None) -> bool:
        """Takes in the figure of one epoch, and what there is to be restored later; whether the epoch improved."""
        value, epoch = float(value), self.epochs
        self.epochs += 1
        if not math.isfinite(value):
            self.reason = f"the figure of epoch {epoch} is not finite: {value}"
            return False
        if self._improves(value):
            self.best, self.best_epoch, self.waited = value, epoch, 0
            self.best_state = copy.deepcopy(state)
            return True
        self.waited += 1
        if self.waited >= self.patience:
            self.reason = f"no improvement for {self.waited} epochs since epoch {self.best_epoch}: {self.best:.6g}"
        return False

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return True
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta


# A toy data set -------------------------------------------------------------------------------------------------------


def toy_sequences(sequence_length: int, vocab_size: int, samples: int, seed: int = 0) -> TensorDataset:
    """A next-token task made at once: each token is the one before plus a step of the sequence's own, with some noise.

    A model must find a sequence's step (1 to 3) from its first tokens; one token in ten is drawn at random, so that a
    model without regularization has something to learn by heart.

    Args:
        sequence_length: T, at least 1.
        vocab_size: V, at least 2.
        samples: N, at least 1.
        seed: of the numbers.

    Returns:
        Pairs of int64 [T]: the tokens, and the tokens that follow them.
    """
    for name, value, least in (("sequence_length", sequence_length, 1), ("vocab_size", vocab_size, 2),
                               ("samples", samples, 1)):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    steps = torch.arange(sequence_length + 1)
    tokens = (draw(vocab_size, samples, 1) + (1 + draw(3, samples, 1)) * steps) % vocab_size
    noisy = torch.rand(tokens.shape, generator=generator) < 0.1
    tokens = torch.where(noisy, draw(vocab_size, *tokens.shape), tokens)
    return TensorDataset(tokens[:, :-1], tokens[:, 1:])
