"""The language model itself: a plain ``nn.Module`` that knows nothing of training."""

import torch
from torch import Tensor, nn

from lightning_modules.models.recurrent import build_recurrent

State = tuple[Tensor, Tensor]  # h and c, each [num_layers, B, hidden_size]


class LanguageModel(nn.Module):
    """Predicts each next token: embedding, LSTM layers, and a decoder to one logit a token of the vocabulary.

    Dropout acts on the embedding's output, after each LSTM layer and so on the decoder's input (Zaremba et al. 2014).

    Args:
        vocab_size: number of tokens, V.
        embedding_size: size of a token's embedding.
        hidden_size: size of each LSTM layer.
        num_layers: number of LSTM layers.
        cell: what the layers are made of: ``"fused"`` or ``"torch"``.
        tied: the decoder's weight is the embedding's (Press & Wolf 2017); needs ``embedding_size == hidden_size``.
        dropout: rate of the dropout above.
        variational: each dropout mask is locked over the time steps of a batch (Gal & Ghahramani 2016).
        layer_norm: layer norm inside the LSTM (Ba et al. 2016).
        recurrent_dropout: rate of the dropout on the hidden state from step to step, locked over time.
        zoneout: rate at which units of h and c keep their previous value (Krueger et al. 2016), one rate or two.
        forget_bias: initial bias of the forget gates; ``None`` leaves the layer's own initialisation.

    Raises:
        ValueError: for sizes below 1, a rate outside [0, 1), or tied sizes that differ.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int = 128,
        hidden_size: int = 256,
        num_layers: int = 1,
        *,
        cell: str = "fused",
        tied: bool = False,
        dropout: float = 0.2,
        variational: bool = False,
        layer_norm: bool = True,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        forget_bias: float | None = 1.0,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "embedding_size": embedding_size}
        for name, size in (sizes | {"hidden_size": hidden_size, "num_layers": num_layers}).items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if tied and embedding_size != hidden_size:
            raise ValueError(f"tied needs embedding_size equal to hidden_size, got {embedding_size} and {hidden_size}")
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.dropout = LockedDropout(dropout) if variational else nn.Dropout(dropout)
        self.lstm = build_recurrent(
            cell,
            embedding_size,
            hidden_size,
            num_layers,
            dropout=dropout if num_layers > 1 else 0.0,
            variational=variational,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            forget_bias=forget_bias,
        )
        self.decoder = nn.Linear(hidden_size, vocab_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """
        Args:
            tokens: int64 [T, B].
            state: h and c after the tokens before, each [num_layers, B, hidden_size]; ``None`` is zeros.

        Returns:
            The logits of the token after each of ``tokens``, [T, B, V], and the state after the last.
        """
        output, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return self.decoder(self.dropout(output)), state


class LockedDropout(nn.Module):
    """Dropout of ``[T, B, H]`` with one mask ``[1, B, H]`` for all steps (Gal & Ghahramani 2016).

    Args:
        p: rate at which units are dropped; those kept are scaled by ``1 / (1 - p)``.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        mask = torch.empty_like(input[:1]).bernoulli_(1 - self.p).div_(1 - self.p)
        return input * mask

    def extra_repr(self) -> str:
        return f"p={self.p}"
