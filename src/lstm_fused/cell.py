"""FusedLSTMCell: ``nn.LSTMCell`` with the regularizers of :class:`FusedLSTM`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _checks as checks
from . import ops
from ._base import FusedBase, copy_for_backward, is_traced
from ._dispatch import direct_cell
from ._options import CellOptions
from ._types import Device, DropoutPlace, LayerNorm, State
from .reference import Activation, RecurrentActivation


class FusedLSTMCell(FusedBase):
    """``nn.LSTMCell`` with layer norm, recurrent dropout and zoneout: a step of :class:`FusedLSTM`, with its equations.

    A loop over the steps of a sequence gives what the layer gives if every call gets the layer's ``seed`` and its
    number as ``step``.

    Args:
        input_size: features of the input, I.
        hidden_size: units of the state, H.
        bias: whether there are ``bias_ih`` and ``bias_hh``. Default: ``True``.
        device, dtype: of the parameters.
        layer_norm, recurrent_dropout, recurrent_dropout_on, zoneout: as in :class:`FusedLSTM`.
        weight_dropout, peephole, forget_bias, open_gates, activation, recurrent_activation, eps: likewise.

    Inputs:
        input: [B, I], or [I] for one sequence.
        hx: ``(h_0, c_0)``, each [B, H] or [H]; zeros if not given.
        reset, seed, step: of :meth:`forward`.

    Outputs:
        (h_1, c_1): each [B, H] or [H].

    Variables:
        weight_ih: [4 * H, I]. The other parameters, too, are those of a layer of :class:`FusedLSTM`, without ``_l[k]``.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument has a wrong value, or two exclude each other.

    Example:
        >>> cell = FusedLSTMCell(10, 20, layer_norm="carry")
        >>> h = c = torch.zeros(3, 20)
        >>> for step, x in enumerate(torch.randn(6, 3, 10)):
        ...     h, c = cell(x, (h, c), step=step)
        >>> h.shape
        torch.Size([3, 20])
    """

    _OPACUS = "DPLSTMCell"
    _OPTIONS = CellOptions

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool | LayerNorm = False,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_on: DropoutPlace = "hidden",
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        peephole: bool = False,
        forget_bias: float | None = None,
        open_gates: str | Iterable[str] = (),
        activation: Activation = "tanh",
        recurrent_activation: RecurrentActivation = "sigmoid",
        eps: float = 1e-5,
    ) -> None:
        super().__init__(checks.truth("bias", bias), locals())
        self._register("", self.input_size, device, dtype)
        self.reset_parameters()

    def _suffixes(self) -> list[str]:
        return [""]

    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        reset: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | None = None,
    ) -> State:
        """One step: ``(h_1, c_1)``, each [B, H] or [H].

        Args:
            input: [B, I], or [I] for one sequence.
            hx: ``(h_0, c_0)``, each [B, H] or [H]; zeros if not given.
            reset: bool [B] or []: the sequences whose previous state is set to zero.
            seed: as in :class:`FusedLSTM`. Without one every call draws new masks, those of ``recurrent_dropout`` too.
            step: the index of this step in its sequence, from 0 (the default); selects the masks of zoneout.

        Raises:
            TypeError: ``hx`` is not a pair of tensors; input, reset, seed or step have a wrong type.
            ValueError: input or ``hx`` have a number of dimensions that ``nn.LSTMCell`` refuses, or input a wrong
                dtype; seed or step are out of range.
            RuntimeError: sizes, dtypes or devices of two tensors differ.

            The types are those of ``nn.LSTMCell`` where it checks the same. Each message is one sentence that names the
            argument.
        """
        (parameters,) = self._all_parameters()
        given_step, step = step, 0 if step is None else checks.step_number(step)
        if reset is None and seed is None and not self._op_arguments:  # without them no mask depends on the step
            state = direct_cell(input, hx, parameters)
            if state is not None:
                return state
        if not isinstance(input, Tensor) and isinstance(input, torch.fx.Proxy):
            return self._in_fx_graph(input, hx=hx, reset=reset, seed=seed, step=given_step)
        weight = parameters[0]
        hx = self._checked_state(input, hx, reset, weight)
        if seed is not None or self.training:
            seed = self._seed(seed, input.device)
        batched = input.dim() == 2
        if not batched:
            input, hx = input.unsqueeze(0), (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
            reset = None if reset is None else reset.unsqueeze(0)
        if torch.is_grad_enabled() or is_traced():
            input, hx = copy_for_backward(input, weight), (copy_for_backward(hx[0], parameters[1]), hx[1])
        lstm_cell: Callable[..., State] = ops.lstm_cell  # no type says how many tensors *parameters holds
        h, c = lstm_cell(
            input,
            *hx,
            *parameters,
            reset=reset,
            seed=seed,
            step=step,
            training=self.training,
            **self._op_arguments,
        )
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))

    def _checked_state(self, input: Tensor, hx: State | None, reset: Tensor | None, weight: Tensor) -> State:
        """``hx``, or zeros, after checks of the input, the state and reset."""
        checks.input_tensor(input, self.input_size, (1, 2), weight)
        if hx is None:
            hx = (weight.new_zeros(*input.shape[:-1], self.hidden_size),) * 2
        leading = (input.shape[0],) if input.dim() == 2 else ()
        checks.state(hx, leading, (self.hidden_size,) * 2, weight, ranks=(1, 2))
        if reset is not None:
            checks.reset_tensor(reset, leading, input.device)
        return hx

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}{self._options_repr()}"
