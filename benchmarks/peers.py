"""What users would otherwise run: a layer-normed LSTM as a Python loop and in TorchScript, with the same parameters,
and for inference onnxruntime.

The loops compute the equations of ``layer_norm="ba2016"`` with recurrent dropout on the hidden state (one mask a
sequence).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNormCell(nn.Module):
    """One step of a layer-normed LSTM; parameters named as in ``FusedLSTMCell``."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        bound = hidden_size**-0.5
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden_size, input_size).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden_size).uniform_(-bound, bound))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden_size).uniform_(-bound, bound))
        self.weight_ln_ih = nn.Parameter(torch.ones(4 * hidden_size))
        self.weight_ln_hh = nn.Parameter(torch.ones(4 * hidden_size))
        self.weight_ln_c = nn.Parameter(torch.ones(hidden_size))
        self.bias_ln_c = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, h: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        gates = [4 * self.hidden_size]
        z = (
            F.layer_norm(F.linear(x, self.weight_ih), gates, self.weight_ln_ih)
            + F.layer_norm(F.linear(h * mask, self.weight_hh), gates, self.weight_ln_hh)
            + (self.bias_ih + self.bias_hh)
        )
        i, f, g, o = z.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        n = F.layer_norm(c, [self.hidden_size], self.weight_ln_c, self.bias_ln_c)
        return torch.sigmoid(o) * torch.tanh(n), c


class LayerNormLSTM(nn.Module):
    """The loop over time; ``torch.jit.script(LayerNormLSTM(...))`` is the TorchScript peer."""

    def __init__(self, input_size: int, hidden_size: int, recurrent_dropout: float, dropout: float) -> None:
        super().__init__()
        self.cell = LayerNormCell(input_size, hidden_size)
        self.recurrent_dropout = recurrent_dropout
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        h = input.new_zeros(input.size(1), self.cell.hidden_size)
        c = h
        mask = F.dropout(torch.ones_like(h), self.recurrent_dropout, self.training)
        outputs = []
        for x in input.unbind(0):
            h, c = self.cell(x, h, c, mask)
            outputs.append(h)
        return F.dropout(torch.stack(outputs), self.dropout, self.training)


def onnxruntime_lstm(lstm: nn.LSTM) -> Callable[..., list[Tensor]]:
    """A plain layer of one direction in onnxruntime, on one thread; called with x and, or not, the state (h, c).

    ImportError where onnx and onnxruntime are not installed.
    """
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    def iofc(weight: Tensor) -> Tensor:  # the order of the gates in ONNX
        i, f, g, o = weight.detach().chunk(4)
        return torch.cat([i, o, f, g])

    bias = torch.cat([iofc(lstm.bias_ih_l0), iofc(lstm.bias_hh_l0)])
    constants = {"W": iofc(lstm.weight_ih_l0), "R": iofc(lstm.weight_hh_l0), "B": bias}
    H = lstm.hidden_size
    sizes = {"x": ["T", "B", lstm.input_size], "h": [1, "B", H], "c": [1, "B", H]}
    results = {"y": ["T", 1, "B", H], "h_n": [1, "B", H], "c_n": [1, "B", H]}

    def session(given: list[str]) -> onnxruntime.InferenceSession:
        state = given[1:]
        node = helper.make_node(
            "LSTM", ["x", "W", "R", "B", *(["", *state] if state else [])], [*results], hidden_size=H
        )
        graph = helper.make_graph(
            [node],
            "lstm",
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes[name]) for name in given],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in results.items()],
            [numpy_helper.from_array(value[None].numpy(), name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    sessions = {True: session(["x", "h", "c"]), False: session(["x"])}

    def run(x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
        given = {"x": x.numpy()} | ({} if state is None else {"h": state[0].numpy(), "c": state[1].numpy()})
        y, h_n, c_n = sessions[state is not None].run(None, given)
        return [torch.from_numpy(y).squeeze(1), torch.from_numpy(h_n), torch.from_numpy(c_n)]

    return run
