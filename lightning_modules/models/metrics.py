"""What a language model is judged by: functions of the mean loss a token."""

import math

from torch import Tensor
from torchmetrics import MeanMetric


class Perplexity(MeanMetric):
    """``exp`` of the mean negative log-likelihood a token in nats; update with a batch's mean and its token count."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class BitsPerCharacter(MeanMetric):
    """The mean negative log-likelihood in bits, where a token is a character; updated like :class:`Perplexity`."""

    def compute(self) -> Tensor:
        return super().compute() / math.log(2)
