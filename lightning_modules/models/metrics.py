"""Metrics that keep their precision, and what a language model is judged by: functions of the mean loss a token."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection


class PreciseMetricCollection(MetricCollection):
    """Metrics whose sums stay in the dtype that they were made in when a module they belong to becomes half precision.

    A sum in bfloat16 stands still once it is 256 times as large as what is added.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        def keep_precision(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            return tensor.to(applied.device) if applied.dtype.itemsize < tensor.dtype.itemsize else applied

        move: Callable[..., Any] = super()._apply
        return move(keep_precision, *args, **kwargs)


class Mean(MeanMetric):
    """A mean weighted by ``update``'s second argument. A NaN stays a NaN, and values keep the sums' precision.

    (By default torchmetrics leaves a NaN out of the mean, and with "disable" forgets the weights; and it rounds values
    to the default dtype, which is half precision inside a step of such a module.)
    """

    def __init__(self, nan_strategy: float = math.nan, **options: Any) -> None:
        super().__init__(nan_strategy, **options)

    @property
    def dtype(self) -> torch.dtype:
        return self.mean_value.dtype


class EpochMean(Metric):
    """The mean over an epoch that a run may be resumed inside of, in float64, of means that count all processes' items.

    (Lightning's own mean is of the batches after a resume, and of several processes' a step's is that of their means.)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64))

    def update(self, mean: Tensor, count: int | Tensor) -> None:
        self.total += mean * count
        self.count += count

    def compute(self) -> Tensor:
        return (self.total / self.count).float()

    def add(self, mean: Tensor, count: int | Tensor) -> None:
        """Updates, and is ready to be logged: Lightning takes the value of the step from where ``forward`` leaves it,
        which would compute it once more."""
        self.update(mean, count)
        self._forward_cache: Any = mean.float()

    def sums(self) -> tuple[float, float]:
        """What the mean so far is of: the sum of all items, and their number."""
        return float(self.total), float(self.count)

    def carry_on(self, sums: tuple[float, float] | None) -> None:
        """Begins with the sums of an epoch's earlier steps, or with none."""
        self.reset()
        if sums is not None:
            self.total.fill_(sums[0])
            self.count.fill_(sums[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Moves to another device, but stays in its precision."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), *args, **kwargs)


class Perplexity(Mean):
    """``exp`` of the mean negative log-likelihood a token in nats; update with a batch's mean and its token count."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerCharacter(Mean):
    """The mean negative log-likelihood in bits, where a token is a character; updated like :class:`Perplexity`."""

    def compute(self) -> Tensor:
        return super().compute() / math.log(2)
