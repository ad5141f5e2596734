"""The model of music: a recurrent layer, and 88 keys that are independent given it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_modules.models.recurrent import new_dropout, num_directions, output_size, run_recurrent


class PianoRollModel(nn.Module):
    """Gives each key's probability to sound in the next frame, independent given the frames so far.

    This is the RNN of Boulanger-Lewandowski et al. (2012) with a recurrent layer of any kind.

    Args:
        num_keys: keys of a frame, K.
        new_layer: makes the recurrent layer for a given input size.
        dropout: rate on the layer's output.
        variational: its mask is locked over time.

    Raises:
        ValueError: the layer is bidirectional: it would see the frames that it is to predict.
    """

    def __init__(
        self,
        num_keys: int,
        new_layer: Callable[[int], nn.Module],
        *,
        dropout: float = 0.0,
        variational: bool = False,
    ) -> None:
        super().__init__()
        self.layer = new_layer(num_keys)
        if num_directions(self.layer) == 2:
            raise ValueError("recurrent must not be bidirectional in music, where each frame is told from those before")
        self.dropout = new_dropout(dropout, variational)
        self.decoder = nn.Linear(output_size(self.layer, num_keys), num_keys)

    def forward(self, roll: Tensor, lengths: Tensor) -> Tensor:
        """
        Args:
            roll: [T, B, K], the frames of pieces of different lengths.
            lengths: int64 [B], each at least 1.

        Returns:
            The logits of the keys after each frame, [T, B, K].
        """
        logits: Tensor = self.decoder(self.dropout(run_recurrent(self.layer, roll, lengths)))
        return logits

    def step(self, frame: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The logits after one frame more, [B, K], of frames [B, K], and the layer's state after it."""
        output, state = self.layer(frame[None], state)
        return self.decoder(self.dropout(output[0])), state
