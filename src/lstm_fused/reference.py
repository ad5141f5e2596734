"""The LSTM layer in plain PyTorch: the specification that every kernel must agree with.

Slow, differentiable any number of times, in any floating-point dtype and on any device. The names and shapes are those
of :mod:`lstm_fused.ops`; sizes: ``T`` steps, ``B`` sequences, ``I`` inputs, ``H`` hidden units; gates in the order
i, f, g, o.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# What a mask is for. A layer and direction has one `stream` (layer * num_directions + direction), a use a number in it.
USES = {"output": 0, "hidden": 1, "candidate": 2, "zoneout_h": 3, "zoneout_c": 4, "weight": 5}

_UINT32 = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random words from a counter of four and a key of two; words are int64 tensors below 2**32.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011. The int64 products wrap around
    and the shift is signed, which leaves both 32-bit halves right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32 & _UINT32) ^ c1 ^ k0, p1 & _UINT32, (p0 >> 32 & _UINT32) ^ c3 ^ k1, p0 & _UINT32
        k0, k1 = k0 + 0x9E3779B9 & _UINT32, k1 + 0xBB67AE85 & _UINT32
    return c0, c1, c2, c3


def random_bits(seed: Tensor, use: str, t: int, B: int, H: int, *, stream: int = 0) -> Tensor:
    """The 32 random bits of every unit at step ``t``: int64 [B, H], a pure function of (seed, stream, use, t, b, h).

    key = (low, high word of ``seed``); counter = (h // 4, b, t, 8 * stream + use); h gets the word h % 4 of the four.
    """
    block = torch.arange((H + 3) // 4, device=seed.device).expand(B, -1)
    row = torch.arange(B, device=seed.device).unsqueeze(1)
    counter = (block, row, torch.full_like(row, t), torch.full_like(row, 8 * stream + USES[use]))
    words = philox4x32(counter, (seed & _UINT32, seed >> 32 & _UINT32))
    return torch.stack(words, dim=-1).flatten(1)[:, :H]


def hits(seed: Tensor | None, use: str, rate: float, t: int, like: Tensor, *, stream: int = 0) -> Tensor:
    """Which units are hit, each with probability ``rate``: bool, shaped as ``like`` [B, H].

    A hit drops the unit (dropout) or makes it keep its previous value (zoneout).
    """
    if seed is None:
        raise ValueError("seed must be an int64 tensor when a dropout or zoneout rate is above 0 in training, got None")
    return random_bits(seed, use, t, *like.shape, stream=stream) < int(rate * 2**32)


def _dropout(x: Tensor, rate: float, hit: Tensor) -> Tensor:
    return x * (~hit).to(x.dtype) / (1 - rate)


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension, with the biased variance; the identity without ``weight``."""
    return x if weight is None else F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def lstm_cell(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_ln_ih: Tensor | None = None,
    weight_ln_hh: Tensor | None = None,
    weight_ln_c: Tensor | None = None,
    bias_ln_c: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    step: int = 0,
    recurrent_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    training: bool = True,
    eps: float = 1e-5,
    stream: int = 0,
) -> tuple[Tensor, Tensor]:
    """One step, number ``step`` of its sequence: ``(h_t, c_t)``, both [B, H], from the previous ``h_0`` and ``c_0``.

    ::

        h~  = m_h * h_{t-1}                             recurrent dropout, one mask for all t (Gal & Ghahramani 2016)
        z   = N(W_ih x_t) + N(W_hh h~) + b_ih + b_hh    [B, 4H]; N: layer norm over 4H, gain only (Ba et al. 2016)
        i, f, g, o = sigmoid(z_i), sigmoid(z_f), tanh(z_g), sigmoid(z_o)
        c'  = f * c_{t-1} + i * g
        h'  = o * tanh(N_c(c'))                         N_c: layer norm over H, gain and bias
        c_t = zoneout(c', c_{t-1})                      the previous value with probability zoneout_c, in eval the
        h_t = zoneout(h', h_{t-1})                      expected value (Krueger et al. 2016)

    Shapes: input [B, I]; h_0, c_0 [B, H]; weight_ih [4H, I]; weight_hh [4H, H]; bias_ih, bias_hh, weight_ln_ih,
    weight_ln_hh [4H]; weight_ln_c, bias_ln_c [H]; seed int64, 0-dim. Layer norm is on when its four tensors are given.
    """

    def zoneout(new: Tensor, old: Tensor, rate: float, use: str) -> Tensor:
        if rate == 0:
            return new
        if not training:
            return rate * old + (1 - rate) * new
        return torch.where(hits(seed, use, rate, step, new, stream=stream), old, new)

    h = h_0
    if training and recurrent_dropout > 0:
        h = _dropout(h, recurrent_dropout, hits(seed, "hidden", recurrent_dropout, 0, h, stream=stream))
    z_x = _norm(F.linear(input, weight_ih), weight_ln_ih, None, eps)
    z_h = _norm(F.linear(h, weight_hh), weight_ln_hh, None, eps)
    z = z_x + z_h
    if bias_ih is not None:
        z = z + bias_ih + bias_hh
    i, f, g, o = z.chunk(4, dim=-1)
    c = f.sigmoid() * c_0 + i.sigmoid() * g.tanh()
    h = o.sigmoid() * _norm(c, weight_ln_c, bias_ln_c, eps).tanh()
    return zoneout(h, h_0, zoneout_h, "zoneout_h"), zoneout(c, c_0, zoneout_c, "zoneout_c")


def lstm_layer(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_ln_ih: Tensor | None = None,
    weight_ln_hh: Tensor | None = None,
    weight_ln_c: Tensor | None = None,
    bias_ln_c: Tensor | None = None,
    lengths: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    reverse: bool = False,
    dropout: float = 0.0,
    variational: bool = False,
    recurrent_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    training: bool = True,
    eps: float = 1e-5,
    stream: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer in one direction: ``(output [T, B, H], h_n [B, H], c_n [B, H])``, with :func:`lstm_cell` at every step.

    ``output[t] = m_y * h_t`` with output dropout (one mask for all t when ``variational``); ``h_n`` is not dropped.
    Sequence b has ``lengths[b]`` real steps (0..T, int64 [B]): its outputs past them are zero, what the input holds
    there does not matter, and ``h_n, c_n`` are those after the last step processed. ``reverse`` runs from the last real
    step to step 0; each output stays at its own t.

    Shapes: input [T, B, I]; the others as in :func:`lstm_cell`.
    """
    T = input.shape[0]
    weights = (weight_ih, weight_hh, bias_ih, bias_hh, weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c)
    if lengths is not None:
        past = torch.arange(T, device=input.device).unsqueeze(1) >= lengths  # [T, B]
        input = input.masked_fill(past.unsqueeze(-1), 0)

    h, c, outputs = h_0, c_0, []
    for t in reversed(range(T)) if reverse else range(T):
        h_t, c_t = lstm_cell(
            input[t], h, c, *weights, seed, step=t, recurrent_dropout=recurrent_dropout,
            zoneout_h=zoneout_h, zoneout_c=zoneout_c, training=training, eps=eps, stream=stream,
        )  # fmt: skip
        y = h_t
        if training and dropout > 0:
            y = _dropout(y, dropout, hits(seed, "output", dropout, 0 if variational else t, y, stream=stream))
        if lengths is not None:
            ended = past[t].unsqueeze(1)
            h_t, c_t, y = torch.where(ended, h, h_t), torch.where(ended, c, c_t), y.masked_fill(ended, 0)
        h, c = h_t, c_t
        outputs.append(y)
    output = torch.stack(outputs[::-1] if reverse else outputs) if T else h_0.new_zeros(0, *h_0.shape)
    return output, h, c
