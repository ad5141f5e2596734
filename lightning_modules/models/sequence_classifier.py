"""The classifier of sequences itself: a plain ``nn.Module`` that knows nothing of training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_modules.models.recurrent import last_outputs, new_dropout, num_directions, output_size, run_recurrent

POOLINGS = ("last", "mean", "max", "attention")


class SequenceClassifier(nn.Module):
    """Gives a sequence one of K classes: embedding (or the numbers themselves), recurrent layers, pooling, linear.

    Dropout acts on the embedding's output and on the pooled output (Zaremba et al. 2014); the recurrent layers bring
    their own. The numbers of a series are not dropped. Sequences of different lengths give what each gives alone.

    Args:
        num_classes: K.
        new_layer: makes the recurrent layer for a given input size.
        vocab_size: number of tokens, V; 0 where sequences are series of numbers.
        embedding_size: size of a token's embedding.
        channels: numbers of a step, C; 0 where sequences are of tokens.
        pooling: what becomes of the layer's outputs: ``last`` takes each direction's last, ``mean`` and ``max`` go over
            the real steps, ``attention`` is a mean with learned weights (:class:`AttentionPooling`).
        dropout: rate of the dropout above.
        word_dropout: rate at which training replaces a token by id 0, ``<unk>``.
        variational: the mask on the embedding's output is locked over the time steps (Gal & Ghahramani 2016).

    Raises:
        ValueError: for sizes or rates out of range, or another pooling.
    """

    def __init__(
        self,
        num_classes: int,
        new_layer: Callable[[int], nn.Module],
        *,
        vocab_size: int = 0,
        embedding_size: int = 128,
        channels: int = 0,
        pooling: str = "last",
        dropout: float = 0.2,
        word_dropout: float = 0.0,
        variational: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if min(vocab_size, channels) < 0 or (vocab_size > 0) == (channels > 0):
            raise ValueError(f"one of vocab_size and channels must be above 0, got {vocab_size} and {channels}")
        if embedding_size < 1:
            raise ValueError(f"embedding_size must be at least 1, got {embedding_size}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        for name, rate in {"dropout": dropout, "word_dropout": word_dropout}.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate}")
        if word_dropout and not vocab_size:
            raise ValueError(f"word_dropout must be 0 for series of numbers, which have no words, got {word_dropout}")
        self.embedding = nn.Embedding(vocab_size, embedding_size) if vocab_size else None
        self.pooling, self.word_dropout = pooling, word_dropout
        self.embedding_dropout = new_dropout(dropout, variational)
        self.output_dropout = nn.Dropout(dropout)
        input_size = embedding_size if vocab_size else channels
        self.lstm = new_layer(input_size)
        size = output_size(self.lstm, input_size)
        self.attention = AttentionPooling(size) if pooling == "attention" else None
        self.decoder = nn.Linear(size, num_classes)
        if self.embedding is not None:
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """
        Args:
            inputs: tokens, int64 [T, B], or numbers [T, B, C]; what lies past a sequence's end does not matter.
            lengths: int64 [B], each at least 1.

        Returns:
            The logits of the classes, [B, K].
        """
        if self.embedding is not None:
            if self.training and self.word_dropout:
                dropped = torch.rand(inputs.shape, device=inputs.device) < self.word_dropout
                inputs = inputs.masked_fill(dropped, 0)
            inputs = self.embedding_dropout(self.embedding(inputs))
        output = run_recurrent(self.lstm, inputs, lengths)
        logits: Tensor = self.decoder(self.output_dropout(self.pool(output, lengths)))
        return logits

    def pool(self, output: Tensor, lengths: Tensor) -> Tensor:
        """``[B, O]`` of the layer's outputs ``[T, B, O]``, which are zero past each end."""
        if self.pooling == "last":
            return last_outputs(output, lengths, num_directions(self.lstm))
        if self.pooling == "mean":
            return output.sum(0) / lengths[:, None].to(output.dtype)
        if self.attention is not None:
            pooled: Tensor = self.attention(output, lengths)
            return pooled
        return output.masked_fill(~real_steps(output, lengths)[..., None], -torch.inf).amax(0)


class AttentionPooling(nn.Module):
    """The mean of outputs ``h_t`` weighted by ``softmax_t(v . tanh(W h_t + b))`` over the real steps.

    Yang et al. 2016, "Hierarchical Attention Networks for Document Classification", with as many units as h has.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(size, size)
        self.score = nn.Linear(size, 1, bias=False)

    def weights(self, output: Tensor, lengths: Tensor) -> Tensor:
        """The weight of each step, [T, B]; they sum to 1 over the real ones."""
        scores: Tensor = self.score(self.hidden(output).tanh()).squeeze(-1)
        return scores.masked_fill(~real_steps(output, lengths), -torch.inf).softmax(0)

    def forward(self, output: Tensor, lengths: Tensor) -> Tensor:
        """``[B, O]`` of outputs ``[T, B, O]``."""
        return (self.weights(output, lengths)[..., None] * output).sum(0)


def real_steps(output: Tensor, lengths: Tensor) -> Tensor:
    """Which steps of ``output`` ([T, B, ...]) lie before each sequence's end: bool [T, B]."""
    return torch.arange(output.shape[0], device=output.device)[:, None] < lengths
