"""The recurrent layers of every model: built from a spec, run on sequences of different lengths.

A layer maps an input ``[T, B, I]`` and a state to an output ``[T, B, O]`` and the next state, as ``nn.LSTM`` does. The
state is a tensor or a nest of tensors with the batch in dimension 1.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from lightning_modules.injection import (
    CLASS_OPTIONS,
    RECURRENT,
    Spec,
    build,
    class_path,
    has_argument,
    import_class,
    is_off,
    takes_option,
    to_spec,
)


def build_recurrent(
    spec: Spec | str,
    input_size: int,
    *,
    hidden_size: int,
    num_layers: int | None = None,
    dropout: float = 0.0,
    variational: bool = False,
    **options: Any,
) -> nn.Module:
    """The layer of a spec.

    Args:
        spec: see :mod:`lightning_modules.injection`.
        input_size: I.
        hidden_size: the layer's.
        num_layers: the layer's; ``None`` is the default of its class.
        dropout: after each layer but the last.
        variational: its masks are locked over time, where the class can.
        options: those of ``injection.CLASS_OPTIONS``; what is ``None``, zero or false is off.

    Raises:
        ValueError: the class lacks an option that is on, refuses an argument, or is not a layer as described above.
    """
    spec = to_spec(RECURRENT, spec)
    cls = import_class(RECURRENT, spec["class_path"])
    arguments: dict[str, Any] = {"hidden_size": hidden_size}
    if num_layers is not None and (num_layers != 1 or has_argument(cls, "num_layers")):
        arguments["num_layers"] = num_layers
    if dropout and (num_layers or 1) > 1:
        arguments["dropout"] = dropout
    if variational and has_argument(cls, "variational"):
        arguments["variational"] = True
    for name in CLASS_OPTIONS:
        value = options.get(name)
        if name == "forget_bias" and value is not None and not has_argument(cls, name) and takes_option(cls, name):
            continue  # set below
        if value is None or (is_off(value) and not has_argument(cls, name)):
            continue
        if not has_argument(cls, name):
            raise ValueError(f"{name} must be off with the layer {class_path(cls)}, which lacks it, got {value!r}")
        arguments[name] = value
    layer = build(RECURRENT, spec, input_size, **arguments)
    if not isinstance(layer, nn.Module):
        raise ValueError(f"recurrent must be a class of nn.Module, got {class_path(cls)}")
    if options.get("forget_bias") is not None and not has_argument(cls, "forget_bias"):
        set_forget_bias(layer, options["forget_bias"])
    output_size(layer, input_size)
    return layer


@torch.no_grad()
def output_size(layer: nn.Module, input_size: int) -> int:
    """O, the size of the layer's output: it is tried on two steps.

    Raises:
        ValueError: the layer does not give an output ``[T, B, O]`` and a state.
    """
    name = type(layer).__name__
    if getattr(layer, "batch_first", False):
        raise ValueError(f"recurrent must take [T, B, I], and {name} has batch_first=True")
    was_training = layer.training
    like = next((p for p in layer.parameters() if p.is_floating_point()), torch.zeros(()))
    layer.eval()
    try:
        result = layer(torch.zeros(2, 1, input_size, dtype=like.dtype, device=like.device))
    except Exception as error:
        raise ValueError(
            f"recurrent must be a layer that runs on an input [T, B, {input_size}]; {name} fails: "
            f"{' '.join(str(error).split())}"
        ) from error
    finally:
        layer.train(was_training)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)):
        raise ValueError(f"recurrent must be a layer that gives (output, state), got {type(result).__name__} of {name}")
    if result[0].dim() != 3 or result[0].shape[:2] != (2, 1):
        raise ValueError(
            f"recurrent must be a layer whose output is [T, B, O], got {list(result[0].shape)} for T = 2, B = 1 of "
            f"{name}"
        )
    return result[0].shape[2]


def num_directions(layer: nn.Module) -> int:
    """2 for a bidirectional layer, whose output has the forward direction's units first; else 1."""
    return 2 if getattr(layer, "bidirectional", False) else 1


def run_recurrent(layer: nn.Module, input: Tensor, lengths: Tensor, state: Any = None) -> Tensor:
    """The output ``[T, B, O]`` for sequences of different ``lengths`` ([B], each at least 1), zero past each end.

    Each sequence gives what it gives alone: no direction and no layer sees another's padding.

    Raises:
        ValueError: a bidirectional layer that takes neither ``lengths`` nor a ``PackedSequence``.
    """
    if "lengths" in inspect.signature(layer.forward).parameters:
        output: Tensor = layer(input, state, lengths=lengths)[0]
        return output
    if isinstance(layer, nn.RNNBase):
        packed = pack_padded_sequence(input, lengths.cpu(), enforce_sorted=False)
        return pad_packed_sequence(layer(packed, state)[0], total_length=input.shape[0])[0]
    if num_directions(layer) == 2:
        raise ValueError(
            f"recurrent must take 'lengths' to run backwards over sequences of different lengths, and "
            f"{type(layer).__name__} does not"
        )
    output = layer(input, state)[0]  # what lies after a sequence's end comes after all its real steps
    steps = torch.arange(input.shape[0], device=input.device)
    return output * (steps[:, None] < lengths)[..., None]


def last_outputs(output: Tensor, lengths: Tensor, directions: int) -> Tensor:
    """``[B, O]``: each direction's output after its last step of each sequence.

    Args:
        output: [T, B, O], the forward direction's units first.
        lengths: [B], each at least 1.
        directions: 1 or 2.
    """
    _, B, O = output.shape  # noqa: E741
    last = output[lengths - 1, torch.arange(B, device=output.device)]
    if directions == 1:
        return last
    return torch.cat((last[:, : O // 2], output[0, :, O // 2 :]), dim=-1)


def detach(state: Any) -> Any:
    """A state without its history: where backpropagation through time is truncated."""
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, state)


@torch.no_grad()
def set_forget_bias(lstm: nn.Module, value: float) -> None:
    """Sets the sum of each layer's two forget gate biases to ``value``."""
    for name, bias in lstm.named_parameters():
        if name.startswith("bias_"):
            bias.chunk(4)[1].fill_(value if name.startswith("bias_ih") else 0.0)


class LockedDropout(nn.Module):
    """Dropout of ``[T, B, H]`` with one mask ``[1, B, H]`` for all steps (Gal & Ghahramani 2016).

    Args:
        p: rate at which units are dropped; those kept are scaled by ``1 / (1 - p)``.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        mask = torch.empty_like(input[:1]).bernoulli_(1 - self.p).div_(1 - self.p)
        return input * mask

    def extra_repr(self) -> str:
        return f"p={self.p}"


def new_dropout(p: float, locked: bool) -> nn.Module:
    """Dropout of ``[T, B, H]`` with fresh masks a step, or locked over time."""
    return LockedDropout(p) if locked else nn.Dropout(p)
