"""Names, order and defaults of the ops' arguments, as registered: csrc/lstm/op_table.h has the one list of them."""

from typing import Any

import torch

from . import _ops as _library  # noqa: F401  registers torch.ops.lstm_fused

_OPS = torch.ops.lstm_fused


def tensors_of(op: str) -> tuple[str, ...]:
    """The names of an op's tensor arguments, in their order."""
    return tuple(a.name for a in getattr(_OPS, op).default._schema.arguments if not a.kwarg_only)


def options_of(op: str) -> dict[str, Any]:
    """The default of each of an op's other arguments by name, in their order."""
    return {a.name: a.default_value for a in getattr(_OPS, op).default._schema.arguments if a.kwarg_only}


LAYER_TENSORS, CELL_TENSORS = tensors_of("lstm_layer"), tensors_of("lstm_cell")
NN_LSTM_TENSORS = tensors_of("lstm_cell_plain")  # those that nn.LSTM has too, without a projection
LAYER_OPTIONS, CELL_OPTIONS = options_of("lstm_layer"), options_of("lstm_cell")

# Places among the tensors of a layer, and among those of a cell up to the weights' end.
WEIGHT_IH, WEIGHT_LN_IH, WEIGHT_HR, WEIGHT_CI = map(
    LAYER_TENSORS.index, ("weight_ih", "weight_ln_ih", "weight_hr", "weight_ci")
)
BIAS_HH, BIAS_LN_HH, LENGTHS = map(LAYER_TENSORS.index, ("bias_hh", "bias_ln_hh", "lengths"))
WEIGHTS = slice(WEIGHT_IH, LENGTHS)

# The options that are probabilities, and the default of eps.
_FLOATS = [a.name for a in _OPS.lstm_layer.default._schema.arguments if str(a.type) == "float"]
RATES = tuple(name for name in _FLOATS if LAYER_OPTIONS[name] == 0)
EPS: float = LAYER_OPTIONS["eps"]

# The options that change nothing unless a rate is above 0. An option that is not named here always counts.
ACT_WITH_RATES = frozenset(("variational", "training", "stream"))
LAYER_ACTING, CELL_ACTING = (
    {name: default for name, default in options.items() if name not in ACT_WITH_RATES}
    for options in (LAYER_OPTIONS, CELL_OPTIONS)
)
