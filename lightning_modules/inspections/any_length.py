"""torch's GRU and plain RNN as they are exported: with no length of the example's written into the file."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OfAnyLength(nn.Module):
    """An ``nn.GRU`` or ``nn.RNN`` in eval whose loop over the steps is torch's scan, which ONNX has too.

    torch's exporters write the steps of their own layers out, one by one, as many as the example has.

    Args:
        layer: whose parameters these are.
    """

    def __init__(self, layer: nn.GRU | nn.RNN) -> None:
        super().__init__()
        self.layer = layer
        self.bidirectional = layer.bidirectional

    def forward(self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output ``[T, B, O]``, zero past each sequence's end, and the last state of each layer and direction."""
        directions = 2 if self.bidirectional else 1
        if hx is None:
            hx = input.new_zeros(self.layer.num_layers * directions, input.shape[1], self.layer.hidden_size)
        last: list[Tensor] = []
        for number in range(self.layer.num_layers):
            outputs = []
            for reverse in (False, True)[:directions]:
                output, h_n = self._one_layer(input, hx[len(last)], lengths, number, reverse)
                outputs.append(output)
                last.append(h_n)
            input = torch.cat(outputs, dim=-1)
        return input, torch.stack(last)

    def _one_layer(
        self, input: Tensor, h_0: Tensor, lengths: Tensor | None, number: int, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        from torch._higher_order_ops.scan import scan  # imported late: a prototype, which only exports need

        name = f"l{number}{'_reverse' if reverse else ''}"
        weight_ih, weight_hh = (getattr(self.layer, f"weight_{part}_{name}") for part in ("ih", "hh"))
        bias_ih, bias_hh = (getattr(self.layer, f"bias_{part}_{name}", None) for part in ("ih", "hh"))
        steps = {"input": F.linear(input, weight_ih, bias_ih)}
        if lengths is not None:
            steps["past"] = (torch.arange(input.shape[0]).unsqueeze(1) >= lengths).unsqueeze(-1)

        def step(h: Tensor, at: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            new = self._cell(at["input"], F.linear(h, weight_hh, bias_hh), h)
            if "past" not in at:
                return new, new.clone()  # no two results of a scan may be one tensor
            return torch.where(at["past"], h, new), new.masked_fill(at["past"], 0)

        h_n, output = scan(step, h_0.clone(), steps, reverse=reverse)  # nor may its initial state be a view
        return output, h_n

    def _cell(self, of_input: Tensor, of_h: Tensor, h: Tensor) -> Tensor:
        """The next state from the two products, with the equations of torch's documentation."""
        if isinstance(self.layer, nn.GRU):
            input_r, input_z, input_n = of_input.chunk(3, dim=-1)
            h_r, h_z, h_n = of_h.chunk(3, dim=-1)
            r, z = (input_r + h_r).sigmoid(), (input_z + h_z).sigmoid()
            return (1 - z) * (input_n + r * h_n).tanh() + z * h
        total = of_input + of_h
        return total.tanh() if self.layer.nonlinearity == "tanh" else total.relu()
