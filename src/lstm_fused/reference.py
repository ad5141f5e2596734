"""The LSTM layer in plain PyTorch: the specification for all kernels.

It is slow, but differentiable any number of times, and runs in any floating-point dtype on any device. Names and shapes
are those of :mod:`lstm_fused.ops`; sizes: ``T`` steps, ``B`` sequences, ``I`` inputs, ``H`` hidden units, ``P`` units
of the projected hidden state (``H`` without a projection); gates in the order i, f, g, o.

It is also the LSTM to step through: :func:`lstm_cell` is one step, with its equations in its docstring and line by line
in its code, and :func:`lstm_layer` is the loop over the steps. With a trained module's weights and a breakpoint in the
cell you can inspect every gate of every step::

    lstm = FusedLSTM(3, 5)
    h = c = torch.zeros(2, 5)
    for x in torch.randn(4, 2, 3):                             # T = 4, B = 2, I = 3
        h, c = reference.lstm_cell(x, h, c, *lstm.all_weights[0])

``examples/hello.py`` is the cell without options, with a hand-written backward pass through time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

# The uses of masks, each with its number within a stream. Each layer and direction has its own `stream` of random
# numbers (layer * num_directions + direction).
USES = {"output": 0, "hidden": 1, "candidate": 2, "zoneout_h": 3, "zoneout_c": 4, "weight": 5}

# The options that choose among the equations of the gates and of the cell.
CHOICES = ("open_gates", "activation", "recurrent_activation")

# Bits of `open_gates`.
GATES = {"i": 1, "f": 2, "o": 4}

# The numbers of `activation` and `recurrent_activation`.
Activation: TypeAlias = Literal["tanh", "relu"]
RecurrentActivation: TypeAlias = Literal["sigmoid", "hard_sigmoid"]
ACTIVATIONS: dict[Activation, int] = {"tanh": 0, "relu": 1}
RECURRENT_ACTIVATIONS: dict[RecurrentActivation, int] = {"sigmoid": 0, "hard_sigmoid": 1}

_UINT32 = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random words from a counter of four words and a key of two; words: int64 tensors below 2**32.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011. The int64 products overflow
    and the shift is signed, but both 32-bit halves are correct.
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
    """A random mask of hit units, each with probability ``rate``: bool, of the shape of ``like``, [B, H].

    A hit drops the unit (dropout) or makes it keep its previous value (zoneout). For weight dropout ``like`` is the
    weight: its rows count as sequences.
    """
    if seed is None:
        raise RuntimeError("seed must be given when a rate is above 0 in training, got None")
    return random_bits(seed, use, t, *like.shape, stream=stream) < int(rate * 2**32)


def _dropout(x: Tensor, use: str, rate: float, t: int, seed: Tensor | None, *, training: bool, stream: int) -> Tensor:
    """x with the mask of this use at step ``t``; x itself in eval and at rate 0."""
    if not (training and rate > 0):
        return x
    return x * (~hits(seed, use, rate, t, x, stream=stream)).to(x.dtype) / (1 - rate)


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension, with the biased variance. Without ``weight``: the identity."""
    return x if weight is None else F.layer_norm(x, weight.shape, weight, bias, eps)


def _activate(x: Tensor, activation: int) -> Tensor:
    """The activation of the candidate and of the output."""
    return x.relu() if activation == ACTIVATIONS["relu"] else x.tanh()


def _activate_gate(x: Tensor, recurrent_activation: int) -> Tensor:
    if recurrent_activation == RECURRENT_ACTIVATIONS["hard_sigmoid"]:
        return F.hardtanh(0.2 * x + 0.5, 0.0, 1.0)  # a clip whose gradient is 0 at both ends
    return x.sigmoid()


def _pre_activations(
    input: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_ln_ih: Tensor | None,
    weight_ln_hh: Tensor | None,
    bias_ln_ih: Tensor | None,
    bias_ln_hh: Tensor | None,
    eps: float,
) -> Tensor:
    """z of :func:`lstm_cell`, [..., 4H], from the input [..., I] and h~ [..., P]: of one step or of several."""
    z_x = _norm(F.linear(input, weight_ih), weight_ln_ih, bias_ln_ih, eps)
    z_h = _norm(F.linear(h, weight_hh), weight_ln_hh, bias_ln_hh, eps)
    z = z_x + z_h
    return z if bias_ih is None or bias_hh is None else z + bias_ih + bias_hh


