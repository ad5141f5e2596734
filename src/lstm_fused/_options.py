"""The options of the modules beyond those of ``nn.LSTM`` and ``nn.LSTMCell``: one field each, with default and check.

A field is all that the modules, their ``repr``, conversion and the training suite need in order to know an option. What
it means to the ops is in :meth:`CellOptions.op_arguments`; ``tests/test_schema.py`` shows that every field acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from . import _checks as checks
from ._schema import EPS, LAYER_OPTIONS
from ._types import DropoutPlace, Gate, LayerNorm
from .reference import ACTIVATIONS, GATES, RECURRENT_ACTIVATIONS, Activation, RecurrentActivation

if TYPE_CHECKING:
    # A type checker takes the attributes of the modules from the fields, and they can be set: not "frozen", for it.
    from dataclasses import dataclass as frozen_dataclass
else:
    frozen_dataclass = dataclass(frozen=True)

_Options = TypeVar("_Options", bound="CellOptions")


@frozen_dataclass
class CellOptions:
    """The options of :class:`FusedLSTMCell`. Their meaning is documented in :class:`FusedLSTM`.

    The ``check`` of a field gets the option's name and value, and returns the value in the form that the field keeps.

    Raises:
        TypeError, ValueError: a value is not one that its option can have.
    """

    layer_norm: Literal[False] | LayerNorm = field(default=False, metadata={"check": checks.layer_norm_kind})
    recurrent_dropout: float = field(default=0.0, metadata={"check": checks.rate})
    recurrent_dropout_on: DropoutPlace = field(
        default="hidden", metadata={"check": checks.one_of("hidden", "candidate")}
    )
    zoneout: tuple[float, float] = field(default=(0.0, 0.0), metadata={"check": checks.zoneout_rates})
    weight_dropout: float = field(default=0.0, metadata={"check": checks.rate})
    peephole: bool = field(default=False, metadata={"check": checks.boolean})
    forget_bias: float | None = field(default=None, metadata={"check": checks.forget_bias})
    open_gates: tuple[Gate, ...] = field(default=(), metadata={"check": checks.gate_names})
    activation: Activation = field(default="tanh", metadata={"check": checks.one_of(*ACTIVATIONS)})
    recurrent_activation: RecurrentActivation = field(
        default="sigmoid", metadata={"check": checks.one_of(*RECURRENT_ACTIVATIONS)}
    )
    eps: float = field(default=EPS, metadata={"check": checks.epsilon})

    def __post_init__(self) -> None:
        for option in fields(self):
            value = option.metadata["check"](option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)  # the only way to set a field of a frozen dataclass

    @classmethod
    def of_arguments(cls: type[_Options], arguments: Mapping[str, Any]) -> _Options:
        """From the ``locals()`` of a constructor that has an argument of each field's name."""
        return cls(**{option.name: arguments[option.name] for option in fields(cls)})

    def with_value(self: _Options, name: str, value: Any) -> _Options:
        """A copy with another value of one option, which is checked as in the constructor.

        Raises:
            AttributeError: the option decides which parameters a module has.
        """
        changed = replace(self, **{name: value})
        if name in HAVE_PARAMETERS and getattr(changed, name) != getattr(self, name):
            raise AttributeError(
                f"{name} must keep the value of the constructor, which makes its parameters, {getattr(self, name)!r}, "
                f"got {value!r}"
            )
        return changed

    def check_with(self, bias: bool, proj_size: int, given: Mapping[str, Any]) -> None:
        """Raises ValueError where an option and an argument of ``nn.LSTM`` exclude each other.

        ``given``: the constructor's arguments as they were written.
        """
        if self.layer_norm == "carry" and not bias:
            raise ValueError("layer_norm must not be 'carry' without biases (bias=False), since its norms have them")
        if self.forget_bias is not None and not bias:
            got = given["forget_bias"]
            raise ValueError(f"forget_bias must be None when there are no biases (bias=False), got {got!r}")
        if proj_size and self.zoneout[0]:
            raise ValueError(
                "zoneout of h must be 0 with a projection, which gives the previous h another size, "
                f"got {self.zoneout[0]}"
            )

    def changed(self) -> dict[str, Any]:
        """The options that do not have their default."""
        values = {option.name: (getattr(self, option.name), option.default) for option in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def op_arguments(self) -> dict[str, Any]:
        """The options as arguments of an op, without those that have the op's default.

        An option that an op has under the same name is passed as it is.
        """
        on_hidden = self.recurrent_dropout_on == "hidden"
        arguments = {name: value for name, value in vars(self).items() if name in LAYER_OPTIONS} | {
            "recurrent_dropout": self.recurrent_dropout if on_hidden else 0.0,
            "candidate_dropout": 0.0 if on_hidden else self.recurrent_dropout,
            "zoneout_h": self.zoneout[0],
            "zoneout_c": self.zoneout[1],
            "open_gates": sum(GATES[gate] for gate in self.open_gates),
            "activation": ACTIVATIONS[self.activation],
            "recurrent_activation": RECURRENT_ACTIVATIONS[self.recurrent_activation],
        }
        return {name: value for name, value in arguments.items() if value != LAYER_OPTIONS[name]}


@frozen_dataclass
class LayerOptions(CellOptions):
    """The options of :class:`FusedLSTM`: those of a cell, and those that act over a whole sequence."""

    variational: bool = field(default=False, metadata={"check": checks.boolean})
    recompute: bool = field(default=False, metadata={"check": checks.boolean})


CELL_OPTIONS = tuple(option.name for option in fields(CellOptions))
HAVE_PARAMETERS = ("layer_norm", "peephole")


def _attributes_of(options: type[CellOptions]) -> type:
    """A base class for modules: each option as an attribute, which can be set."""

    def attribute(name: str) -> property:
        def read(module: Any) -> Any:
            return getattr(module._options, name)

        def write(module: Any, value: Any) -> None:
            module._set_options(module._options.with_value(name, value))

        return property(read, write)

    names = (option.name for option in fields(options))
    return type(f"{options.__name__}Attributes", (), {name: attribute(name) for name in names})


if TYPE_CHECKING:
    CellAttributes: TypeAlias = CellOptions
    LayerAttributes: TypeAlias = LayerOptions
else:
    CellAttributes, LayerAttributes = _attributes_of(CellOptions), _attributes_of(LayerOptions)
