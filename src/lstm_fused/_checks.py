"""Checks of the modules' arguments, which return them in the form in which they are used.

Every error is one sentence that names the argument, what it got and what it wanted, of the type that ``nn.LSTM`` raises
for the same mistake. What the ops check themselves (the lengths' shape and range, for instance) is not repeated here.
"""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ._types import Gate, LayerNorm


def _index(value: Any) -> int | None:
    """An int from anything that Python accepts as an index, such as a NumPy integer or a tensor of one; or None."""
    if type(value) is int:  # under torch.compile this may be a symbol, which must stay one
        return value
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor of several values
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
    """Like ``nn.LSTM``, refuses 0 and 1: they are likely another argument's value in the wrong place."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def truth(name: str, value: object) -> bool:
    """Any value with a truth value, which is how ``nn.LSTMCell`` reads ``bias``."""
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
    """The only rate that can be 1, as in ``nn.LSTM``."""
    if not _is_finite(value) or not 0 <= value <= 1:
        raise ValueError(f"dropout must be a number in [0, 1], got {value!r}")
    return float(value)


def zoneout_rates(name: str, value: float | tuple[float, float]) -> tuple[float, float]:
    """``(rate_h, rate_c)``."""
    if not isinstance(value, (tuple, list)):
        both = rate(name, value)
        return both, both
    if len(value) != 2:
        raise ValueError(f"{name} must be a rate or a pair (rate_h, rate_c), got {len(value)} values")
    return rate(f"{name}[0]", value[0]), rate(f"{name}[1]", value[1])


def layer_norm_kind(name: str, value: bool | LayerNorm) -> Literal[False] | LayerNorm:
    if not isinstance(value, (bool, str)) or value not in (False, True, "ba2016", "carry"):
        raise ValueError(f"{name} must be False, True, 'ba2016' or 'carry', got {value!r}")
    return "ba2016" if value is True else value


def projection_size(value: SupportsIndex, hidden_size: int) -> int:
    value = integer("proj_size", value)
    if not 0 <= value < hidden_size:
        raise ValueError(f"proj_size must be 0 or a positive int below hidden_size ({hidden_size}), got {value}")
    return value


def one_of(*values: str) -> Callable[[str, str], str]:
    """The check of an option that is one of these words."""

    def check(name: str, value: str) -> str:
        if value not in values:
            raise ValueError(f"{name} must be {' or '.join(map(repr, values))}, got {value!r}")
        return value

    return check


def gate_names(name: str, value: str | Iterable[str]) -> tuple[Gate, ...]:
    """The named gates in the order i, f, o."""
    given = list(value) if isinstance(value, Iterable) else [value]
    if not all(gate in ("i", "f", "o") for gate in given):
        raise ValueError(f"{name} must name gates among 'i', 'f' and 'o', got {value!r}")
    order: tuple[Gate, ...] = ("i", "f", "o")
    return tuple(gate for gate in order if gate in given)


def reset_tensor(reset: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Requires a bool tensor of this shape on the input's device."""
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset must be a bool tensor, got {type(reset).__name__}")
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must be a bool tensor, got {reset.dtype}")
    if reset.shape != shape:
        raise RuntimeError(f"reset must have shape {list(shape)}, got {list(reset.shape)}")
    if reset.device != device:
        raise RuntimeError(f"reset must be on the device of the input, {device}, got {reset.device}")


def forget_bias(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not _is_finite(value) or abs(value) > torch.finfo(torch.float32).max:
        raise ValueError(f"{name} must be None or a finite number in float32, got {value!r}")
    return float(value)


def epsilon(name: str, value: float) -> float:
    smallest = torch.finfo(torch.float32).tiny
    if not _is_finite(value) or value < smallest:
        raise ValueError(f"{name} must be a finite number of at least {smallest:.2g}, got {value!r}")
    return float(value)


def input_tensor(value: Tensor, input_size: int, ranks: tuple[int, int], weight: Tensor) -> None:
    """``ranks``: the number of dimensions without and with a batch."""
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
    """Requires ``hx`` to be None, or ``(h_0, c_0)`` of the shapes ``(*leading, size)``.

    ``ranks``: the numbers of dimensions that nn.LSTMCell accepts; with another one it raises ValueError.
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


AUTOCAST = {torch.float32, torch.bfloat16, torch.float16}  # the dtypes that autocast converts


def autocast_is_on(value: Tensor) -> bool:
    """Whether autocast converts the arguments of ops on this tensor's device."""
    if value.is_cpu:  # first, because this runs in every call
        return torch.is_autocast_enabled("cpu")
    device = value.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _same_kind(name: str, value: Tensor, weight: Tensor, wrong_dtype: type[Exception]) -> None:
    """Requires the device and dtype of the weights. Under autocast the ops convert float32 and half precision."""
    if value.device != weight.device:
        raise RuntimeError(f"{name} must be on the device of the weights, {weight.device}, got {value.device}")
    if value.dtype == weight.dtype:
        return
    if not (autocast_is_on(value) and {value.dtype, weight.dtype} <= AUTOCAST):
        raise wrong_dtype(f"{name} must have the dtype of the weights, {weight.dtype}, got {value.dtype}")


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    """The seed as a 0-dim int64 tensor."""
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
    return torch.full((), index, dtype=torch.int64, device=device)  # a fill: a copy to the GPU would block the host


def lengths_tensor(lengths: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """The lengths as an int64 tensor on the input's device."""
    if hasattr(lengths, "__array__") and not isinstance(lengths, Tensor):  # a NumPy array, or what converts to one
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
    """A copy to the GPU that does not block the host: CUDA has read unpinned memory when the call returns."""
    return values.to(device, non_blocking=values.is_cpu)


def step_number(value: SupportsIndex) -> int:
    value = integer("step", value)
    if not 0 <= value < 2**32:
        raise ValueError(f"step must be at least 0 and below 2**32, got {value}")
    return value


def packed(value: PackedSequence) -> None:
    """Requires what ``pad_packed_sequence`` assumes without a check, which can crash on a damaged PackedSequence.

    Indices on a GPU are not read, because that would block the host.
    """
    if torch._C._get_tracing_state() is not None:  # reading the sizes would make them constants of the graph
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