def _gates(
    z: Tensor,
    c_0: Tensor,
    weight_ci: Tensor | None,
    weight_cf: Tensor | None,
    weight_co: Tensor | None,
    drop_candidate: Callable[[Tensor], Tensor],
    *,
    open_gates: int,
    activation: int,
    recurrent_activation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """i, f, g, o and c' of :func:`lstm_cell`, [..., H] each, from z and c_{t-1}. ``drop_candidate``: g -> m_g * g."""

    def gate(name: str, z: Tensor, peephole: Tensor | None, c: Tensor) -> Tensor:
        if open_gates & GATES[name]:
            return torch.ones_like(z)
        return _activate_gate(z if peephole is None else z + peephole * c, recurrent_activation)

    z_i, z_f, z_g, z_o = z.chunk(4, dim=-1)
    i, f, g = gate("i", z_i, weight_ci, c_0), gate("f", z_f, weight_cf, c_0), _activate(z_g, activation)
    c = f * c_0 + i * drop_candidate(g)
    return i, f, g, gate("o", z_o, weight_co, c), c


def past_the_end(lengths: Tensor, T: int) -> Tensor:
    """Which steps lie past the end of their sequence: bool [T, B], from lengths [B]."""
    return torch.arange(T, device=lengths.device).unsqueeze(1) >= lengths


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
    bias_ln_ih: Tensor | None = None,
    bias_ln_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    weight_ci: Tensor | None = None,
    weight_cf: Tensor | None = None,
    weight_co: Tensor | None = None,
    reset: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    step: int = 0,
    recurrent_dropout: float = 0.0,
    candidate_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    open_gates: int = 0,
    activation: int = 0,
    recurrent_activation: int = 0,
    training: bool = True,
    eps: float = 1e-5,
    stream: int = 0,
) -> tuple[Tensor, Tensor]:
    """One step, number ``step`` of its sequence: ``(h_t, c_t)``, [B, P] and [B, H], from the previous ``h_0``, ``c_0``.

    ::

        h_{t-1} = c_{t-1} = 0                           where ``reset``
        h~  = m_h * h_{t-1}                             recurrent dropout, one mask for all t (Gal & Ghahramani 2016)
        W   = m_w * W_hh                                weight dropout, one mask for all t and b (Merity et al. 2018)
        z   = N(W_ih x_t) + N(W h~) + b_ih + b_hh       [B, 4H]; N: layer norm over 4H, gain only (Ba et al. 2016)
        i   = sigmoid(z_i + p_i * c_{t-1})              p: peepholes (Gers & Schmidhuber 2000)
        f   = sigmoid(z_f + p_f * c_{t-1})
        g   = tanh(z_g)
        c'  = f * c_{t-1} + i * (m_g * g)               m_g: dropout of the candidate, fresh at every t (Semeniuta 2016)
        o   = sigmoid(z_o + p_o * c')
        n   = N_c(c')                                   layer norm over H, gain and bias; the identity without
        h'  = o * tanh(n)
        c_t = zoneout(c', c_{t-1})                      the previous value with probability zoneout_c, in eval the
        h_t = zoneout(h', h_{t-1})                      expected value (Krueger et al. 2016)
        h_t = W_hr h_t                                  projection

    Layer norm is on when ``weight_ln_ih``, ``weight_ln_hh``, ``weight_ln_c`` and ``bias_ln_c`` are given ("ba2016"); it
    is the other model in use ("carry": PyTorch's ``custom_lstms.py``, TensorFlow Addons) when ``bias_ln_ih`` and
    ``bias_ln_hh`` are given too. They take the place of ``b_ih`` and ``b_hh``, and the normalized cell is carried:
    ``c_t = zoneout(n, c_{t-1})``. The peephole of o sees c' in both.

    ``open_gates``, a sum of :data:`GATES`: gates that are 1, whatever their z, which has no gradient then.

    ``activation``, one of :data:`ACTIVATIONS`: with relu, it replaces both tanh. ``recurrent_activation``, one of
    :data:`RECURRENT_ACTIVATIONS`: with hard_sigmoid, clip(0.2 z + 0.5, 0, 1) replaces sigmoid.

    Shapes: input [B, I]; h_0 [B, P]; c_0 [B, H]; weight_ih [4H, I]; weight_hh [4H, P]; bias_ih, bias_hh, weight_ln_ih,
    weight_ln_hh, bias_ln_ih, bias_ln_hh [4H]; weight_ln_c, bias_ln_c [H]; weight_hr [P, H]; weight_ci, weight_cf,
    weight_co (p_i, p_f, p_o) [H]; reset bool [B]; seed int64, 0-dim. A projection excludes zoneout_h: h' has H units,
    h_{t-1} has P.
    """
    if (bias_ih is None) != (bias_hh is None):
        raise RuntimeError("bias_ih and bias_hh must be given together")
    if weight_hr is not None and zoneout_h > 0:
        raise RuntimeError(f"zoneout_h must be 0 with a projection (weight_hr), got {zoneout_h}")

    def zoneout(new: Tensor, old: Tensor, rate: float, use: str) -> Tensor:
        if rate == 0:
            return new
        if not training:
            return rate * old + (1 - rate) * new
        return torch.where(hits(seed, use, rate, step, new, stream=stream), old, new)

    def drop_candidate(g: Tensor) -> Tensor:
        return _dropout(g, "candidate", candidate_dropout, step, seed, training=training, stream=stream)

    if reset is not None:
        h_0, c_0 = (x.masked_fill(reset.unsqueeze(1), 0) for x in (h_0, c_0))
    h = _dropout(h_0, "hidden", recurrent_dropout, 0, seed, training=training, stream=stream)
    weight_hh = _dropout(weight_hh, "weight", weight_dropout, 0, seed, training=training, stream=stream)
    z = _pre_activations(
        input, h, weight_ih, weight_hh, bias_ih, bias_hh, weight_ln_ih, weight_ln_hh, bias_ln_ih, bias_ln_hh, eps
    )
    _, _, _, o, c = _gates(
        z, c_0, weight_ci, weight_cf, weight_co, drop_candidate,
        open_gates=open_gates, activation=activation, recurrent_activation=recurrent_activation,
    )  # fmt: skip
    n = _norm(c, weight_ln_c, bias_ln_c, eps)
    h = o * _activate(n, activation)
    h_t = zoneout(h, h_0, zoneout_h, "zoneout_h")
    c_t = zoneout(c if bias_ln_ih is None else n, c_0, zoneout_c, "zoneout_c")
    return h_t if weight_hr is None else F.linear(h_t, weight_hr), c_t


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
    bias_ln_ih: Tensor | None = None,
    bias_ln_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    weight_ci: Tensor | None = None,
    weight_cf: Tensor | None = None,
    weight_co: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    reverse: bool = False,
    dropout: float = 0.0,
    variational: bool = False,
    recompute: int = 0,
    recurrent_dropout: float = 0.0,
    candidate_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    zoneout_h: float = 0.0,
    zoneout_c: float = 0.0,
    open_gates: int = 0,
    activation: int = 0,
    recurrent_activation: int = 0,
    training: bool = True,
    eps: float = 1e-5,
    stream: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer in one direction: ``(output [T, B, P], h_n [B, P], c_n [B, H])``, with :func:`lstm_cell` at every step.

    ``output[t] = m_y * h_t`` with output dropout (one mask for all t when ``variational``); ``h_n`` is not dropped.
    Sequence b has ``lengths[b]`` real steps (0..T, int64 [B]): outputs past them are zero, the input there is ignored,
    and ``h_n, c_n`` are the states after the last step processed. ``reverse`` runs from the last real step to step 0;
    each output stays at its own t. ``reset[t, b]`` zeroes the state of sequence b before its step t, in the order in
    which the steps run. ``recompute``, an option of the kernels that limits the memory of the backward pass, has no
    effect here.

    Shapes: input [T, B, I]; reset bool [T, B]; the others as in :func:`lstm_cell`.
    """
    weights = (
        weight_ih, _dropout(weight_hh, "weight", weight_dropout, 0, seed, training=training, stream=stream),
        bias_ih, bias_hh,
        weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c, bias_ln_ih, bias_ln_hh,
        weight_hr, weight_ci, weight_cf, weight_co,
    )  # fmt: skip
    past = None if lengths is None else past_the_end(lengths, input.shape[0])
    if past is not None:
        input = input.masked_fill(past.unsqueeze(-1), 0)

    h, c, outputs = h_0, c_0, []
    for t in reversed(range(input.shape[0])) if reverse else range(input.shape[0]):
        h_t, c_t = lstm_cell(
            input[t], h, c, *weights, None if reset is None else reset[t], seed, step=t,
            recurrent_dropout=recurrent_dropout, candidate_dropout=candidate_dropout, zoneout_h=zoneout_h,
            zoneout_c=zoneout_c, open_gates=open_gates, activation=activation,
            recurrent_activation=recurrent_activation, training=training, eps=eps, stream=stream,
        )  # fmt: skip
        y = _dropout(h_t, "output", dropout, 0 if variational else t, seed, training=training, stream=stream)
        if past is not None:
            ended = past[t].unsqueeze(1)
            h_t, c_t, y = torch.where(ended, h, h_t), torch.where(ended, c, c_t), y.masked_fill(ended, 0)
        h, c = h_t, c_t
        outputs.append(y)
    output = torch.stack(outputs[::-1] if reverse else outputs) if outputs else h_0.new_zeros(0, *h_0.shape)
    return output, h, c
