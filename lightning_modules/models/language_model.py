"""The language model itself: a plain ``nn.Module`` that knows nothing of training."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_modules.models.recurrent import new_dropout, output_size


class LanguageModel(nn.Module):
    """Predicts each next token: embedding, recurrent layers, and a decoder to one logit a token of the vocabulary.

    Dropout acts on the embedding's output and on the decoder's input (Zaremba et al. 2014); the recurrent layers bring
    their own.

    Args:
        vocab_size: number of tokens, V.
        new_layer: makes the recurrent layer for a given input size.
        embedding_size: size of a token's embedding.
        tied: the decoder's weight is the embedding's (Press & Wolf 2017); the recurrent layer's output must have
            ``embedding_size`` units.
        dropout: rate of the dropout above.
        variational: each dropout mask is locked over the time steps of a batch (Gal & Ghahramani 2016).

    Raises:
        ValueError: for sizes below 1, a rate outside [0, 1), or tied sizes that differ.
    """

    def __init__(
        self,
        vocab_size: int,
        new_layer: Callable[[int], nn.Module],
        embedding_size: int = 128,
        *,
        tied: bool = False,
        dropout: float = 0.2,
        variational: bool = False,
    ) -> None:
        super().__init__()
        for name, size in {"vocab_size": vocab_size, "embedding_size": embedding_size}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.dropout = new_dropout(dropout, variational)
        self.lstm = new_layer(embedding_size)
        size = output_size(self.lstm, embedding_size)
        if tied and embedding_size != size:
            raise ValueError(
                f"tied needs embedding_size equal to the layer's output (hidden_size), got {embedding_size} and {size}"
            )
        self.decoder = nn.Linear(size, vocab_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """
        Args:
            tokens: int64 [T, B].
            state: the layer's after the tokens before; ``None`` is zeros.

        Returns:
            The logits of the token after each of ``tokens``, [T, B, V], and the state after the last.
        """
        output, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return self.decoder(self.dropout(output)), state
