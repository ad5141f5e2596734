"""``examples/hello.py``: its hand-written backward pass is autograd's, of the reference and of the fused kernel."""

import importlib.util
from pathlib import Path

import pytest
import torch
from testing import assert_close
from torch.nn import functional as F

from lstm_fused import FusedLSTM, reference

spec = importlib.util.spec_from_file_location("hello", Path(__file__).parents[1] / "examples/hello.py")
hello = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hello)

H = 6


def by_hand():
    p = hello.new_parameters(H, seed=3)
    loss, gradients, _ = hello.loss_and_gradients(hello.INPUT, hello.TARGET, p)
    return p, loss, gradients


def with_reference(p):
    zeros = torch.zeros(1, H, dtype=torch.float64)
    bias_hh = torch.zeros_like(p["bias"])
    x = hello.one_hot(hello.INPUT)[:, None]
    return reference.lstm_layer(x, zeros, zeros, p["weight_ih"], p["weight_hh"], p["bias"], bias_hh)[0]


def with_kernel(p):
    lstm = FusedLSTM(len(hello.CHARACTERS), H, dtype=torch.float64)
    names = {"weight_ih_l0": "weight_ih", "weight_hh_l0": "weight_hh", "bias_ih_l0": "bias"}
    given = {name: p[key] for name, key in names.items()} | {"bias_hh_l0": torch.zeros_like(p["bias"])}
    return torch.func.functional_call(lstm, given, (hello.one_hot(hello.INPUT)[:, None],))[0]


@pytest.mark.parametrize("lstm", [with_reference, with_kernel])
def test_the_gradients_by_hand_are_autograds(lstm):
    p, loss, gradients = by_hand()
    p = {name: value.clone().requires_grad_() for name, value in p.items()}
    logits = lstm(p)[:, 0] @ p["weight_out"].T + p["bias_out"]
    wanted = F.cross_entropy(logits, hello.one_hot(hello.TARGET).argmax(1), reduction="sum")
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-12)
    for name, parameter in p.items():
        assert_close(gradients[name], parameter.grad)


def test_the_gradients_by_hand_are_the_finite_differences():
    p, _, gradients = by_hand()
    for name, value in p.items():
        flat = value.view(-1)
        for k in range(0, len(flat), 7):
            kept, losses = float(flat[k]), []
            for change in (1e-5, -1e-5):
                flat[k] = kept + change
                losses.append(hello.loss_and_gradients(hello.INPUT, hello.TARGET, p)[0])
            flat[k] = kept
            assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(gradients[name].view(-1)[k]), abs=1e-8)


def test_it_learns_hello():
    p, losses, said = hello.train()
    assert said == "ello "
    assert losses[-1] < 0.3 < 8 < losses[0]
    assert hello.new_parameters(H)["bias"].tolist() == H * [0.0] + H * [1.0] + 2 * H * [0.0]
    assert p["bias"].shape == (64,)


def test_the_update_is_clipped(monkeypatch):
    """Of a gradient beyond 5 a step takes 5, of either sign."""
    start = hello.new_parameters(2)
    large = {name: torch.full_like(value, -40.0) for name, value in start.items()}
    large["bias"] = torch.full_like(start["bias"], 3.0)
    monkeypatch.setattr(hello, "loss_and_gradients", lambda *_: (1.0, large, "ello "))
    p, _, _ = hello.train(steps=1, hidden_size=2, lr=0.1)
    assert_close(p["weight_hh"], start["weight_hh"] + 0.5)
    assert_close(p["bias"], start["bias"] - 0.3)


def test_it_runs(capsys):
    hello.main()
    assert capsys.readouterr().out.endswith("'hello' -> 'ello '\n")
