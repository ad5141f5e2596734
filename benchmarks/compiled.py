"""A training step through torch.compile; its cost is relative to eager."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .cases import Candidate, Case, Scale, layer_flops, sequences, shape_text, training
from .models import COMPILED, FULL, NORM, PEER, PLAIN, RATE, TRAINED, norm, plain
from .validation import compare, results

ONE_LAYER, TWO_LAYERS = "training step, compiled", "training step, compiled, two layers"
MODELS = {
    ONE_LAYER: {name: TRAINED[name] for name in (PEER, PLAIN, NORM, FULL)},
    TWO_LAYERS: {
        PEER: lambda H: nn.LSTM(H, H, 2),
        PLAIN: lambda H: plain(H, num_layers=2),
        FULL: lambda H: norm(H, num_layers=2, dropout=RATE),
    },
}


def compiled(scale: Scale) -> Iterator[Case]:
    if not scale.compiled:
        print("compiled is skipped: only the full scale has it, compiling takes half a minute a shape", flush=True)
    for T, B, H in scale.compiled:
        for num_layers, (group, models) in enumerate(MODELS.items(), 1):
            torch.compiler.reset()  # otherwise an earlier size would make the graph dynamic
            x, weight = sequences(T, B, H)
            flops, candidates = num_layers * layer_flops(T * B, H), {}
            for name, make in models.items():
                eager = make(H)
                if name == PEER:
                    candidates[name] = Candidate(training(eager, x, weight), flops)
                    continue
                graph = torch.compile(eager, fullgraph=True)
                seed = torch.tensor(1)  # fixed, because torch's compiler draws different numbers than eager
                compare(*(results(model, x.detach(), weight, seed=seed) for model in (graph, eager)))
                candidates[name] = Candidate(training(eager, x, weight, seed=seed), flops)
                candidates[name + COMPILED] = Candidate(training(graph, x, weight, seed=seed), flops, baseline=name)
            yield Case(group, shape_text(T, B, H), candidates)
