"""Cases of the other features of a layer: structure, lengths, kinds of dropout, bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .cases import Candidate, Case, Scale, layer_flops, sequences, shape_text, training
from .models import (
    DROPOUTS,
    FULL,
    LAYER_NORM,
    NORM,
    PEER,
    PLAIN,
    RECOMPUTE,
    RECOMPUTED,
    TRAINED,
    Layer,
    full,
    norm,
    plain,
    why_not,
)


def structures(scale: Scale) -> Iterator[Case]:
    """Two layers; two directions: twice the work of a layer."""
    for group, arguments in {"two layers": {"num_layers": 2}, "bidirectional": {"bidirectional": True}}.items():
        for T, B, H in scale.structures:
            x, weight = sequences(T, B, H)
            if "bidirectional" in arguments:
                weight = torch.cat([weight, weight], -1)
            models = {PEER: nn.LSTM(H, H, **arguments), PLAIN: plain(H, **arguments), NORM: norm(H, **arguments)}
            flops = 2 * layer_flops(T * B, H)
            candidates = {name: Candidate(training(model, x, weight), flops) for name, model in models.items()}
            yield Case(group, shape_text(T, B, H), candidates)


def half_lengths(T: int, B: int) -> Tensor:
    """Evenly spread, in random order; they average half of T."""
    lengths = ((torch.arange(B) + 0.5) * T / B).round().to(torch.int64).clamp(min=1)
    return lengths[torch.randperm(B)]


class Packed(nn.Module):
    """Packs before the LSTM, as callers of nn.LSTM do."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, input: Tensor, lengths: Tensor) -> Tensor:
        return self.lstm(pack_padded_sequence(input, lengths, enforce_sorted=False))[0].data


def packed(scale: Scale) -> Iterator[Case]:
    for T, B, H in scale.structures:
        lengths = half_lengths(T, B)
        x, weight = torch.randn(T, B, H, requires_grad=True), torch.randn(int(lengths.sum()), H)
        flops = layer_flops(int(lengths.sum()), H)
        candidates = {
            name: Candidate(training(Packed(TRAINED[name](H)), x, weight, lengths=lengths), flops)
            for name in (PEER, PLAIN, NORM)
        }
        yield Case("packed, mixed lengths", shape_text(T, B, H), candidates)


def lengths(scale: Scale) -> Iterator[Case]:
    """A batch whose lengths average half of T; its cost is a share of that of the full batch."""
    for T, B, H in scale.structures:
        half = half_lengths(T, B)
        x, weight = sequences(T, B, H)
        candidates = {PEER: Candidate(training(TRAINED[PEER](H), x, weight), layer_flops(T * B, H))}
        for name in (PLAIN, FULL):
            model = TRAINED[name](H)
            candidates[name] = Candidate(training(model, x, weight), layer_flops(T * B, H))
            run = training(model, x, weight, lengths=half)
            candidates[f"{name}, half the steps"] = Candidate(run, layer_flops(int(half.sum()), H), baseline=name)
        yield Case("lengths that average half of T", shape_text(T, B, H), candidates)


def dropouts(scale: Scale) -> Iterator[Case]:
    """Each kind of dropout on top of the layer-normed step."""
    for T, B, H in scale.grid:
        x, weight = sequences(T, B, H)
        flops = layer_flops(T * B, H)
        candidates = {
            PEER: Candidate(training(nn.LSTM(H, H), x, weight), flops),
            LAYER_NORM: Candidate(training(Layer(H), x, weight), flops),
        }
        for name, options in DROPOUTS.items():
            candidates[name] = Candidate(training(Layer(H, **options), x, weight), flops, baseline=LAYER_NORM)
        yield Case("dropout on top of layer norm", shape_text(T, B, H), candidates)


def recompute(scale: Scale) -> Iterator[Case]:
    """A training step of a long sequence that computes its segments again; its cost is that without."""
    for T, B, H in scale.long:
        x, weight = sequences(T, B, H)
        flops = layer_flops(T * B, H)
        candidates = {name: Candidate(training(TRAINED[name](H), x, weight), flops) for name in (PEER, *RECOMPUTED)}
        for name, make in RECOMPUTED.items():
            candidates[name + RECOMPUTE] = Candidate(training(make(H), x, weight), flops, baseline=name)
        yield Case("recomputing", shape_text(T, B, H), candidates)


def bfloat16(scale: Scale) -> Iterator[Case]:
    """A training step in bfloat16; its cost is that in float32."""
    dtype = torch.bfloat16
    reason = why_not(plain, dtype=dtype)
    if reason is not None:
        print(f"bfloat16 is skipped: {reason}", flush=True)
        return
    makers: dict[str, Callable[..., nn.Module]] = {PEER: lambda H, dtype=None: nn.LSTM(H, H, dtype=dtype)}
    makers |= {PLAIN: plain, FULL: full}
    missing = why_not(makers[PEER], dtype=dtype)  # if oneDNN has no primitive for it
    if missing is not None:
        print(f"bfloat16 is without that of {PEER}: {missing}", flush=True)
    for T, B, H in scale.grid:
        if H < 256:
            continue
        x, weight = sequences(T, B, H)
        half_x, half_weight = x.detach().to(dtype).requires_grad_(), weight.to(dtype)
        flops, candidates = layer_flops(T * B, H), {}
        for name, make in makers.items():
            candidates[name] = Candidate(training(make(H), x, weight), flops)
            if name == PEER and missing is not None:
                continue
            run = training(make(H, dtype=dtype), half_x, half_weight)
            candidates[f"{name}, bfloat16"] = Candidate(run, flops, baseline=name)
        yield Case("bfloat16", shape_text(T, B, H), candidates)
