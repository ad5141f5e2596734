"""What :class:`FusedLSTM` and :class:`FusedLSTMCell` share: options, parameters and their initialization, the seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks as checks
from . import _per_sample as per_sample
from ._options import CELL_OPTIONS, CellAttributes, CellOptions
from ._schema import RATES
from ._types import Device

# One layer's parameters in the order in which an op takes them, and in which nn.LSTM registers and initializes its own.
WEIGHT_NAMES = ("weight_ih", "weight_hh")
BIAS_NAMES = ("bias_ih", "bias_hh")
NORM_NAMES = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")
NORM_BIAS_NAMES = ("bias_ln_ih", "bias_ln_hh")  # of "carry", in place of the biases
PROJECTION_NAMES = ("weight_hr",)
PEEPHOLE_NAMES = ("weight_ci", "weight_cf", "weight_co")
PARAMETER_NAMES = WEIGHT_NAMES + BIAS_NAMES + NORM_NAMES + NORM_BIAS_NAMES + PROJECTION_NAMES + PEEPHOLE_NAMES
_UNIFORM = WEIGHT_NAMES + BIAS_NAMES + PROJECTION_NAMES + PEEPHOLE_NAMES


class FusedBase(CellAttributes, nn.Module):
    """The base class of the layer stack and of the cell."""

    _OPACUS: str  # the module of Opacus that can take the place of this one
    _OPTIONS: type[CellOptions]

    def __init__(self, bias: bool, arguments: Mapping[str, Any]) -> None:
        """``arguments``: the ``locals()`` of the constructor, whose ``bias`` has been checked."""
        nn.Module.__init__(self)  # not super(): nn.LSTM, a base of lstm_fused.LSTM, would create its own weights
        per_sample.refuse(type(self), self._OPACUS)
        self.input_size: int = checks.positive_int("input_size", arguments["input_size"])
        self.hidden_size: int = checks.positive_int("hidden_size", arguments["hidden_size"])
        self.bias: bool = bias
        self.proj_size: int = checks.projection_size(arguments.get("proj_size", 0), self.hidden_size)
        self._set_options(self._OPTIONS.of_arguments(arguments))
        self._options.check_with(bias, self.proj_size, arguments)
        # For each layer and direction: parameter names in the ops' order, up to the last one that exists.
        self._names: list[tuple[str, ...]] = []

    def _set_options(self, options: CellOptions) -> None:
        self._options = options
        # Kept for every call: arguments of the op other than its defaults, and whether masks are drawn in training.
        self._op_arguments: dict[str, Any] = options.op_arguments()
        self._has_masks = any(name in RATES for name in self._op_arguments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a module that was pickled when each option was an attribute of its own."""
        names = [option.name for option in fields(self._OPTIONS)]
        options = {name: state[name] for name in names if name in state}
        # Not super(): nn.LSTM, a base of lstm_fused.LSTM, would look for a list of its weights.
        nn.Module.__setstate__(self, {name: value for name, value in state.items() if name not in options})
        if "_options" not in state:
            self._set_options(self._OPTIONS(**options))

    def _suffixes(self) -> list[str]:
        """What follows a parameter's name, for every layer and direction."""
        raise NotImplementedError

    def _register(self, suffix: str, input_size: int, device: Device, dtype: torch.dtype | None) -> None:
        H, P = self.hidden_size, self._output_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (4 * H, input_size),
            "weight_hh": (4 * H, P),
            **dict.fromkeys(BIAS_NAMES, (4 * H,)),
            "weight_hr": (P, H),  # at this place in nn.LSTM's order
            **dict.fromkeys(NORM_NAMES[:2] + NORM_BIAS_NAMES, (4 * H,)),
            **dict.fromkeys(NORM_NAMES[2:] + PEEPHOLE_NAMES, (H,)),
        }
        carries = self.layer_norm == "carry"
        kept = {
            BIAS_NAMES: self.bias and not carries,
            NORM_NAMES: bool(self.layer_norm),
            NORM_BIAS_NAMES: carries,
            PROJECTION_NAMES: self.proj_size > 0,
            PEEPHOLE_NAMES: self.peephole,
        }
        absent = {name for names, keep in kept.items() if not keep for name in names}
        for name, shape in shapes.items():
            value = None if name in absent else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name + suffix, value)
        last = max(k for k, name in enumerate(PARAMETER_NAMES) if name not in absent)
        self._names.append(tuple(name + suffix for name in PARAMETER_NAMES[: last + 1]))

    def _all_parameters(self) -> list[list[Any]]:
        """For each layer and direction, in the ops' order: weight_ih and weight_hh, then tensors or None."""
        # nn.Module.__getattr__ is slow, and needed only if a parametrization has replaced a parameter.
        own = self._parameters
        return [[own[name] if name in own else getattr(self, name) for name in names] for names in self._names]

    def reset_parameters(self) -> None:
        """Initialize again: uniform as ``nn.LSTM``, norms as the identity, the forget gate's bias if one was given."""
        bound = 1 / math.sqrt(self.hidden_size)
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        # In the order in which nn.LSTM draws them, which has the projection after the biases.
        names = (*WEIGHT_NAMES, *BIAS_NAMES, *PROJECTION_NAMES, *NORM_NAMES, *NORM_BIAS_NAMES, *PEEPHOLE_NAMES)
        for suffix in self._suffixes():
            parameters = {name: getattr(self, name + suffix) for name in names}
            for name, parameter in parameters.items():
                if parameter is not None and name in _UNIFORM:
                    nn.init.uniform_(parameter, -bound, bound)
                elif parameter is not None:
                    nn.init.constant_(parameter, float(name.startswith("weight")))
            if self.forget_bias is not None:
                added, zeroed = NORM_BIAS_NAMES if self.layer_norm == "carry" else BIAS_NAMES
                nn.init.constant_(parameters[added][forget], self.forget_bias)
                nn.init.zeros_(parameters[zeroed][forget])

    @property
    def _output_size(self) -> int:
        """P, the size of h."""
        return self.proj_size or self.hidden_size

    def _draws_masks(self) -> bool:
        """Whether a call draws masks now."""
        return self.training and self._has_masks

    def _seed(self, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
        """The seed as a 0-dim int64 tensor; drawn from torch's generator only if masks need it."""
        if seed is not None:
            return checks.seed_tensor(seed, device)
        return torch.randint(2**63 - 1, (), device=device) if self._draws_masks() else None

    def _in_fx_graph(self, input: torch.fx.Proxy, **arguments: Any) -> torch.fx.Proxy:
        """A ``torch.fx`` node that calls this module as a whole, as torch.fx does with torch's own modules."""
        tracer: Any = input.tracer  # a torch.fx.Tracer, the only tracer with modules
        if tracer.root is self:
            raise TypeError("root must be a model with this module in it, to be traced by torch.fx, got the module")
        given = {name: value for name, value in arguments.items() if value is not None}
        node: torch.fx.Proxy = tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), given)
        return node

    def __prepare_scriptable__(self) -> None:
        """Called by ``torch.jit.script`` before it compiles."""
        raise RuntimeError(
            f"module must be traced (torch.jit.trace), compiled (torch.compile) or exported (torch.export), which a "
            f"{type(self).__name__} can be, got torch.jit.script, which cannot compile its Python"
        )

    def _options_repr(self) -> str:
        """The options that do not have their default: first those of the whole sequence, then those of a step."""
        changed = sorted(self._options.changed().items(), key=lambda option: option[0] in CELL_OPTIONS)
        return "".join(f", {name}={value!r}" for name, value in changed)


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` is recording. Its graph may be trained later, even if gradients are off now."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def copy_for_backward(x: Tensor, *weights: Tensor) -> Tensor:
    """A copy of x if it is multiplied by frozen weights.

    The backward pass of torch's own operators does not read x then, so that callers may modify it in place. The
    backward pass of our ops does read it.
    """
    return x.clone() if x.requires_grad and not all(weight.requires_grad for weight in weights) else x
