"""The language model itself: a plain ``nn.Module`` that knows nothing of training."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_modules.models.recurrent import new_dropout, num_directions, output_size


class LanguageModel(nn.Module):
    """Predicts each next token: embedding, recurrent layers, and a decoder to one logit a token of the vocabulary.

    Dropout acts on the embedding's output and on the decoder's input (Zaremba et al. 2014), and on whole words of the
    embedding (Gal & Ghahramani 2016); the recurrent layers bring their own.

    Args:
        vocab_size: number of tokens, V.
        new_layer: makes the recurrent layer for a given input size.
        embedding_size: size of a token's embedding.
        tied: the decoder's weight is the embedding's (Press & Wolf 2017); the recurrent layer's output must have
            ``embedding_size`` units.
        dropout: rate on the decoder's input.
        input_dropout: rate on the embedding's output; ``dropout`` if not given.
        embedding_dropout: rate at which words lose their embedding, in all of a batch at once.
        variational: each dropout mask is locked over the time steps of a batch (Gal & Ghahramani 2016).

    Raises:
        ValueError: for sizes below 1, a rate outside [0, 1), tied sizes that differ, or a bidirectional layer, which
            would see the tokens that it is to predict.
    """

    def __init__(
        self,
        vocab_size: int,
        new_layer: Callable[[int], nn.Module],
        embedding_size: int = 128,
        *,
        tied: bool = False,
        dropout: float = 0.2,
        input_dropout: float | None = None,
        embedding_dropout: float = 0.0,
        variational: bool = False,
    ) -> None:
        super().__init__()
        for name, size in {"vocab_size": vocab_size, "embedding_size": embedding_size}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        input_dropout = dropout if input_dropout is None else input_dropout
        rates = {"dropout": dropout, "input_dropout": input_dropout, "embedding_dropout": embedding_dropout}
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate}")
        self.embedding_dropout = embedding_dropout
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.input_dropout = new_dropout(input_dropout, variational)
        self.dropout = new_dropout(dropout, variational)
        self.lstm = new_layer(embedding_size)
        if num_directions(self.lstm) == 2:
            raise ValueError(
                "recurrent must not be bidirectional in a language model, where each token is told from those before"
            )
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
        _, dropped, state = self.hidden(tokens, state)
        return self.decoder(dropped), state

    def hidden(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Tensor, Any]:
        """The recurrent layers' output [T, B, O], before and after dropout, and the state after the last token."""
        output, state = self.lstm(self.input_dropout(self.embed(tokens)), state)
        return output, self.dropout(output), state

    def embed(self, tokens: Tensor) -> Tensor:
        """The tokens' embeddings, [T, B, E]."""
        embedded: Tensor = self.embedding(tokens)
        if not self.training or self.embedding_dropout == 0:
            return embedded
        keep = 1 - self.embedding_dropout
        mask = embedded.new_empty(self.embedding.num_embeddings, 1).bernoulli_(keep) / keep
        return embedded * mask[tokens]
