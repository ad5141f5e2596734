"""FusedLSTM: ``nn.LSTM`` with every regularizer inside the recurrence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import _checks as checks
from . import ops
from ._base import BIAS_NAMES, NORM_BIAS_NAMES, PROJECTION_NAMES, WEIGHT_NAMES, FusedBase, copy_for_backward, is_traced
from ._dispatch import direct_layer
from ._options import LayerAttributes, LayerOptions
from ._types import Device, DropoutPlace, LayerNorm, State
from .cell import FusedLSTMCell as FusedLSTMCell  # it was defined here, as pickled cells say
from .reference import Activation, RecurrentActivation
from .trace import Recorder, Trace

# What computes a layer in one direction: ops.lstm_layer, or a Recorder in its place.
RunLayer: TypeAlias = Callable[..., tuple[Tensor, Tensor, Tensor]]

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def _segment_steps(T: int) -> int:
    """k, the steps between saved states: both the T / k states and the k steps of a segment take memory."""
    if torch.compiler.is_compiling():  # T is a symbol here, and torch does not compile its square root reliably
        return 32
    return max(1, math.isqrt(T))


class FusedLSTM(FusedBase, LayerAttributes):
    """``nn.LSTM`` with regularization inside the recurrence, one op per layer and direction.

    Arguments, initialization, state dict and results are those of ``nn.LSTM``; the keyword-only arguments are new. At
    every step a layer computes, with the new arguments at their defaults::

        i_t = sigmoid(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi)
        f_t = sigmoid(W_if x_t + b_if + W_hf h_{t-1} + b_hf)
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        o_t = sigmoid(W_io x_t + b_io + W_ho h_{t-1} + b_ho)
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t)                                  with a projection: W_hr (o_t * tanh(c_t))

    :func:`lstm_fused.reference.lstm_cell` has the equations with all options.

    Sizes: T steps, B sequences, I = ``input_size``, H = ``hidden_size``, P = ``proj_size`` or H, L = ``num_layers``,
    D = 2 if ``bidirectional``, otherwise 1.

    Args:
        input_size: features of the input, I.
        hidden_size: units of the cell state, H.
        num_layers: layers, each on the output of the one before. Default: 1.
        bias: whether the layers have ``bias_ih`` and ``bias_hh``. Default: ``True``.
        batch_first: whether input, output and ``reset`` are [B, T, ...] and not [T, B, ...]. Default: ``False``.
        dropout: rate of dropout on the output of every layer but the last, a new mask at every step (Zaremba et al.
            2014); up to and including 1, at which the next layer gets zeros. Default: 0.
        bidirectional: whether each layer also runs from the last step to the first. Default: ``False``.
        proj_size: units of the projected hidden state, P, below H (Sak et al. 2014); 0: no projection. Default: 0.
        device, dtype: of the parameters.
        layer_norm: ``True`` or ``"ba2016"``: layer norm of both products and of the cell (Ba et al. 2016); ``"carry"``:
            the normalized cell is carried to the next step, and the norms of the products have biases in place of
            ``bias_ih`` and ``bias_hh``, as in PyTorch's ``custom_lstms.py`` and TensorFlow Addons. The two are
            different models with different weights. Default: ``False``.
        variational: one mask of ``dropout`` for all steps of a sequence (Gal and Ghahramani 2016). Default: ``False``.
        recurrent_dropout: rate of dropout inside the recurrence. Default: 0.
        recurrent_dropout_on: ``"hidden"``: on the hidden state before ``weight_hh``, one mask for all steps (Gal and
            Ghahramani 2016); ``"candidate"``: on g, a new mask at every step (Semeniuta et al. 2016). Default:
            ``"hidden"``.
        zoneout: rate, or ``(rate_h, rate_c)``, at which units keep their previous value (Krueger et al. 2016); with a
            projection only those of the cell. In eval the expected value. Default: 0.
        weight_dropout: rate of dropout on ``weight_hh`` itself, one mask per call (Merity et al. 2018). The parameter
            is not changed. Default: 0.
        peephole: whether the gates see the cell, i and f the previous one, o the new one (Gers and Schmidhuber 2000).
            Default: ``False``.
        forget_bias: initial sum of the two biases of the forget gate (Jozefowicz et al. 2015); ``None``: drawn as the
            other biases. Default: ``None``.
        open_gates: gates held at 1, any of ``"i"``, ``"f"``, ``"o"``, to measure what a gate adds. Default: none.
        activation: of g and of the cell in h: ``"tanh"`` or ``"relu"``. Default: ``"tanh"``.
        recurrent_activation: of the gates i, f and o: ``"sigmoid"``, or ``"hard_sigmoid"`` = clip(0.2 z + 0.5, 0, 1),
            that of ONNX and of Keras 1 and 2 (in torch and Keras 3 the slope is 1 / 6). Default: ``"sigmoid"``.
        recompute: less memory for a longer training step (Chen et al. 2016): the forward pass saves only a state every
            k steps, and the backward pass recomputes the steps between two of them. k is the square root of T,
            rounded down; 32 under ``torch.compile`` and in ``torch.export``, where T may vary. The results are the
            same, on the CPU to the bit, with an exception in half precision (:func:`lstm_fused.ops.lstm_layer`).
            Default: ``False``.
        eps: of the layer norms. Default: 1e-5.

    Rates are in [0, 1), that of ``dropout`` in [0, 1]. Random masks act in training only.

    Inputs:
        input: [T, B, I], [B, T, I] with ``batch_first``, [T, I] for one sequence, or a ``PackedSequence``.
        hx: ``(h_0, c_0)``, [L * D, B, P] and [L * D, B, H]; zeros if not given.
        lengths, reset, seed: of :meth:`forward`: steps of each sequence, steps before which the state is zero, and the
            seed of the masks.

    Outputs:
        output: [T, B, D * P], or as the input is laid out; zero past a sequence's length.
        (h_n, c_n): [L * D, B, P] and [L * D, B, H]: the state after the last step of each sequence.

    Variables:
        weight_ih_l[k]: [4 * H, I] of layer k, [4 * H, D * P] from the second on: W_ii, W_if, W_ig and W_io.
        weight_hh_l[k]: [4 * H, P]: W_hi, W_hf, W_hg and W_ho.
        bias_ih_l[k], bias_hh_l[k]: [4 * H], likewise; not with ``layer_norm="carry"``.
        weight_hr_l[k]: [P, H], with a projection.
        weight_ci_l[k], weight_cf_l[k], weight_co_l[k]: [H], with ``peephole``.
        weight_ln_ih_l[k], weight_ln_hh_l[k], weight_ln_c_l[k]: [4 * H], [4 * H] and [H], with ``layer_norm``: gains.
        bias_ln_c_l[k]: [H], with ``layer_norm``.
        bias_ln_ih_l[k], bias_ln_hh_l[k]: [4 * H], with ``layer_norm="carry"``.

    Those of the reverse direction end in ``_reverse``. Gains start as 1 and biases of norms as 0; everything else is
    drawn uniformly from [-1 / sqrt(H), 1 / sqrt(H)], as in ``nn.LSTM``. With ``forget_bias`` the forget gate's part of
    ``bias_ih`` (of ``bias_ln_ih`` with ``"carry"``) starts as that, and its part of the other bias as 0.

    Raises:
        TypeError: an argument has a wrong type: a size that is not an int, a switch that is not a bool.
        ValueError: an argument has a wrong value, or two exclude each other.

    Note:
        ``isinstance(module, nn.LSTM)`` is False; it is True for :class:`lstm_fused.LSTM`. Code that initializes weights
        can use :attr:`all_weights`.

        On the CPU, in all dtypes but float32 and with a projection, the output of a training step may be modified in
        place before the backward pass, like that of ``nn.LSTM``. The output is a copy for this reason, unless
        ``bidirectional`` or ``recompute`` makes one unnecessary. The copy costs about 1 % of the step's time and 8 to
        14 % of the memory that the step saves for its backward pass.

    Example:
        >>> lstm = FusedLSTM(10, 20, num_layers=2, layer_norm=True, recurrent_dropout=0.25, zoneout=(0.05, 0.15))
        >>> input = torch.randn(5, 3, 10)
        >>> h_0, c_0 = torch.randn(2, 3, 20), torch.randn(2, 3, 20)
        >>> output, (h_n, c_n) = lstm(input, (h_0, c_0), lengths=[5, 3, 4])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
        >>> output[3:, 1].abs().max().item()
        0.0

    References:
        - Zaremba, Sutskever and Vinyals, "Recurrent neural network regularization", 2014.
        - Sak, Senior and Beaufays, "Long short-term memory based recurrent neural network architectures for large
          vocabulary speech recognition", 2014.
        - Ba, Kiros and Hinton, "Layer normalization", 2016.
        - Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", 2016.
        - Semeniuta, Severyn and Barth, "Recurrent dropout without memory loss", 2016.
        - Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2016.
        - Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", 2018.
        - Gers and Schmidhuber, "Recurrent nets that time and count", 2000.
        - Jozefowicz, Zaremba and Sutskever, "An empirical exploration of recurrent network architectures", 2015.
        - Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016.
    """

    mode = "LSTM"  # as in torch's recurrent layers
    _OPACUS = "DPLSTM"
    _OPTIONS = LayerOptions

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool | LayerNorm = False,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_on: DropoutPlace = "hidden",
        zoneout: float | tuple[float, float] = 0.0,
        weight_dropout: float = 0.0,
        peephole: bool = False,
        forget_bias: float | None = None,
        open_gates: str | Iterable[str] = (),
        activation: Activation = "tanh",
        recurrent_activation: RecurrentActivation = "sigmoid",
        recompute: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(checks.boolean("bias", bias), locals())
        self.num_layers: int = checks.positive_int("num_layers", num_layers)
        self.batch_first: bool = checks.boolean("batch_first", batch_first)
        self.dropout: float = checks.output_dropout_rate(dropout)
        self.bidirectional: bool = checks.boolean("bidirectional", bidirectional)
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        for index, suffix in enumerate(self._suffixes()):
            first = index < self.num_directions
            width = self.input_size if first else self.num_directions * self._output_size
            self._register(suffix, width, device, dtype)
        self.reset_parameters()

    @classmethod
    def from_torch(cls, lstm: nn.LSTM, **options: Any) -> FusedLSTM:
        """A copy of ``lstm``, with the given keyword-only arguments.

        Copied: sizes, weights and whether each is trained, device, dtype and mode.
        The biases are those of ``lstm``, with ``layer_norm="carry"`` as biases of the norms: ``forget_bias`` changes
        nothing until ``reset_parameters()``.

        Raises:
            TypeError: ``lstm`` is another module.
        """
        checks.instance("lstm", lstm, nn.LSTM)
        weight: Any = lstm.weight_ih_l0
        fused = cls(
            lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.bias, lstm.batch_first, lstm.dropout,
            lstm.bidirectional, lstm.proj_size, weight.device, weight.dtype, **options,
        )  # fmt: skip

        def ours(name: str) -> str:
            return name.replace("bias_", "bias_ln_") if fused.layer_norm == "carry" else name

        fused.load_state_dict(fused.state_dict() | {ours(name): value for name, value in lstm.state_dict().items()})
        for name, parameter in lstm.named_parameters():
            fused.get_parameter(ours(name)).requires_grad_(parameter.requires_grad)
        return fused.train(lstm.training)

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction that ``nn.LSTM.all_weights`` has, without norms and peepholes.

        With ``layer_norm="carry"`` the biases among them are ``bias_ln_ih`` and ``bias_ln_hh``, which take the place of
        the others.
        """
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    # Private in nn.LSTM too, but used by much code that initializes weights and forget gate biases. Therefore these
    # contain matrices and vectors [4H] of all four gates only.
    @property
    def _all_weights(self) -> list[list[str]]:
        kinds = WEIGHT_NAMES + (NORM_BIAS_NAMES if self.layer_norm == "carry" else BIAS_NAMES) + PROJECTION_NAMES
        names = ([kind + suffix for kind in kinds] for suffix in self._suffixes())
        return [[name for name in of_layer if getattr(self, name) is not None] for of_layer in names]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[nn.Parameter]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def flatten_parameters(self) -> None:
        """Does nothing: the ops use the weights in place. It exists for code written for ``nn.LSTM``."""

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse")[: self.num_directions]
        return [f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def _draws_masks(self) -> bool:
        return super()._draws_masks() or (self.training and self.dropout > 0 and self.num_layers > 1)

    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> tuple[Tensor, State]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: State | None = None,
        lengths: None = None,
        reset: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> tuple[PackedSequence, State]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run the whole stack over a batch of sequences. Sizes: D directions, L layers, P = proj_size or H.

        Args:
            input: [T, B, I], [B, T, I] with ``batch_first``, [T, I] for one sequence, or a ``PackedSequence``.
            hx: ``(h_0, c_0)``, [L * D, B, P] and [L * D, B, H] (no B for one sequence); zeros when not given.
            lengths: [B], the number of real steps of each sequence, 0..T; a list of ints, or an integer tensor on any
                device (preferable under ``torch.compile``, which compiles one graph per length of a list).
            reset: bool [T, B], laid out as the input ([T] for one sequence): steps before which, in running order, the
                state (also that of ``hx``) becomes zero, such as at the start of an episode or a document.
            seed: of the random masks, an int or a 0-dim int64 tensor; by default drawn from torch's generator if masks
                are drawn. The same seed gives the same masks.

        Returns:
            ``output, (h_n, c_n)``: output [T, B, D * P] (or as the input is laid out), zero past a sequence's length;
            h_n and c_n shaped as ``hx``, those after the last real step (of the reverse direction: after step 0).

        Raises:
            TypeError: ``hx`` is not a pair of tensors; input, lengths, reset or seed have a wrong type.
            ValueError: input has the wrong number of dimensions or dtype, or is not dense; seed has more than 64 bits;
                lengths are given with a ``PackedSequence``.
            RuntimeError: sizes, dtypes or devices of two tensors differ; lengths are not in 0..T; a
                ``PackedSequence`` is damaged, or to be traced.

            The types are those of ``nn.LSTM`` where it checks the same. Each message is one sentence that names the
            argument.
        """
        is_default_call = lengths is None and reset is None and seed is None
        if is_default_call and not torch.is_grad_enabled() and self._is_one_default_op():
            result = direct_layer(input, hx, self._all_parameters()[0], self.hidden_size)
            if result is not None:
                return result
        if not isinstance(input, Tensor) and isinstance(input, torch.fx.Proxy):
            return self._in_fx_graph(input, hx=hx, lengths=lengths, reset=reset, seed=seed)
        return self._forward(input, hx, lengths, reset, seed, ops.lstm_layer)

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module has no type for it

    def _is_one_default_op(self) -> bool:
        """Whether a call of the op with its defaults gives what this module gives, but for the layout of the state."""
        one = self.num_layers == 1 and not self.bidirectional
        return one and not (self.batch_first or self.proj_size or self._op_arguments)

    def trace(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Trace:
        """Like :meth:`forward`, with the gates, cells and hidden states of every layer and direction.

        The results equal those of forward, with the same ``seed`` if masks are drawn. There are no gradients.
        """
        recorder = Recorder()
        with torch.no_grad():
            output, state = self._forward(input, hx, lengths, reset, seed, recorder)
        return Trace(output, state, tuple(recorder.gates), tuple(recorder.cells), tuple(recorder.hidden))

    def _forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None,
        lengths: Tensor | Sequence[int] | None,
        reset: Tensor | None,
        seed: int | Tensor | None,
        run_layer: RunLayer,
    ) -> tuple[Tensor | PackedSequence, State]:
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths must be None with a PackedSequence, which has its own")
            return self._forward_packed(input, hx, reset, seed, run_layer)
        parameters = self._all_parameters()
        weight, L = parameters[0][0], len(parameters)
        checks.input_tensor(input, self.input_size, (2, 3), weight)
        if lengths is not None:
            lengths = checks.lengths_tensor(lengths, input.device)
        if reset is not None:
            checks.reset_tensor(reset, tuple(input.shape[:-1]), input.device)
        sizes = (self._output_size, self.hidden_size)
        if input.dim() == 2:
            checks.state(hx, (L,), sizes, weight)
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
            reset = None if reset is None else reset.unsqueeze(1)
            output, (h_n, c_n) = self._run(input.unsqueeze(1), hx, parameters, lengths, reset, seed, run_layer)
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        if self.batch_first:
            input = input.transpose(0, 1)
            reset = None if reset is None else reset.T
        checks.state(hx, (L, input.shape[1]), sizes, weight)
        output, state = self._run(input, hx, parameters, lengths, reset, seed, run_layer)
        return output.transpose(0, 1) if self.batch_first else output, state

    def _forward_packed(
        self,
        input: PackedSequence,
        hx: State | None,
        reset: Tensor | None,
        seed: int | Tensor | None,
        run_layer: RunLayer,
    ) -> tuple[PackedSequence, State]:
        """Run the padded input in the caller's order of sequences, which hx and reset have too, and pack the output."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "input must be a padded tensor, with lengths, under torch.compile(fullgraph=True) and torch.export, "
                "which cannot trace the sizes in it, got a PackedSequence"
            )
        parameters = self._all_parameters()
        weight = parameters[0][0]
        checks.packed(input)
        # [T, B, I] with the longest sequence first, and lengths [B] on the CPU. The caller's order is restored below:
        # pad_packed_sequence would block on a GPU to do so.
        padded, lengths = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))
        if padded.dim() != 3:
            raise RuntimeError(f"input must be a PackedSequence of 2-D data, got {input.data.dim()}-D")
        checks.input_tensor(padded, self.input_size, (2, 3), weight)
        checks.state(hx, (len(parameters), padded.shape[1]), (self._output_size, self.hidden_size), weight)
        if reset is not None:
            checks.reset_tensor(reset, tuple(padded.shape[:2]), padded.device)
        real = checks.to_device(lengths, padded.device)
        if input.unsorted_indices is not None:
            padded = padded.index_select(1, input.unsorted_indices)
            real = real.index_select(0, input.unsorted_indices)
        output, state = self._run(padded, hx, parameters, real, reset, seed, run_layer)
        if input.sorted_indices is not None:
            output = output.index_select(1, input.sorted_indices)
        packed = pack_padded_sequence(output, lengths)
        return input._replace(data=packed.data, batch_sizes=packed.batch_sizes), state

    def _run(
        self,
        input: Tensor,
        hx: State | None,
        parameters: list[list[Any]],
        lengths: Tensor | None,
        reset: Tensor | None,
        seed: int | Tensor | None,
        run_layer: RunLayer,
    ) -> tuple[Tensor, State]:
        """input [T, B, I] -> output [T, B, D * P], (h_n, c_n) [L * D, B, P and H]."""
        changes_allowed = False
        if torch.is_grad_enabled() or is_traced():
            input, hx, changes_allowed = self._kept_for_backward(input, hx, parameters)
        h_0, c_0 = self._initial_states(hx, parameters, input.shape[1])
        if seed is not None or self.training:
            seed = self._seed(seed, input.device)
        options = self._op_arguments
        if "recompute" in options:
            options = options | {"recompute": _segment_steps(input.shape[0])}
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            outputs = []
            dropout = self.dropout if layer < self.num_layers - 1 else 0.0
            for direction in range(self.num_directions):
                place = layer * self.num_directions + direction
                output, h, c = run_layer(
                    input, h_0[place], c_0[place], *parameters[place], lengths=lengths, reset=reset, seed=seed,
                    reverse=direction == 1, dropout=0.0 if dropout == 1 else dropout, training=self.training,
                    stream=place, **options,
                )  # fmt: skip
                outputs.append(output)
                h_n.append(h)
                c_n.append(c)
            input = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
            if dropout == 1 and self.training:  # the kernels divide by 1 - rate
                input = input * 0
        if (
            changes_allowed
            and not (self.bidirectional or "recompute" in options)
            and (input.requires_grad or is_traced())
        ):
            input = input.clone()  # the last op's backward pass reads its own output
        if len(h_n) == 1:
            return input, (h_n[0].unsqueeze(0), c_n[0].unsqueeze(0))
        return input, (torch.stack(h_n), torch.stack(c_n))

    def _kept_for_backward(
        self, input: Tensor, hx: State | None, parameters: list[list[Any]]
    ) -> tuple[Tensor, State | None, bool]:
        """The input and state that the backward pass reads, and whether the caller may modify tensors in place."""
        input = input.contiguous()  # once here, rather than in the op and again in its backward op
        changes_allowed = self._allows_changes(input)
        if changes_allowed:
            input = copy_for_backward(input, parameters[0][0])
        if hx is not None:
            hx = (copy_for_backward(hx[0], *(weights[1] for weights in parameters)), hx[1])
        return input, hx, changes_allowed

    def _initial_states(
        self, hx: State | None, parameters: list[list[Any]], B: int
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """h_0 and c_0 of each layer and direction, [B, P] and [B, H]."""
        if hx is not None:
            return hx[0].unbind(), hx[1].unbind()
        c_0 = parameters[0][0].new_zeros(B, self.hidden_size)
        h_0 = parameters[0][0].new_zeros(B, self.proj_size) if self.proj_size else c_0
        return [h_0] * len(parameters), [c_0] * len(parameters)

    def _allows_changes(self, input: Tensor) -> bool:
        """Whether ``nn.LSTM`` lets the caller change tensors in place between this call and its backward pass.

        On the CPU it does if it runs in torch's own operators. Their backward pass does not read the output, as
        ``ReLU(inplace=True)`` and ``output += x`` need, nor the input or h_0 of frozen weights. That of oneDNN's kernel
        does.
        """
        if not input.is_cpu:
            return False
        dtype = torch.get_autocast_dtype("cpu") if checks.autocast_is_on(input) else input.dtype
        # A compiled graph must not depend on the switch: torch.compile has no nn.LSTM to compare with.
        onednn = _HAS_ONEDNN and (torch.compiler.is_compiling() or torch._C._get_mkldnn_enabled())
        return not (onednn and dtype == torch.float32 and not self.proj_size)

    def extra_repr(self) -> str:
        shown = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0}
        shown |= {"bidirectional": False}
        on = [f", {name}={getattr(self, name)}" for name, default in shown.items() if getattr(self, name) != default]
        return f"{self.input_size}, {self.hidden_size}" + "".join(on) + self._options_repr()
