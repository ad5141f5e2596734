"""Weights from other packages into :class:`FusedLSTM`, and back to ``nn.LSTM``.

Every function takes tensors or arrays under the names that the other package uses, and does not import that package.
In :class:`FusedLSTM` a gate's weights are rows, in the order i, f, g, o; in haste and Keras they are columns of ``[in,
4H]``, in another order. Options that follow from the weights (sizes, layers, directions, biases, kind of layer norm)
must not be passed, which is a TypeError; other options are checked as by :class:`FusedLSTM`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks as checks
from ._types import LayerNorm
from .lstm import FusedLSTM

# haste's order is i, g, f, o: which block of its columns becomes which of our rows.
_FROM_HASTE = (0, 2, 1, 3)
_FROM_KERAS = (0, 1, 2, 3)


def to_torch(lstm: FusedLSTM) -> nn.LSTM:
    """An ``nn.LSTM`` that computes the same: with copies of the weights, their ``requires_grad``, and the mode.

    Raises:
        TypeError: ``lstm`` is another module.
        ValueError: an option that nn.LSTM lacks is on.
    """
    checks.instance("lstm", lstm, FusedLSTM)
    changed = lstm._options.changed()
    without_effect = _WITHOUT_EFFECT if lstm.dropout else _WITHOUT_EFFECT | {"variational"}
    options = {name: value for name, value in changed.items() if name not in without_effect}
    if options:
        shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ValueError(f"lstm must have no option that nn.LSTM lacks to become one, got {shown}")
    weight = lstm.weight_ih_l0
    made = nn.LSTM(
        lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.bias, lstm.batch_first, lstm.dropout,
        lstm.bidirectional, lstm.proj_size, weight.device, weight.dtype,
    )  # fmt: skip
    made.load_state_dict(lstm.state_dict())
    for name, parameter in lstm.named_parameters():
        made.get_parameter(name).requires_grad_(parameter.requires_grad)
    return made.train(lstm.training)


# The options that alone change no numbers: eps acts with layer norm only, forget_bias at initialization only,
# recurrent_dropout_on with recurrent_dropout only, and recompute on memory only.
_WITHOUT_EFFECT = {"eps", "forget_bias", "recurrent_dropout_on", "recompute"}


def from_haste(
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any,
    gamma: Any = None,
    gamma_h: Any = None,
    beta_h: Any = None,
    **options: Any,
) -> FusedLSTM:
    """haste's ``LSTM``, and with the last three its ``LayerNormLSTM`` (layer norm ``"ba2016"``); gates i, g, f, o.

    Args:
        kernel, recurrent_kernel, bias: [I, 4H], [H, 4H], [4H].
        gamma, gamma_h, beta_h: [2, 4H] (of the input's and of the hidden state's product), [H], [H].
        options: of :class:`FusedLSTM`. haste's ``zoneout=z`` is ``zoneout=(z, 0.0)`` here, its ``dropout``
            ``weight_dropout``.

    Raises:
        ValueError: an array has another shape; some of the last three are missing.
    """
    norms = (gamma, gamma_h, beta_h)
    if any(x is None for x in norms) and any(x is not None for x in norms):
        raise ValueError("gamma, gamma_h and beta_h must be given together")
    state = _state(kernel, recurrent_kernel, bias, _FROM_HASTE)
    H = state["weight_hh_l0"].shape[1]
    if gamma is not None:
        gains = _tensor("gamma", gamma, (2, 4 * H))
        state["weight_ln_ih_l0"], state["weight_ln_hh_l0"] = (_reorder(gain, _FROM_HASTE) for gain in gains)
        state["weight_ln_c_l0"] = _tensor("gamma_h", gamma_h, (H,))
        state["bias_ln_c_l0"] = _tensor("beta_h", beta_h, (H,))
    return _module(state, options)


def from_keras(weights: Sequence[Any], **options: Any) -> FusedLSTM:
    """A Keras ``LSTM`` from its ``get_weights()``: kernel [I, 4H], recurrent_kernel [H, 4H] and, if there, bias [4H].

    Its order of gates is ours. An ``activation`` other than ``tanh`` and a ``recurrent_activation`` other than
    ``sigmoid`` are options to give: before Keras 2.3 the default is ``recurrent_activation="hard_sigmoid"`` (that of
    Keras 3 is another function, which is not available here). ``batch_first`` is True by default, as in Keras;
    ``unit_forget_bias`` is already in the bias.

    Raises:
        ValueError: weights are not two or three, or one has another shape.
    """
    if not 2 <= len(weights) <= 3:
        raise ValueError(f"weights must be kernel, recurrent_kernel and perhaps bias, got {len(weights)} of them")
    kernel, recurrent_kernel, *bias = weights
    state = _state(kernel, recurrent_kernel, bias[0] if bias else None, _FROM_KERAS)
    return _module(state, {"batch_first": True} | options)


def from_tensorflow_addons(weights: Sequence[Any], **options: Any) -> FusedLSTM:
    """A Keras ``RNN`` of TensorFlow Addons' ``LayerNormLSTMCell`` from its ``get_weights()``: layer norm ``"carry"``.

    Args:
        weights: kernel [I, 4H], recurrent_kernel [H, 4H], bias [4H] (unless ``use_bias=False``), then gamma and beta of
            kernel_norm [4H], of recurrent_norm [4H] and of state_norm [H]. Its order of gates is ours.
        options: of :class:`FusedLSTM`. As there, the default of ``batch_first`` is True and that of ``eps`` 1e-3;
            ``recurrent_dropout`` is the same on both sides.

    Raises:
        ValueError: weights are not eight or nine, or one has another shape.
    """
    if not 8 <= len(weights) <= 9:
        raise ValueError(
            "weights must be kernel, recurrent_kernel, perhaps bias, and a gamma and a beta of three norms, "
            f"got {len(weights)} of them"
        )
    kernel, recurrent_kernel, *bias = weights[:-6]
    state = _state(kernel, recurrent_kernel, None, _FROM_KERAS)
    H = state["weight_hh_l0"].shape[1]
    shapes = {"kernel_norm": (4 * H,), "recurrent_norm": (4 * H,), "state_norm": (H,)}
    for k, (norm, name) in enumerate(zip(shapes, ("ih", "hh", "c"), strict=True)):
        gamma, beta = weights[-6:][2 * k : 2 * k + 2]
        state[f"weight_ln_{name}_l0"] = _tensor(f"gamma of {norm}", gamma, shapes[norm])
        state[f"bias_ln_{name}_l0"] = _tensor(f"beta of {norm}", beta, shapes[norm])
    if bias:  # the norms have biases too; only the sum of all matters
        state["bias_ln_ih_l0"] = state["bias_ln_ih_l0"] + _tensor("bias", bias[0], (4 * H,))
    return _module(state, {"batch_first": True, "eps": 1e-3} | options)


# Names in PyTorch's custom_lstms.py: layers.0.cell.weight_ih, layers.1.directions.0.cell.layernorm_i.weight and so on;
# for a single layer or cell, the last part of such a name.
_SCRIPTED = re.compile(r"(?:layers\.(\d+)\.)?(?:directions\.([01])\.)?(?:cell\.)?((?:layernorm_[ihc]\.)?\w+)")
_FROM_SCRIPTED = {name: name for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")} | {
    f"layernorm_{theirs}.{kind}": f"{kind}_ln_{ours}"
    for theirs, ours in (("i", "ih"), ("h", "hh"), ("c", "c"))
    for kind in ("weight", "bias")
}


def from_torchscript(state_dict: Mapping[str, Tensor], **options: Any) -> FusedLSTM:
    """The LSTMs of PyTorch's ``benchmarks/fastrnns/custom_lstms.py``, and what was made after them.

    Args:
        state_dict: of what ``script_lnlstm`` (layer norm ``"carry"``) or ``script_lstm`` gives, with any number of
            layers and both directions, or of one of their layers or cells.
        options: of :class:`FusedLSTM`. ``decompose_layernorm=True`` there has no eps: here a small one is close to it.

    Raises:
        ValueError: a name is none of ``custom_lstms.py``, or the first layer has no matrices.
        RuntimeError: by ``load_state_dict``: layers, directions or shapes do not fit together.
    """
    state = {}
    for key, tensor in state_dict.items():
        match = _SCRIPTED.fullmatch(key)
        if match is None or match[3] not in _FROM_SCRIPTED:
            raise ValueError(
                "state_dict must have the names of custom_lstms.py, such as 'layers.0.cell.layernorm_i.weight', "
                f"got {key!r}"
            )
        reverse = "_reverse" if match[2] == "1" else ""
        state[f"{_FROM_SCRIPTED[match[3]]}_l{match[1] or 0}{reverse}"] = tensor.detach()
    if "weight_ih_l0" not in state or "weight_hh_l0" not in state:
        raise ValueError(f"state_dict must have weight_ih and weight_hh of its first layer, got {sorted(state_dict)}")
    return _module(state, options)


def _tensor(name: str, value: Any, shape: tuple[int | None, ...]) -> Tensor:
    """The value as a tensor, whose shape is checked. None stands for any size."""
    tensor = torch.as_tensor(value).detach()
    if tensor.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, tensor.shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape [{wanted}], got {list(tensor.shape)}")
    return tensor


def _reorder(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    """[4H, ...] with the gates' blocks in this order."""
    blocks = rows.chunk(4)
    return torch.cat([blocks[k] for k in order])


