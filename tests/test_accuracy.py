"""Rounding in float32: measured against float64, compared with what nn.LSTM and the specification lose."""

import math

import pytest
import torch
from testing import EVERYTHING, layer_case, random, run
from torch import nn

from lstm_fused import FusedLSTM, ops, reference

SIZES = [(20, 8, 32, 64), (50, 4, 10, 33), (8, 16, 100, 128), (100, 2, 16, 16)]  # T, B, I, H


def errors(actual, exact):
    """By name: the root mean square error, in units of the root mean square value."""
    wrong = {name: actual[name].double() - x for name, x in exact.items()}
    return {name: (wrong[name].square().mean() / x.square().mean()).sqrt().item() for name, x in exact.items()}


def ratios(pairs):
    """By name: our error over theirs, the geometric mean over the cases."""
    ours, theirs = zip(*pairs, strict=True)
    logs = [{name: math.log(o[name] / t[name]) for name in o} for o, t in zip(ours, theirs, strict=True)]
    return {name: math.exp(sum(log[name] for log in logs) / len(logs)) for name in logs[0]}


def run_module(module, x):
    x = x.to(next(module.parameters())).requires_grad_()
    output, (h_n, c_n) = module(x)
    loss = sum((y * random(*y.shape, seed=9).to(y)).sum() for y in (output, h_n, c_n))
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, [x, *parameters])
    return {"output": output, "h_n": h_n, "c_n": c_n} | dict(zip(["input", *names], gradients, strict=True))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_float32_against_nn_lstm(scale, device, record_property):
    """At most twice the error of nn.LSTM, for every result and gradient; scale: of the inputs, into saturation."""
    pairs = []
    for T, B, I, H in SIZES:  # noqa: E741
        theirs = nn.LSTM(I, H, 2, bidirectional=True, device=device)
        ours = FusedLSTM.from_torch(theirs)
        x = random(T, B, I, seed=1, scale=scale).to(device)
        results = [run_module(module, x) for module in (ours, theirs)]
        exact = run_module(theirs.double(), x)
        pairs.append([errors(result, exact) for result in results])
    measured = ratios(pairs)
    record_property("float32 error, of nn.LSTM's", measured)
    assert max(measured.values()) < 2, measured


def test_many_rows_in_float32_against_nn_lstm(device, record_property):
    """4,096 rows in each sum of a weight's gradient, and 768 products in each of an input's: about nn.LSTM's error."""
    T, B, H = 64, 64, 192
    theirs = nn.LSTM(H, H, device=device)
    ours = FusedLSTM.from_torch(theirs)
    x = random(T, B, H, seed=1).to(device)
    results = [run_module(module, x) for module in (ours, theirs)]
    exact = run_module(theirs.double(), x)
    measured = ratios([[errors(result, exact) for result in results]])
    record_property("float32 error over many rows, of nn.LSTM's", measured)
    assert max(measured.values()) < 2, measured  # it was 4.3 with all rows in one chain of sums


@pytest.mark.parametrize("on", [("layer_norm",), EVERYTHING], ids=["layer_norm", "everything"])
def test_float32_against_the_reference(on, device, record_property):
    """With options: at most twice the error of plain PyTorch in float32."""
    pairs = []
    for T, B, I, H in SIZES[:3]:  # noqa: E741
        sizes = {"T": T // 2, "B": B, "I": I, "H": H, "device": device}
        exact = run(reference.lstm_layer, *layer_case(on, **sizes))
        case = layer_case(on, **sizes, dtype=torch.float32)
        pairs.append([errors(run(layer, *case), exact) for layer in (ops.lstm_layer, reference.lstm_layer)])
    measured = ratios(pairs)
    record_property("float32 error, of the reference's", measured)
    assert max(measured.values()) < 2, measured
