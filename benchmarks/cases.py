"""A case is a set of candidates timed together on one shape. Here: the grid of shapes, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lstm_fused import FusedLSTM, FusedLSTMCell

from .models import EAGER, FULL, NORM, ONNXRUNTIME, PEER, PLAIN, SCRIPT, TRAINED, norm
from .peers import onnxruntime_lstm

Shape = tuple[int, int, int]  # T, B and H; I = H

# Language models, wide and narrow batches, long sequences: the kernels were tuned on these ...
TUNED = ((35, 20, 192), (35, 20, 640), (64, 32, 256), (128, 64, 128), (100, 2, 256), (64, 64, 512), (512, 8, 64))
# ... but not on these, which include odd sizes.
UNSEEN = ((35, 20, 200), (35, 20, 650), (50, 16, 384), (20, 7, 300), (200, 3, 96), (16, 128, 768))
GRID = (*TUNED, *UNSEEN)


@dataclass(frozen=True)
class Scale:
    """The extent of a run."""

    grid: tuple[Shape, ...]
    structures: tuple[Shape, ...]  # two layers, two directions, mixed lengths
    streaming: tuple[int, ...]  # hidden sizes
    memory: tuple[Shape, ...]
    long: tuple[Shape, ...]  # for which recomputing saves memory
    peers: tuple[str, ...]  # the slow ones
    compiled: tuple[Shape, ...]
    others: tuple[Shape, ...]  # for peers that take minutes or need a package
    accuracy: tuple[Shape, ...]
    seconds: float  # to time a case, unless its rounds need more
    rounds: int  # minimum


SCALES = {
    "full": Scale(
        grid=GRID,
        structures=((64, 32, 256), (128, 64, 128), (64, 64, 512)),
        streaming=(128, 256, 512, 1024),
        memory=((256, 64, 256), (128, 64, 128), (64, 64, 512)),
        long=((1024, 16, 256),),
        peers=(SCRIPT, EAGER),
        compiled=((8, 4, 64), *TUNED[:1], *TUNED[2:5], *TUNED[6:]),
        others=TUNED[:1],
        accuracy=((35, 20, 192), (128, 64, 128)),  # the second has many rows in the sums of the weight gradients
        seconds=6.0,
        rounds=7,
    ),
    "quick": Scale(
        grid=((35, 20, 192), (64, 32, 256), (128, 64, 128), (100, 2, 256)),
        structures=((64, 32, 256),),
        streaming=(128, 256, 512, 1024),
        memory=((256, 64, 256),),
        long=((512, 8, 64),),
        peers=(SCRIPT,),
        compiled=(),
        others=(),
        accuracy=((35, 20, 192), (128, 64, 128)),
        seconds=0.6,
        rounds=4,
    ),
    "smoke": Scale(
        grid=((3, 2, 8), (2, 3, 256)),
        structures=((4, 2, 8),),
        streaming=(8,),
        memory=((64, 32, 64),),
        long=((128, 16, 64),),
        peers=(EAGER,),
        compiled=(),
        others=(),
        accuracy=((35, 20, 192),),
        seconds=0.0,
        rounds=1,
    ),
}


@dataclass(frozen=True)
class Candidate:
    """One call to time."""

    run: Callable[[], object]
    flops: float  # of the matrix products of a call
    baseline: str | None = None  # the candidate whose cost is 1
    threads: int = 1


@dataclass(frozen=True)
class Case:
    group: str
    shape: str
    candidates: dict[str, Candidate]


def shape_text(T: int, B: int, H: int) -> str:
    return f"T={T} B={B} H={H}"


def layer_flops(steps: int, H: int, training: bool = True) -> float:
    """FLOPs of the matrix products of a layer with H inputs, over T * B steps. Backward has twice those of forward."""
    return (3 if training else 1) * 2.0 * steps * 4 * H * (H + H)


def training(model: nn.Module, leaf: Tensor, weight: Tensor, **arguments: Any) -> Callable[[], None]:
    """Forward and backward of the output times `weight`; gradients of the input and of every parameter."""

    def step() -> None:
        leaf.grad = None
        model.zero_grad(set_to_none=True)
        output = model(leaf, **arguments)
        (output[0] if isinstance(output, tuple) else output).backward(weight)

    return step


def inference(model: nn.Module, *inputs: Any) -> Callable[[], None]:
    model.eval()

    def run() -> None:
        with torch.no_grad():
            model(*inputs)

    return run


def in_onnxruntime(H: int, *inputs: Any) -> dict[str, Callable[[], object]]:
    """The call by its name; an empty dict and a message if onnxruntime is not installed."""
    try:
        model = onnxruntime_lstm(nn.LSTM(H, H))
    except ImportError as error:
        print(f"{ONNXRUNTIME} is skipped: {error}", flush=True)
        return {}
    return {ONNXRUNTIME: lambda: model(*inputs)}


def sequences(T: int, B: int, H: int) -> tuple[Tensor, Tensor]:
    """An input to differentiate, and the gradient of the output."""
    return torch.randn(T, B, H, requires_grad=True), torch.randn(T, B, H)


def training_grid(scale: Scale) -> Iterator[Case]:
    for T, B, H in scale.grid:
        x, weight = sequences(T, B, H)
        runs = {name: training(TRAINED[name](H), x, weight) for name in (PEER, PLAIN, NORM, FULL, *scale.peers)}
        flops = layer_flops(T * B, H)
        yield Case("training step", shape_text(T, B, H), {name: Candidate(run, flops) for name, run in runs.items()})


def forward_grid(scale: Scale) -> Iterator[Case]:
    for T, B, H in scale.grid:
        x = torch.randn(T, B, H)
        runs = {name: inference(TRAINED[name](H), x) for name in (PEER, PLAIN, NORM)} | in_onnxruntime(H, x)
        flops = layer_flops(T * B, H, training=False)
        yield Case("inference", shape_text(T, B, H), {name: Candidate(run, flops) for name, run in runs.items()})


def streaming(scale: Scale) -> Iterator[Case]:
    """One step of one sequence: latency."""
    for H in scale.streaming:
        x, state = torch.randn(1, 1, H), (torch.randn(1, 1, H), torch.randn(1, 1, H))
        cell_state = (state[0][0], state[1][0])
        runs = {
            PEER: inference(nn.LSTM(H, H), x, state),
            "nn.LSTMCell": inference(nn.LSTMCell(H, H), x[0], cell_state),
            "FusedLSTM": inference(FusedLSTM(H, H), x, state),
            "FusedLSTMCell": inference(FusedLSTMCell(H, H), x[0], cell_state),
            "FusedLSTM, layer norm": inference(norm(H), x, state),
        } | in_onnxruntime(H, x, state)
        flops = layer_flops(1, H, training=False)
        yield Case("one step, one sequence", f"H={H}", {name: Candidate(run, flops) for name, run in runs.items()})


def two_threads(scale: Scale) -> Iterator[Case]:
    """A training step on two threads; its cost is relative to one thread."""

    def on(threads: int, run: Callable[[], None]) -> Callable[[], None]:
        def set_and_run() -> None:
            torch.set_num_threads(threads)
            run()

        return set_and_run

    for T, B, H in scale.grid:
        x, weight = sequences(T, B, H)
        flops, candidates = layer_flops(T * B, H), {}
        for name in (PEER, PLAIN, FULL):
            run, alone = training(TRAINED[name](H), x, weight), f"{name}, one thread"
            candidates[name] = Candidate(on(2, run), flops, alone, threads=2)
            candidates[alone] = Candidate(on(1, run), flops)
        yield Case("training step, two threads", shape_text(T, B, H), candidates)
        torch.set_num_threads(1)