def _state(kernel: Any, recurrent_kernel: Any, bias: Any, order: tuple[int, ...]) -> dict[str, Tensor]:
    recurrent = _tensor("recurrent_kernel", recurrent_kernel, (None, None))
    H = recurrent.shape[0]
    recurrent = _tensor("recurrent_kernel", recurrent_kernel, (H, 4 * H))
    state = {
        "weight_ih_l0": _reorder(_tensor("kernel", kernel, (None, 4 * H)).T, order),
        "weight_hh_l0": _reorder(recurrent.T, order),
    }
    if bias is not None:
        state["bias_ih_l0"] = _reorder(_tensor("bias", bias, (4 * H,)), order)
        state["bias_hh_l0"] = torch.zeros_like(state["bias_ih_l0"])
    return state


def _module(state: dict[str, Tensor], options: dict[str, Any]) -> FusedLSTM:
    weight, recurrent = state["weight_ih_l0"], state["weight_hh_l0"]
    kinds: dict[str, LayerNorm] = {"bias_ln_ih_l0": "carry", "weight_ln_ih_l0": "ba2016"}
    module = FusedLSTM(
        weight.shape[1],
        recurrent.shape[1],
        num_layers=sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in state),
        bias="bias_ih_l0" in state or "bias_ln_ih_l0" in state,
        bidirectional="weight_ih_l0_reverse" in state,
        layer_norm=next((kind for name, kind in kinds.items() if name in state), False),
        device=weight.device,
        dtype=weight.dtype,
        **options,
    )
    module.load_state_dict(state)
    return module
