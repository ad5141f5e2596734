"""The arguments of the modules: checked, and brought into the form in which they are used.

Every error is one sentence that names the argument, what it got and what it wanted, of the type that ``nn.LSTM`` raises
for the same mistake. What the ops check themselves (the lengths' shape and range, for instance) is not repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def positive_int(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be greater than zero, got {value}")
    return value


def boolean(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def rate(name: str, value: float) -> float:
    if not _is_finite(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)


def zoneout_rates(value: float | tuple[float, float]) -> tuple[float, float]:
    """``(rate_h, rate_c)``."""
    if not isinstance(value, (tuple, list)):
        both = rate("zoneout", value)
        return both, both
    if len(value) != 2:
        raise ValueError(f"zoneout must be a rate or a pair (rate_h, rate_c), got {len(value)} values")
    return rate("zoneout[0]", value[0]), rate("zoneout[1]", value[1])


def layer_norm_kind(value: bool | str) -> bool | str:
    """``False`` or ``"ba2016"``."""
    if value == "carry":
        raise ValueError("layer_norm must be False, True or 'ba2016' ('carry' does not exist yet), got 'carry'")
    if value not in (False, True, "ba2016"):
        raise ValueError(f"layer_norm must be False, True or 'ba2016', got {value!r}")
    return "ba2016" if value else False


def no_projection(value: int) -> int:
    if not isinstance(value, int) or value != 0:
        raise ValueError(f"proj_size must be 0 (there is no projection yet), got {value!r}")
    return 0


def forget_bias(value: float | None, bias: bool) -> float | None:
    if value is None:
        return None
    if not _is_finite(value):
        raise ValueError(f"forget_bias must be None or a finite number, got {value!r}")
    if not bias:
        raise ValueError(f"forget_bias must be None when there are no biases (bias=False), got {value!r}")
    return float(value)


def epsilon(value: float) -> float:
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"eps must be a finite number above 0, got {value!r}")
    return float(value)


def input_tensor(value: Tensor, input_size: int, ranks: tuple[int, int], weight: Tensor) -> None:
    """``ranks``: the number of dimensions of one sequence's (or step's) input and of a batch's."""
    if not isinstance(value, Tensor):
        raise TypeError(f"input must be a tensor, got {type(value).__name__}")
    if value.dim() not in ranks:
        raise ValueError(f"input must be {ranks[0]}-D (unbatched) or {ranks[1]}-D, got {value.dim()}-D")
    if value.shape[-1] != input_size:
        raise RuntimeError(
            f"input must have {input_size} features (input_size) in its last dimension, got {value.shape[-1]}"
        )
    _same_kind("input", value, weight, ValueError)


def state(hx: Any, shape: tuple[int, ...], weight: Tensor) -> None:
    """``hx``: None, or ``(h_0, c_0)`` of this shape."""
    if hx is None:
        return
    if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(x, Tensor) for x in hx):
        got = type(hx).__name__ + (f" of {len(hx)}" if isinstance(hx, (tuple, list)) else "")
        raise TypeError(f"hx must be a tuple of two tensors, (h_0, c_0), got {got}")
    for name, x in zip(("h_0", "c_0"), hx, strict=True):
        if x.shape != shape:
            raise RuntimeError(f"{name} in hx must have shape {list(shape)}, got {list(x.shape)}")
        _same_kind(f"{name} in hx", x, weight, RuntimeError)


def autocast_is_on(device: torch.device) -> bool:
    """Whether autocast converts what ops on this device take."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def _same_kind(name: str, value: Tensor, weight: Tensor, wrong_dtype: type[Exception]) -> None:
    """Device and dtype of the weights; under autocast the ops bring the dtypes together."""
    if value.device != weight.device:
        raise RuntimeError(f"{name} must be on the device of the weights, {weight.device}, got {value.device}")
    if value.dtype != weight.dtype and not autocast_is_on(value.device):
        raise wrong_dtype(f"{name} must have the dtype of the weights, {weight.dtype}, got {value.dtype}")


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    """int64, 0-dim."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise TypeError(
                f"seed must be an int or a 0-dim int64 tensor, got {seed.dtype} of shape {list(seed.shape)}"
            )
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or a 0-dim int64 tensor, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit in a signed 64-bit integer, got {seed}")
    return torch.tensor(seed, dtype=torch.int64, device=device)


def lengths_tensor(lengths: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """int64, on the input's device."""
    if isinstance(lengths, Tensor):
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
            raise TypeError(f"lengths must be an integer tensor or a list of ints, got {lengths.dtype}")
        return lengths.to(device, torch.int64)
    if not isinstance(lengths, (list, tuple)):
        raise TypeError(f"lengths must be an integer tensor or a list of ints, got {type(lengths).__name__}")
    for value in lengths:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"lengths must be an integer tensor or a list of ints, got {value!r} in the list")
    return torch.tensor(lengths, dtype=torch.int64, device=device)
