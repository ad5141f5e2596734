"""Peers that take minutes or a package: the loop compiled whole by torch, and haste's LSTM, on the CPU a loop too.

No dropout here, so that the very model that is timed is validated: another one would be compiled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lstm_fused import FusedLSTM, convert

from .cases import Candidate, Case, Scale, layer_flops, sequences, shape_text, training
from .models import EAGER, LAYER_NORM, PEER, TRAINED
from .peers import LayerNormLSTM
from .validation import compare, results


def loop(H: int) -> tuple[nn.Module, FusedLSTM]:
    """A layer-normed LSTM, and ours with the same weights."""
    theirs, ours = LayerNormLSTM(H, H, 0.0, 0.0), FusedLSTM(H, H, layer_norm=True)
    ours.load_state_dict({f"{name}_l0": value for name, value in theirs.cell.state_dict().items()})
    return theirs, ours


def compiled(H: int) -> tuple[nn.Module, FusedLSTM]:
    theirs, ours = loop(H)
    return torch.compile(theirs), ours


def haste(H: int) -> tuple[nn.Module, FusedLSTM]:
    from haste_pytorch import LayerNormLSTM as Haste

    theirs = Haste(H, H)
    return theirs, convert.from_haste(**{name: value.detach() for name, value in theirs.named_parameters()})


PEERS: dict[str, Callable[[int], tuple[nn.Module, FusedLSTM]]] = {
    EAGER: loop,
    "compiled LN-LSTM": compiled,
    "haste LayerNormLSTM": haste,
}


def others(scale: Scale) -> Iterator[Case]:
    if not scale.others:
        print("others is skipped: only the full scale has it, compiling takes minutes", flush=True)
    for T, B, H in scale.others:
        x, weight = sequences(T, B, H)
        models = {PEER: TRAINED[PEER](H), LAYER_NORM: FusedLSTM(H, H, layer_norm=True)}
        for name, make in PEERS.items():
            try:
                models[name] = validated(*make(H), x.detach(), weight)
            except AssertionError:
                raise
            except Exception as error:  # any error of a missing compiler or package
                print(f"{name} is skipped: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
        flops = layer_flops(T * B, H)
        candidates = {name: Candidate(training(model, x, weight), flops) for name, model in models.items()}
        yield Case("layer norm in other packages", shape_text(T, B, H), candidates)


def validated(theirs: nn.Module, ours: FusedLSTM, x: Tensor, weight: Tensor) -> nn.Module:
    """Output and gradient of the input; gradients of weights may be laid out otherwise."""
    compare(results(theirs, x, weight)[:2], results(ours, x, weight)[:2])
    return theirs
