"""Names, order and defaults of the ops' arguments, as registered: csrc/lstm/op_table.h has the one list of them."""

import torch

from . import _ops as _library  # noqa: F401  registers torch.ops.lstm_fused

_OPS = torch.ops.lstm_fused


def tensors_of(op: str) -> tuple[str, ...]:
    """The names of an op's tensor arguments, in their order."""
    return tuple(a.name for a in getattr(_OPS, op).default._schema.arguments if not a.kwarg_only)


LAYER_TENSORS, CELL_TENSORS = tensors_of("lstm_layer"), tensors_of("lstm_cell")
PLAIN_TENSORS = tensors_of("lstm_cell_plain")  # of nn.LSTM's own layer and cell

# Places among the tensors of a layer, and among those of a cell up to the weights' end.
WEIGHT_IH, WEIGHT_LN_IH, WEIGHT_HR, WEIGHT_CI = map(
    LAYER_TENSORS.index, ("weight_ih", "weight_ln_ih", "weight_hr", "weight_ci")
)
BIAS_HH, BIAS_LN_HH, LENGTHS = map(LAYER_TENSORS.index, ("bias_hh", "bias_ln_hh", "lengths"))
WEIGHTS = slice(WEIGHT_IH, LENGTHS)

# The options that are probabilities, and the default of eps.
_FLOATS: dict[str, float] = {
    a.name: a.default_value  # type: ignore[misc]  # which torch calls Any | None: a float where the type is one
    for a in _OPS.lstm_layer.default._schema.arguments
    if str(a.type) == "float"
}
RATES = tuple(name for name, default in _FLOATS.items() if default == 0)
EPS = _FLOATS["eps"]
