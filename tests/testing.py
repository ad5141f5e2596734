"""Shared by all tests: devices, dtypes, tolerances, options, and sample inputs with every set of options."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused import FusedLSTM

DEVICES = (os.environ.get("LSTM_FUSED_TEST_DEVICE", "cpu"),)  # "cuda" in `make test-gpu`
DTYPES = (torch.float64, torch.float32)

# Largest error between two ways to compute the same in one dtype, relative to the largest expected value.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}

PATIENCE = 600  # timeout in seconds for a process, which on a busy machine takes a minute to import torch

# The instruction sets that kernels are compiled for, and those of them that torch finds this CPU to have.
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16")
CPU_ISAS = {"AVX2": ISAS[:2], "AVX512": ISAS[:3]}.get(torch.backends.cpu.get_cpu_capability(), ISAS[:1])
if len(CPU_ISAS) == 3 and torch.cpu._is_avx512_bf16_supported():
    CPU_ISAS = ISAS

# The options of an op by name, each with the arguments that turn it on; the first change tensors: see `layer_case`.
OPTIONS: dict[str, dict[str, Any]] = {
    "layer_norm": {},
    "carry": {},  # the other kind of layer norm
    "no_bias": {},
    "peephole": {},
    "projection": {},
    "initial_state": {},
    "lengths": {},
    "reset": {},
    "reverse": {"reverse": True},
    "dropout": {"dropout": 0.3},
    "variational": {"dropout": 0.4, "variational": True},
    "recurrent_dropout": {"recurrent_dropout": 0.35},
    "candidate_dropout": {"candidate_dropout": 0.3},
    "weight_dropout": {"weight_dropout": 0.4},
    "zoneout_h": {"zoneout_h": 0.25},
    "zoneout_c": {"zoneout_c": 0.45},
    "open_gates": {"open_gates": 1},
    "activation": {"activation": 1},
    "recurrent_activation": {"recurrent_activation": 1},
    "recompute": {"recompute": 3},
    "eval": {"training": False},
}
NOT_OF_A_CELL = {"lengths", "reverse", "dropout", "variational", "recompute"}
# Pairs that are invalid, or the same case as one of the two alone.
EXCLUSIVE = ({"projection", "zoneout_h"}, {"layer_norm", "carry"}, {"no_bias", "carry"})
# As many options as can be combined: with "ba2016", zoneout of h and other gates, and with "carry", a projection and
# another activation.
_APART = ("no_bias", "recompute", "eval")  # each of which is a case of its own
EVERYTHING = tuple(name for name in OPTIONS if name not in (*_APART, "carry", "projection", "activation"))
_NOT_WITH_CARRY = ("layer_norm", "zoneout_h", "recurrent_activation")
EVERYTHING_ELSE = tuple(name for name in OPTIONS if name not in (*_APART, *_NOT_WITH_CARRY))


# The same options of the modules, as the constructor arguments with which a layer calls its op with those in OPTIONS.
# "zoneout_h" and "zoneout_c" are one argument: see `module_options`.
MODULE_OPTIONS: dict[str, dict[str, Any]] = {
    "layer_norm": {"layer_norm": True},
    "carry": {"layer_norm": "carry"},
    "no_bias": {"bias": False},
    "peephole": {"peephole": True},
    "projection": {"proj_size": 3},
    "dropout": OPTIONS["dropout"],  # acts between layers alone
    "variational": OPTIONS["variational"],
    "recurrent_dropout": OPTIONS["recurrent_dropout"],
    "candidate_dropout": {
        "recurrent_dropout": OPTIONS["candidate_dropout"]["candidate_dropout"],
        "recurrent_dropout_on": "candidate",
    },
    "weight_dropout": OPTIONS["weight_dropout"],
    "zoneout_h": {},
    "zoneout_c": {},
    "open_gates": {"open_gates": "i"},
    "activation": {"activation": "relu"},
    "recurrent_activation": {"recurrent_activation": "hard_sigmoid"},
    "recompute": {"recompute": True},
}


def module_options(*on: str) -> dict[str, Any]:
    """Constructor arguments of a module with the options ``on``."""
    arguments: dict[str, Any] = {}
    for name in on:
        arguments |= MODULE_OPTIONS[name]
    rates = tuple(OPTIONS[name][name] if name in on else 0.0 for name in ("zoneout_h", "zoneout_c"))
    return arguments | ({"zoneout": rates} if any(rates) else {})


CELL_MODULE_OPTIONS = tuple(name for name in MODULE_OPTIONS if name not in {*NOT_OF_A_CELL, "projection"})
RANDOM_OPTIONS = tuple(
    name for name in MODULE_OPTIONS if "dropout" in name or "zoneout" in name or name == "variational"
)

# What tests of a whole model run over: no option; both kinds of layer norm, each with many others; recompute.
MODULE_SETS = {
    "default": {},
    "ba2016": module_options("layer_norm", "dropout", "recurrent_dropout", "zoneout_h", "zoneout_c"),
    "carry": module_options(
        "carry",
        "projection",
        "variational",
        "candidate_dropout",
        "zoneout_c",
        "weight_dropout",
        "peephole",
        "open_gates",
        "activation",
    ),
    "recompute": module_options("layer_norm", "dropout", "recurrent_dropout", "recompute"),
}

# What nn.LSTM takes too, with nothing random that differs between the two.
NN_LSTM_OPTIONS = {
    "default": {},
    "no_bias": {"bias": False},
    "layers": {"num_layers": 2},
    "dropout_of_all": {"num_layers": 2, "dropout": 1.0},
    "bidirectional": {"bidirectional": True},
    "batch_first": {"batch_first": True},
    "projection": {"proj_size": 3},
    "all": {"proj_size": 3, "num_layers": 2, "bidirectional": True, "batch_first": True},
}


def compatible(on: Iterable[str]) -> bool:
    return not any(pair <= set(on) for pair in EXCLUSIVE)


def option_sets(of_a_cell: bool = False) -> list[tuple[str, ...]]:
    """No option, every one, every pair, and all at once.

    The last in training, with a fresh output mask a step, in eval, and computed again for the backward pass.
    """
    names = [name for name in OPTIONS if not (of_a_cell and name in NOT_OF_A_CELL)]
    all_at_once = []
    for everything in (EVERYTHING, EVERYTHING_ELSE):
        these = tuple(name for name in everything if name in names)
        all_at_once += [these, (*these, "eval")]
        if not of_a_cell:  # "variational" overrides "dropout": once without it
            fresh = tuple(name for name in these if name != "variational")
            all_at_once += [fresh, (*these, "recompute"), (*fresh, "recompute")]
    pairs = (pair for pair in itertools.combinations(names, 2) if compatible(pair))
    return [(), *((n,) for n in names), *pairs, *all_at_once]


def label(on: tuple[str, ...]) -> str:
    """The name of a set of options in a test's id."""
    if len(on) > 3:
        fresh = "dropout" in on and "variational" not in on
        parts = {"fresh": fresh, "recompute": "recompute" in on, "eval": "eval" in on}
        return "+".join(["everything_else" if "carry" in on else "everything", *(k for k, v in parts.items() if v)])
    return "+".join(on) or "default"


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Random numbers in float64 on the CPU, the same for every dtype and device."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_case(
    on: Iterable[str] = (),
    *,
    T: int = 4,
    B: int = 3,
    I: int = 3,  # noqa: E741
    H: int = 5,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 1,
) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    """Arguments of `ops.lstm_layer` with the options ``on``: the tensors by name, and the other arguments by name."""
    on = set(on)
    scale = H**-0.5
    P = (H + 1) // 2 if "projection" in on else H
    tensors: dict[str, Tensor | None] = {
        "input": random(T, B, I, seed=seed),
        "h_0": random(B, P, seed=seed + 1) * ("initial_state" in on),
        "c_0": random(B, H, seed=seed + 2) * ("initial_state" in on),
        "weight_ih": random(4 * H, I, seed=seed + 3, scale=scale),
        "weight_hh": random(4 * H, P, seed=seed + 4, scale=scale),
    }
    if not {"no_bias", "carry"} & on:
        tensors["bias_ih"] = random(4 * H, seed=seed + 5, scale=scale)
        tensors["bias_hh"] = random(4 * H, seed=seed + 6, scale=scale)
    if {"layer_norm", "carry"} & on:
        tensors["weight_ln_ih"] = 1 + random(4 * H, seed=seed + 7, scale=0.3)
        tensors["weight_ln_hh"] = 1 + random(4 * H, seed=seed + 8, scale=0.3)
        tensors["weight_ln_c"] = 1 + random(H, seed=seed + 9, scale=0.3)
        tensors["bias_ln_c"] = random(H, seed=seed + 10, scale=0.3)
    if "carry" in on:
        tensors["bias_ln_ih"] = random(4 * H, seed=seed + 11, scale=0.3)
        tensors["bias_ln_hh"] = random(4 * H, seed=seed + 12, scale=0.3)
    if "projection" in on:
        tensors["weight_hr"] = random(P, H, seed=seed + 13, scale=scale)
    if "peephole" in on:
        for k, name in enumerate(("weight_ci", "weight_cf", "weight_co")):
            tensors[name] = random(H, seed=seed + 14 + k, scale=0.5)
    for name, tensor in tensors.items():
        wanted = "initial_state" in on or name not in ("h_0", "c_0")
        tensors[name] = tensor.to(device, dtype).requires_grad_(wanted)
    if "lengths" in on:  # one full, one short, one empty, then between
        lengths = torch.tensor([(T, T // 2, 0, T - 1)[b % 4] for b in range(B)], dtype=torch.int64)
        tensors["lengths"] = lengths.clamp(min=0).to(device)
    if "reset" in on:
        tensors["reset"] = (random(T, B, seed=seed + 17) > 0.5).to(device)
    tensors["seed"] = torch.tensor(seed + (7 << 40), device=device)
    options: dict[str, Any] = {"stream": 3}
    for name, arguments in OPTIONS.items():
        options |= arguments if name in on else {}
    return tensors, options


def cell_case(
    on: Iterable[str] = (), *, step: int = 2, **sizes: Any
) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
    """As `layer_case`, of `ops.lstm_cell`."""
    tensors, options = layer_case(on, T=1, **sizes)
    tensors["input"] = tensors["input"].detach()[0].requires_grad_()
    if "reset" in tensors:
        tensors["reset"] = tensors["reset"][0]
    return tensors, options | {"step": step}


def run(function: Callable[..., Any], tensors: dict[str, Tensor | None], options: dict[str, Any]) -> dict[str, Tensor]:
    """Results and gradients of ``function``, by name, for a loss that weights its results randomly."""
    results = function(**tensors, **options)
    names = ("output", "h_n", "c_n")[-len(results) :]
    loss = sum((r * random(*r.shape, seed=100 + k).to(r)).sum() for k, r in enumerate(results))
    inputs = {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    else:  # no steps: the initial state came out
        gradients = [torch.zeros_like(x) for x in inputs.values()]
    out = {name: r.detach() for name, r in zip(names, results, strict=True)}
    return out | {f"d_{name}": g for name, g in zip(inputs, gradients, strict=True)}


def positional(
    function: Callable[..., Any], tensors: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Callable[..., Any], list[Tensor]]:
    """``function`` of only the differentiated tensors, and those tensors: arguments of gradcheck."""
    names = [name for name, x in tensors.items() if x is not None and x.requires_grad]
    values = [tensors[name] for name in names]
    return lambda *values: function(**tensors | dict(zip(names, values, strict=True)), **options), values


def op_arguments(op: str, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Every argument of a registered op, by position and by keyword: from ``values``, else its default, else None."""
    arguments = getattr(torch.ops.lstm_fused, op).default._schema.arguments
    given = {a.name: values.get(a.name, a.default_value) for a in arguments}
    by_position = tuple(given[a.name] for a in arguments if not a.kwarg_only)
    return by_position, {a.name: given[a.name] for a in arguments if a.kwarg_only}


def named_results(op: str, results: Iterable[Tensor]) -> dict[str, Tensor]:
    """What a registered op returned, by the names of its schema."""
    return dict(zip((r.name for r in getattr(torch.ops.lstm_fused, op).default._schema.returns), results, strict=True))


def small_lstm(device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any) -> tuple[FusedLSTM, Tensor]:
    """A bidirectional module of two layers, and an input for it: T = 6, B = 4, I = 3, H = 5."""
    module = FusedLSTM(3, 5, 2, bidirectional=True, dtype=dtype, device=device, **options)
    return module, random(6, 4, 3, seed=1).to(device, dtype)


def strided(x: Tensor) -> Tensor:
    """The same values as every second element of a larger block, with reversed order of dimensions in memory."""
    if x.dim() == 0:
        return x
    order = list(reversed(range(x.dim())))
    block = x.permute(order).repeat_interleave(2, dim=-1)
    block[..., 1::2] = torch.nan if x.is_floating_point() else 10**9
    return block[..., ::2].permute(order)


def assert_close(actual: Any, expected: Any, tolerance: float | None = None, name: str = "value") -> None:
    """Tensors, or containers of them, equal within the dtype's tolerance, a share of the largest value."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_close(actual[key], expected[key], tolerance, key)
    elif isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for k, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_close(a, e, tolerance, f"{name}[{k}]")
    else:
        assert (actual.shape, actual.dtype, actual.device) == (expected.shape, expected.dtype, expected.device), name
        tolerance = TOLERANCE.get(expected.dtype, 0.0) if tolerance is None else tolerance
        largest = expected.detach().double().nan_to_num(0, 0, 0).abs().max().item() if expected.numel() else 0.0
        largest = max(largest, 0.1)  # what should be zero may be rounding
        torch.testing.assert_close(
            actual, expected, rtol=tolerance, atol=tolerance * largest, msg=lambda text: f"{name}: {text}"
        )


def assert_same_bits(
    actual: dict[str, Tensor] | Iterable[Tensor], expected: dict[str, Tensor] | Iterable[Tensor]
) -> None:
    assert_close(actual, expected, tolerance=0.0)
    pairs = zip(*(x.values() if isinstance(x, dict) else x for x in (actual, expected)), strict=True)
    for a, e in pairs:  # as integers: -0 is not 0, and a NaN is itself
        assert torch.equal(a.flatten().view(torch.uint8), e.flatten().view(torch.uint8))


# torch's errors for a precision that it does not support on this CPU.
_NOT_ON_THIS_CPU = re.compile(
    "could not create a primitive|path needs (a|the) cpu|not implemented for '(BFloat16|Half)'"
)


def of_peer(call: Callable[[], Any]) -> Any:
    """The result of torch's own module in ``call``, or None if torch does not support it on this CPU.

    In half precision torch's own modules may need a primitive of oneDNN that not every CPU has: on AVX2, or with
    ONEDNN_MAX_CPU_ISA=AVX2, there is none for ``nn.LSTM`` under autocast, which only a call shows. Such a test skips
    the comparison alone; it still compares our result with float64. Every other error is raised.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # flags() sets flags of GPUs too
            with torch.backends.mkldnn.flags(enabled=True):  # which a product without a primitive turns off for good
                return call()
    except RuntimeError as error:
        if not re.search(_NOT_ON_THIS_CPU, str(error)):
            raise
        return None


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Records the names and options of our ops that run in the context, in order."""
    calls = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "lstm_fused":
                calls.append((func._opname, kwargs or {}))
            return func(*args, **kwargs or {})

    with Record():
        yield calls
