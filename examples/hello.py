"""An LSTM from its equations, trained on one word by a hand-written backward pass: after "hello" it predicts "ello ".

No autograd, no optimizer, no module: this file has the forward pass, every derivative of backpropagation through time,
the clipping and the update, to read and step through (``python -m pdb examples/hello.py``). The names are those of
``lstm_fused.reference``, the same cell with all options; the tests compare both with the fused kernel.

    python examples/hello.py
"""

from __future__ import annotations

import torch
from torch import Tensor

INPUT, TARGET = "hello", "ello "
CHARACTERS = "".join(dict.fromkeys(INPUT + TARGET))
CLIP = 5.0  # each element of the gradient is clipped to [-5, 5]

Parameters = dict[str, Tensor]


def new_parameters(hidden_size: int, seed: int = 0) -> Parameters:
    """Small random weights; the forget gate's bias is 1, so that the cell initially remembers."""
    H, V = hidden_size, len(CHARACTERS)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)

    bias = torch.zeros(4 * H, dtype=torch.float64)
    bias[H : 2 * H] = 1.0  # gates in the order i, f, g, o
    return {
        "weight_ih": draw(4 * H, V),
        "weight_hh": draw(4 * H, H),
        "bias": bias,
        "weight_out": draw(V, H),
        "bias_out": torch.zeros(V, dtype=torch.float64),
    }


def one_hot(text: str) -> Tensor:
    """[T, V]."""
    return torch.eye(len(CHARACTERS), dtype=torch.float64)[[CHARACTERS.index(character) for character in text]]


def step(x: Tensor, h: Tensor, c: Tensor, p: Parameters) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One step: h_t [H], c_t [H], and what the backward pass needs of it.

    ::

        z   = W_ih x_t + W_hh h_{t-1} + b
        i   = sigmoid(z_i)      how much of the candidate comes in
        f   = sigmoid(z_f)      how much of the cell is kept
        g   = tanh(z_g)         the candidate
        o   = sigmoid(z_o)      how much of the cell is shown
        c_t = f c_{t-1} + i g
        h_t = o tanh(c_t)
    """
    z_i, z_f, z_g, z_o = (p["weight_ih"] @ x + p["weight_hh"] @ h + p["bias"]).chunk(4)
    i, f, g, o = z_i.sigmoid(), z_f.sigmoid(), z_g.tanh(), z_o.sigmoid()
    new_c = f * c + i * g
    new_h = o * new_c.tanh()
    return new_h, new_c, {"x": x, "h": h, "c": c, "i": i, "f": f, "g": g, "o": o, "tanh_c": new_c.tanh()}


def step_backward(
    d_h: Tensor, d_c: Tensor, kept: dict[str, Tensor], p: Parameters, gradients: Parameters
) -> tuple[Tensor, Tensor]:
    """The same step backward: from dL/dh_t and dL/dc_t to dL/dh_{t-1} and dL/dc_{t-1}.

    d_c is what comes from the step after; what comes through h_t is added here. Each gate's z gets its derivative:
    sigmoid' = s (1 - s), tanh' = 1 - tanh^2. The weights serve at every step, so their gradients are summed.
    """
    i, f, g, o, tanh_c = (kept[name] for name in ("i", "f", "g", "o", "tanh_c"))
    d_o = d_h * tanh_c
    d_c = d_c + d_h * o * (1 - tanh_c**2)
    d_i, d_f, d_g = d_c * g, d_c * kept["c"], d_c * i
    d_z = torch.cat((d_i * i * (1 - i), d_f * f * (1 - f), d_g * (1 - g**2), d_o * o * (1 - o)))
    gradients["weight_ih"] += torch.outer(d_z, kept["x"])
    gradients["weight_hh"] += torch.outer(d_z, kept["h"])
    gradients["bias"] += d_z
    return p["weight_hh"].T @ d_z, d_c * f


def loss_and_gradients(text: str, target: str, p: Parameters) -> tuple[float, Parameters, str]:
    """The sum of the cross-entropies in nats, its gradients, and the characters that are the likeliest."""
    H = p["weight_hh"].shape[1]
    h = c = torch.zeros(H, dtype=torch.float64)
    steps, hidden, d_logits, loss, said = [], [], [], 0.0, ""
    for x, wanted in zip(one_hot(text), one_hot(target), strict=True):
        h, c, kept = step(x, h, c, p)
        probabilities = (p["weight_out"] @ h + p["bias_out"]).softmax(0)
        loss -= float((probabilities * wanted).sum().log())
        said += CHARACTERS[int(probabilities.argmax())]
        steps.append(kept)
        hidden.append(h)
        d_logits.append(probabilities - wanted)  # of the cross-entropy of a softmax

    gradients = {name: torch.zeros_like(value) for name, value in p.items()}
    d_h = d_c = torch.zeros(H, dtype=torch.float64)
    for kept, h, d_logit in zip(reversed(steps), reversed(hidden), reversed(d_logits), strict=True):
        gradients["weight_out"] += torch.outer(d_logit, h)
        gradients["bias_out"] += d_logit
        # h_t acts on this step's loss and, through the next step, on all later ones.
        d_h, d_c = step_backward(d_h + p["weight_out"].T @ d_logit, d_c, kept, p, gradients)
    return loss, gradients, said


def train(
    steps: int = 100, hidden_size: int = 16, lr: float = 0.2, seed: int = 0
) -> tuple[Parameters, list[float], str]:
    """Gradient descent from fresh weights: the parameters, the loss of every step, and what it says at the end."""
    p, losses = new_parameters(hidden_size, seed), []
    for _ in range(steps):
        loss, gradients, _ = loss_and_gradients(INPUT, TARGET, p)
        losses.append(loss)
        for name, gradient in gradients.items():
            p[name] -= lr * gradient.clamp(-CLIP, CLIP)
    return p, losses, loss_and_gradients(INPUT, TARGET, p)[2]


def main() -> None:
    _, losses, said = train()
    for k in (*range(0, len(losses), 20), len(losses) - 1):
        print(f"step {k:3}: loss {losses[k]:.4f}")
    print(f"{INPUT!r} -> {said!r}")


if __name__ == "__main__":
    main()
