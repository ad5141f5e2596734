"""The forecaster: a plain ``nn.Module`` that knows nothing of training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_modules.models.recurrent import output_size


class Forecaster(nn.Module):
    """Forecasts the steps after a window: recurrent layers over the window, and a linear layer on the last output.

    What the linear layer gives is added to the last value of the window (the persistence forecast), so that a new
    network begins there. ``direct`` forecasts all steps of the horizon at once; ``recursive`` one after another, each
    from the forecast before it as if it had been seen, with the covariates of the window's last step.

    Args:
        input_size: channels of the window, I, the targets first.
        num_targets: C.
        horizon: H.
        new_layer: makes the recurrent layer for a given input size.
        dropout: rate on the last output.
        recursive: see above.
    """

    def __init__(
        self,
        input_size: int,
        num_targets: int,
        horizon: int,
        new_layer: Callable[[int], nn.Module],
        *,
        dropout: float = 0.2,
        recursive: bool = False,
    ) -> None:
        super().__init__()
        self.num_targets, self.horizon, self.recursive = num_targets, horizon, recursive
        self.layer = new_layer(input_size)
        self.dropout = nn.Dropout(dropout)
        steps = 1 if recursive else horizon
        self.head = nn.Linear(output_size(self.layer, input_size), steps * num_targets)

    def forward(self, input: Tensor, last: Tensor) -> Tensor:
        """
        Args:
            input: [W, B, I].
            last: [B, C], the last known targets.

        Returns:
            [H, B, C].
        """
        output, state = self.layer(input)
        if not self.recursive:
            change: Tensor = self.head(self.dropout(output[-1])).view(-1, self.horizon, self.num_targets)
            return last + change.transpose(0, 1)
        forecasts: list[Tensor] = []
        others = input[-1, :, self.num_targets :]
        for _ in range(self.horizon):
            if forecasts:
                output, state = self.layer(torch.cat((last, others), dim=1)[None], state)
            last = last + self.head(self.dropout(output[-1]))
            forecasts.append(last)
        return torch.stack(forecasts)
