"""The arguments of the modules: checked, and brought into the form in which they are used.

Every error is one sentence that names the argument, what it got and what it wanted, of the type that ``nn.LSTM`` raises
for the same mistake. What the ops check themselves (the lengths' shape and range, for instance) is not repeated here.
"""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ._types import DropoutPlace, Gate, LayerNorm


def _index(value: Any) -> int | None:
    """What Python takes as an index, as an int: NumPy's integers and tensors of one integer too. None: of no other."""
    if type(value) is int:  # torch.compile sees a symbol so, which has to stay one
        return value
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError: of a tensor of several
        return None


def integer(name: str, value: SupportsIndex) -> int:
    index = _index(value)
    if index is None:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    return index


def positive_int(name: str, value: SupportsIndex) -> int:
    value = integer(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be greater than zero, got {value}")
    return value


def instance(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}")


def boolean(name: str, value: bool) -> bool:
    """Not 0 and 1, as ``nn.LSTM``: they are numbers of another argument in a place that is not theirs."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def truth(name: str, value: object) -> bool:
    """Whatever Python finds true or false, as ``nn.LSTMCell`` takes its ``bias``."""
    try:
        return bool(value)
    except (RuntimeError, ValueError):  # an array of several
        raise TypeError(f"{name} must be true or false, got {type(value).__name__} of several values") from None


def _is_finite(value: object) -> bool:
    if not isinstance(value, (numbers.Real, Decimal)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int or a fraction beyond float
        return False


def rate(name: str, value: float) -> float:
    if not _is_finite(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)


def output_dropout_rate(value: float) -> float:
    """The one rate that may be 1, as in ``nn.LSTM``."""
    if not _is_finite(value) or not 0 <= value <= 1:
        raise ValueError(f"dropout must be a number in [0, 1], got {value!r}")
    return float(value)


def zoneout_rates(value: float | tuple[float, float]) -> tuple[float, float]:
    """``(rate_h, rate_c)``."""
    if not isinstance(value, (tuple, list)):
        both = rate("zoneout", value)
        return both, both
    if len(value) != 2:
        raise ValueError(f"zoneout must be a rate or a pair (rate_h, rate_c), got {len(value)} values")
    return rate("zoneout[0]", value[0]), rate("zoneout[1]", value[1])


def layer_norm_kind(value: bool | LayerNorm, bias: bool) -> Literal[False] | LayerNorm:
    if not isinstance(value, (bool, str)) or value not in (False, True, "ba2016", "carry"):
        raise ValueError(f"layer_norm must be False, True, 'ba2016' or 'carry', got {value!r}")
    if value == "carry" and not bias:
        raise ValueError("layer_norm must not be 'carry' without biases (bias=False), since its norms have them")
    return "ba2016" if value is True else value


def projection_size(value: SupportsIndex, hidden_size: int, zoneout_h: float) -> int:
    value = integer("proj_size", value)
    if not 0 <= value < hidden_size:
        raise ValueError(f"proj_size must be 0 or a positive int below hidden_size ({hidden_size}), got {value}")
    if value and zoneout_h:
        raise ValueError(
            f"zoneout of h must be 0 with a projection, which gives the previous h another size, got {zoneout_h}"
        )
    return value


def dropout_place(value: DropoutPlace) -> DropoutPlace:
    if value not in ("hidden", "candidate"):
        raise ValueError(f"recurrent_dropout_on must be 'hidden' or 'candidate', got {value!r}")
    return value


def gate_names(value: str | Iterable[str]) -> tuple[Gate, ...]:
    """Those of ``"i"``, ``"f"`` and ``"o"`` that are named, in this order."""
    names = list(value) if isinstance(value, Iterable) else [value]
    if not all(name in ("i", "f", "o") for name in names):
        raise ValueError(f"open_gates must name gates among 'i', 'f' and 'o', got {value!r}")
    order: tuple[Gate, ...] = ("i", "f", "o")
    return tuple(name for name in order if name in names)


def reset_tensor(reset: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """bool, of this shape, on the input's device."""
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset must be a bool tensor, got {type(reset).__name__}")
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must be a bool tensor, got {reset.dtype}")
    if reset.shape != shape:
        raise RuntimeError(f"reset must have shape {list(shape)}, got {list(reset.shape)}")
    if reset.device != device:
        raise RuntimeError(f"reset must be on the device of the input, {device}, got {reset.device}")


def forget_bias(value: float | None, bias: bool) -> float | None:
    if value is None:
        return None
    if not _is_finite(value) or abs(value) > torch.finfo(torch.float32).max:
        raise ValueError(f"forget_bias must be None or a finite number in float32, got {value!r}")
    if not bias:
        raise ValueError(f"forget_bias must be None when there are no biases (bias=False), got {value!r}")
    return float(value)


def epsilon(value: float) -> float:
    smallest = torch.finfo(torch.float32).tiny
    if not _is_finite(value) or value < smallest:
        raise ValueError(f"eps must be a finite number of at least {smallest:.2g}, got {value!r}")
    return float(value)


def input_tensor(value: Tensor, input_size: int, ranks: tuple[int, int], weight: Tensor) -> None:
    """``ranks``: the number of dimensions of one sequence's (or step's) input and of a batch's."""
    if not isinstance(value, Tensor):
        raise TypeError(f"input must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        raise ValueError(f"input must be a dense tensor, got {'a nested one' if value.is_nested else value.layout}")
    if value.dim() not in ranks:
        raise ValueError(f"input must be {ranks[0]}-D (unbatched) or {ranks[1]}-D, got {value.dim()}-D")
    if value.shape[-1] != input_size:
        raise RuntimeError(
            f"input must have {input_size} features (input_size) in its last dimension, got {value.shape[-1]}"
        )
    if value.dtype != weight.dtype or value.device != weight.device:
        _same_kind("input", value, weight, ValueError)


def state(
    hx: Any, leading: tuple[int, ...], sizes: tuple[int, int], weight: Tensor, ranks: tuple[int, ...] | None = None
) -> None:
    """``hx``: None, or ``(h_0, c_0)``, of shape ``leading`` and then one of ``sizes`` each.

    ``ranks``: those that nn.LSTMCell knows, no others.
    """
    if hx is None:
        return
    pair = isinstance(hx, (tuple, list)) and len(hx) == 2
    if not pair or not isinstance(hx[0], Tensor) or not isinstance(hx[1], Tensor):
        got = type(hx).__name__ + (f" of {len(hx)}" if isinstance(hx, (tuple, list)) else "")
        raise TypeError(f"hx must be a tuple of two tensors, (h_0, c_0), got {got}")
    for name, x, size in (("h_0", hx[0], sizes[0]), ("c_0", hx[1], sizes[1])):
        shape = (*leading, size)
        if x.shape != shape:
            error = RuntimeError if ranks is None or x.dim() in ranks else ValueError
            raise error(f"{name} in hx must have shape {list(shape)}, got {list(x.shape)}")
        if x.dtype != weight.dtype or x.device != weight.device:
            _same_kind(f"{name} in hx", x, weight, RuntimeError)


AUTOCAST = {torch.float32, torch.bfloat16, torch.float16}  # the dtypes that it converts


def autocast_is_on(value: Tensor) -> bool:
    """Whether autocast converts what ops on this tensor's device take."""
    if value.is_cpu:  # the quick way first: it is asked in every call
        return torch.is_autocast_enabled("cpu")
    device = value.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _same_kind(name: str, value: Tensor, weight: Tensor, wrong_dtype: type[Exception]) -> None:
    """Device and dtype of the weights; under autocast the ops bring float32 and half precision together."""
    if value.device != weight.device:
        raise RuntimeError(f"{name} must be on the device of the weights, {weight.device}, got {value.device}")
    if value.dtype == weight.dtype:
        return
    if not (autocast_is_on(value) and {value.dtype, weight.dtype} <= AUTOCAST):
        raise wrong_dtype(f"{name} must have the dtype of the weights, {weight.dtype}, got {value.dtype}")


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    """int64, 0-dim."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise TypeError(
                f"seed must be an int or a 0-dim int64 tensor, got {seed.dtype} of shape {list(seed.shape)}"
            )
        if seed.device != device:
            raise RuntimeError(f"seed must be on the device of the input, {device}, got {seed.device}")
        return seed
    index = None if isinstance(seed, bool) else _index(seed)
    if index is None:
        raise TypeError(f"seed must be an int or a 0-dim int64 tensor, got {type(seed).__name__}")
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"seed must fit in a signed 64-bit integer, got {index}")
    return torch.full((), index, dtype=torch.int64, device=device)  # on a GPU no copy, which the host would wait for


def lengths_tensor(lengths: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """int64, on the input's device."""
    if hasattr(lengths, "__array__") and not isinstance(lengths, Tensor):  # NumPy's, and what turns into one
        lengths = torch.as_tensor(lengths)
    if isinstance(lengths, Tensor):
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be an integer tensor or a list of ints, got {lengths.dtype}")
        if lengths.is_meta and device.type != "meta":
            raise RuntimeError(f"lengths must have values, on {device} or another device, got a tensor on meta")
        return to_device(lengths.to(torch.int64), device)
    if not isinstance(lengths, (list, tuple, range)):
        raise TypeError(f"lengths must be an integer tensor or a list of ints, got {type(lengths).__name__}")
    values = [None if isinstance(value, bool) else _index(value) for value in lengths]
    for value, given in zip(values, lengths, strict=True):
        if value is None:
            raise TypeError(f"lengths must be an integer tensor or a list of ints, got {given!r} in the list")
        if not 0 <= value < 2**63:
            raise RuntimeError(f"lengths must be in 0..T, got {value} in the list")
    return to_device(torch.tensor(values, dtype=torch.int64), device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """From the host to a GPU without waiting for it: CUDA takes what is not pinned before the call returns."""
    return values.to(device, non_blocking=values.is_cpu)


def step_number(value: SupportsIndex) -> int:
    value = integer("step", value)
    if not 0 <= value < 2**32:
        raise ValueError(f"step must be at least 0 and below 2**32, got {value}")
    return value


def packed(value: PackedSequence) -> None:
    """What ``pad_packed_sequence`` takes for granted: a damaged one made by hand would crash it.

    Indices on a GPU are not read: the host would wait for it.
    """
    if torch._C._get_tracing_state() is not None:  # a graph would keep the sizes of this one
        return
    sizes, data = value.batch_sizes, value.data
    counts = sizes.tolist() if sizes.dim() == 1 and sizes.dtype == torch.int64 and sizes.device.type == "cpu" else []
    falls = all(a >= b for a, b in itertools.pairwise(counts))
    if not counts or counts[-1] < 1 or not falls or data.dim() < 1 or sum(counts) != data.shape[0]:
        raise RuntimeError(
            "input must be a PackedSequence with batch_sizes on the CPU that never rise, are all above 0 and add up to "
            f"its rows of data, got {counts or sizes} for data of shape {list(data.shape)}"
        )
    for name, indices in (("sorted_indices", value.sorted_indices), ("unsorted_indices", value.unsorted_indices)):
        if indices is None:
            continue
        read = indices.is_cpu
        if sorted(indices.tolist()) != list(range(counts[0])) if read else list(indices.shape) != counts[:1]:
            raise RuntimeError(f"input must be a PackedSequence whose {name} order its {counts[0]} sequences")
