"""Autograd of the ops: the forward op saves what its backward op needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import cuda, reference
from ._dispatch import by_reference
from ._schema import BIAS_HH, BIAS_LN_HH, CELL_TENSORS, LAYER_TENSORS, WEIGHTS

if TYPE_CHECKING:
    from ._types import Tensors

_OPS = torch.ops.lstm_fused


def _setup_layer(ctx: Any, inputs: list[Any], options: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    output, _, _, *kept = results
    hidden = kept[0]
    # If the op returns hidden states beside the output, the backward op reads those, and the output can be modified or
    # freed.
    ctx.save_for_backward(*inputs, output if hidden.dim() == 1 else hidden, *kept)
    ctx.options = options
    _keep_for_backward_only(ctx, kept)


def _setup_cell(ctx: Any, inputs: list[Any], options: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    _, _, *kept = results
    ctx.save_for_backward(*inputs, *kept)
    ctx.options = options
    _keep_for_backward_only(ctx, kept)


def _keep_for_backward_only(ctx: Any, kept: list[Tensor]) -> None:
    """Saved results have no gradient, and autograd must not allocate zeros for it."""
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _zeros_for_none(gradients: tuple[Tensor | None, ...], like: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The gradients of the results, with zeros for a result that was not used."""
    return tuple(x.new_zeros(shape) if d is None else d for d, (x, shape) in zip(gradients, like, strict=True))


def _wanted(ctx: Any) -> dict[str, bool]:
    return {"want_input": ctx.needs_input_grad[0], "want_weights": any(ctx.needs_input_grad[WEIGHTS])}


def _gradients(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The backward op's results in the order of the inputs. Both biases share a gradient; the last inputs have none."""
    d_bias, d_norms, d_others = gradients[5], gradients[6:10], gradients[10:]
    # A copy: code that scales gradients in place would scale a tensor shared by two parameters twice.
    second = ctx.needs_input_grad[BIAS_HH] or ctx.needs_input_grad[BIAS_LN_HH]
    d_biases = (d_bias, d_bias.clone() if second else d_bias)
    all_of_them = (*gradients[:5], *d_biases, *d_norms, *d_biases, *d_others)
    padded = all_of_them + (None,) * (len(ctx.needs_input_grad) - len(all_of_them))
    return tuple(d if needed else None for d, needed in zip(padded, ctx.needs_input_grad, strict=True))


def _differentiable_gradients(
    ctx: Any,
    forward: Callable[..., tuple[Tensor, ...]],
    inputs: Tensors,
    d_results: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again (``create_graph=True``): those of the reference."""
    # Views separate inputs that depend on each other, or that are the same tensor, so that each gets its own gradient.
    views: Any = tuple(None if x is None else x.view_as(x) for x in inputs)
    needed = [x for x, need in zip(views, ctx.needs_input_grad, strict=False) if need]
    results = by_reference(forward, views, ctx.options)
    with torch.autocast(inputs[0].device.type, enabled=False):
        gradients = iter(torch.autograd.grad(results, needed, d_results, create_graph=True, materialize_grads=True))
    return tuple(next(gradients) if need else None for need in ctx.needs_input_grad)


def _layer_backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    input, h_0, c_0 = saved[:3]
    like = ((input, (*input.shape[:2], h_0.shape[1])), (h_0, h_0.shape), (c_0, c_0.shape))
    gradients = _zeros_for_none(d_results[:3], like)
    if torch.is_grad_enabled():
        return _differentiable_gradients(ctx, reference.lstm_layer, saved[: len(LAYER_TENSORS)], gradients)
    backward = cuda.out_of_memory_as_torch(_OPS.lstm_layer_backward)
    results = backward(*gradients, *saved, **ctx.options, **_wanted(ctx))
    return _gradients(ctx, results)


def _cell_backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    h_0, c_0 = saved[1:3]
    gradients = _zeros_for_none(d_results[:2], ((h_0, h_0.shape), (c_0, c_0.shape)))
    if torch.is_grad_enabled():
        return _differentiable_gradients(ctx, reference.lstm_cell, saved[: len(CELL_TENSORS)], gradients)
    backward = cuda.out_of_memory_as_torch(_OPS.lstm_cell_backward)
    results = backward(*gradients, *saved, **ctx.options, **_wanted(ctx))
    return _gradients(ctx, results)


_AUTOGRAD = torch.library.Library("lstm_fused", "IMPL")


def _register_autograd(
    op: Any, count: int, setup: Callable[..., None], gradients: Callable[..., tuple[Tensor | None, ...]]
) -> None:
    """As ``torch.library.register_autograd``, for an op of ``count`` inputs (tensors or None) and options by name.

    ``register_autograd`` fills in defaults, which these ops do not need: in every call it builds the list of the
    schema's arguments once per argument, which takes 0.3 ms of a training step.
    """

    class FusedLSTM(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
            *inputs, keyset, options = arguments
            results: tuple[Tensor, ...] = below_autograd(keyset, *inputs, **options)
            setup(ctx, inputs, options, results)
            return results

        backward = staticmethod(gradients)

    def below_autograd(keyset: Any, *inputs: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            results: tuple[Tensor, ...] = op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs, **options)
            return results

    def with_autograd(keyset: Any, *inputs: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
            apply: Callable[..., tuple[Tensor, ...]] = FusedLSTM.apply
            return apply(*inputs, *[None] * (count - len(inputs)), keyset, options)
        return below_autograd(keyset, *inputs, **options)

    _AUTOGRAD.impl(op, with_autograd, "Autograd", with_keyset=True)


_register_autograd(_OPS.lstm_layer.default, len(LAYER_TENSORS), _setup_layer, _layer_backward)
_register_autograd(_OPS.lstm_cell.default, len(CELL_TENSORS), _setup_cell, _cell_backward)
