"""What a recurrent layer remembers, read by one linear layer."""

from collections.abc import Callable

from torch import Tensor, nn

from lightning_modules.models.recurrent import last_outputs, num_directions, output_size, run_recurrent


class MemoryModel(nn.Module):
    """A recurrent layer on the sequences as they are, and a linear layer on its output.

    The recurrence alone carries what a memory task needs, and it alone is tested.

    Args:
        input_size: numbers a step, I.
        outputs: numbers in a target, O.
        new_layer: makes the recurrent layer for a given input size.
        every_step: O numbers after every step and not after the last alone.
        dropout: rate on the layer's output.
    """

    def __init__(
        self,
        input_size: int,
        outputs: int,
        new_layer: Callable[[int], nn.Module],
        *,
        every_step: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.every_step = every_step
        self.layer = new_layer(input_size)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(output_size(self.layer, input_size), outputs)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """
        Args:
            inputs: [T, B, I].
            lengths: int64 [B], each at least 1.

        Returns:
            [B, O], or [T, B, O] with ``every_step``.
        """
        output = run_recurrent(self.layer, inputs, lengths)
        if not self.every_step:
            output = last_outputs(output, lengths, num_directions(self.layer))
        result: Tensor = self.decoder(self.dropout(output))
        return result
