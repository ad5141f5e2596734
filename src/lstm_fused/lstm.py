"""FusedLSTM and FusedLSTMCell: ``nn.LSTM`` and ``nn.LSTMCell`` with every regularizer inside the recurrence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import _checks as checks
from . import _per_sample as per_sample
from . import ops
from ._types import Device, DropoutPlace, Gate, LayerNorm, State
from .trace import Recorder, Trace

# One layer's parameters in the order in which an op takes them, and in which nn.LSTM registers and initializes its own.
_WEIGHTS = ("weight_ih", "weight_hh")
_BIASES = ("bias_ih", "bias_hh")
_NORMS = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")
_NORM_BIASES = ("bias_ln_ih", "bias_ln_hh")  # of "carry", in place of the biases
_PROJECTION = ("weight_hr",)
_PEEPHOLES = ("weight_ci", "weight_cf", "weight_co")
_PARAMETERS = _WEIGHTS + _BIASES + _NORMS + _NORM_BIASES + _PROJECTION + _PEEPHOLES
_UNIFORM = _WEIGHTS + _BIASES + _PROJECTION + _PEEPHOLES

_HAS_ONEDNN = torch.backends.mkldnn.is_available()

_GATE_BITS = {"i": 1, "f": 2, "o": 4}  # of the ops' open_gates


class _FusedBase(nn.Module):
    """What the layer stack and the cell share: arguments, parameters and their initialization, the seed."""

    _OPACUS: str  # its module that takes the place

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        *,
        layer_norm: bool | LayerNorm,
        recurrent_dropout: float,
        recurrent_dropout_on: DropoutPlace,
        zoneout: float | tuple[float, float],
        weight_dropout: float,
        peephole: bool,
        forget_bias: float | None,
        open_gates: str | Iterable[str],
        eps: float,
        proj_size: int = 0,
    ) -> None:
        nn.Module.__init__(self)  # and no other: a class with nn.LSTM among its bases registers no weights of its own
        per_sample.refuse(type(self), self._OPACUS)
        self.input_size: int = checks.positive_int("input_size", input_size)
        self.hidden_size: int = checks.positive_int("hidden_size", hidden_size)
        self.bias: bool = bias
        self.layer_norm: Literal[False] | LayerNorm = checks.layer_norm_kind(layer_norm, bias)
        self.recurrent_dropout: float = checks.rate("recurrent_dropout", recurrent_dropout)
        self.recurrent_dropout_on: DropoutPlace = checks.dropout_place(recurrent_dropout_on)
        self.zoneout: tuple[float, float] = checks.zoneout_rates(zoneout)
        self.weight_dropout: float = checks.rate("weight_dropout", weight_dropout)
        self.peephole: bool = checks.boolean("peephole", peephole)
        self.forget_bias: float | None = checks.forget_bias(forget_bias, bias)
        self.open_gates: tuple[Gate, ...] = checks.gate_names(open_gates)
        self.proj_size: int = checks.projection_size(proj_size, self.hidden_size, self.zoneout[0])
        self.eps: float = checks.epsilon(eps)
        # Of each layer and direction: the names of its parameters as the ops take them, down to the last that it has.
        self._names: list[tuple[str, ...]] = []

    def _suffixes(self) -> list[str]:
        """What follows a parameter's name, for every layer and direction."""
        raise NotImplementedError

    def _register(self, suffix: str, input_size: int, device: Device, dtype: torch.dtype | None) -> None:
        H, P = self.hidden_size, self._output_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (4 * H, input_size),
            "weight_hh": (4 * H, P),
            **dict.fromkeys(_BIASES, (4 * H,)),
            "weight_hr": (P, H),  # here nn.LSTM has it
            **dict.fromkeys(_NORMS[:2] + _NORM_BIASES, (4 * H,)),
            **dict.fromkeys(_NORMS[2:] + _PEEPHOLES, (H,)),
        }
        carries = self.layer_norm == "carry"
        kept = {
            _BIASES: self.bias and not carries,
            _NORMS: bool(self.layer_norm),
            _NORM_BIASES: carries,
            _PROJECTION: self.proj_size > 0,
            _PEEPHOLES: self.peephole,
        }
        absent = {name for names, keep in kept.items() if not keep for name in names}
        for name, shape in shapes.items():
            value = None if name in absent else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name + suffix, value)
        last = max(k for k, name in enumerate(_PARAMETERS) if name not in absent)
        self._names.append(tuple(name + suffix for name in _PARAMETERS[: last + 1]))

    def _all_parameters(self) -> list[list[Any]]:
        """Of each layer and direction, as an op takes them: weight_ih and weight_hh, then tensors or None."""
        # nn.Module.__getattr__ is slow; it is needed only where a parametrization has taken a parameter's place.
        own = self._parameters
        return [[own[name] if name in own else getattr(self, name) for name in names] for names in self._names]

    def reset_parameters(self) -> None:
        """Initialize again: uniform as ``nn.LSTM``, norms as the identity, the forget gate's bias if one was given."""
        bound = 1 / math.sqrt(self.hidden_size)
        forget = slice(self.hidden_size, 2 * self.hidden_size)
        for suffix in self._suffixes():
            parameters = {
                name: getattr(self, name + suffix)
                for name in (*_WEIGHTS, *_BIASES, *_PROJECTION, *_NORMS, *_NORM_BIASES, *_PEEPHOLES)
            }
            for name, parameter in parameters.items():
                if parameter is not None and name in _UNIFORM:
                    nn.init.uniform_(parameter, -bound, bound)
                elif parameter is not None:
                    nn.init.constant_(parameter, float(name.startswith("weight")))
            if self.forget_bias is not None:
                added, zeroed = _NORM_BIASES if self.layer_norm == "carry" else _BIASES
                nn.init.constant_(parameters[added][forget], self.forget_bias)
                nn.init.zeros_(parameters[zeroed][forget])

    @property
    def _output_size(self) -> int:
        """P: of h."""
        return self.proj_size or self.hidden_size

    def _recurrence_options(self) -> dict[str, Any]:
        """The arguments of an op that the layer and the cell share."""
        on_hidden = self.recurrent_dropout_on == "hidden"
        return {
            "recurrent_dropout": self.recurrent_dropout if on_hidden else 0.0,
            "candidate_dropout": 0.0 if on_hidden else self.recurrent_dropout,
            "weight_dropout": self.weight_dropout,
            "zoneout_h": self.zoneout[0],
            "zoneout_c": self.zoneout[1],
            "open_gates": sum(_GATE_BITS[gate] for gate in self.open_gates) if self.open_gates else 0,
            "training": self.training,
            "eps": self.eps,
        }

    def _is_plain(self) -> bool:
        """Whether no argument of :meth:`_recurrence_options` does anything."""
        rates = self.recurrent_dropout or self.weight_dropout or self.zoneout != (0, 0)
        return not (rates or self.open_gates) and self.eps == ops.EPS

    def _random(self) -> bool:
        """Whether a call draws masks now."""
        return self.training and (self.recurrent_dropout > 0 or self.weight_dropout > 0 or max(self.zoneout) > 0)

    def _seed(self, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
        """The seed as the ops take it: int64, 0-dim; drawn from torch's generator only when something needs it."""
        if seed is not None:
            return checks.seed_tensor(seed, device)
        return torch.randint(2**63 - 1, (), device=device) if self._random() else None

    def _in_fx_graph(self, input: torch.fx.Proxy, **arguments: Any) -> torch.fx.Proxy:
        """A node of ``torch.fx`` that calls this module, as it makes one of every module of torch's own."""
        tracer: Any = input.tracer  # a torch.fx.Tracer: nothing else has modules
        if tracer.root is self:
            raise TypeError("root must be a model with this module in it, to be traced by torch.fx, got the module")
        given = {name: value for name, value in arguments.items() if value is not None}
        node: torch.fx.Proxy = tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), given)
        return node

    def __prepare_scriptable__(self) -> None:
        """What ``torch.jit.script`` asks for first."""
        raise RuntimeError(
            f"module must be traced (torch.jit.trace), compiled (torch.compile) or exported (torch.export), which a "
            f"{type(self).__name__} can be, got torch.jit.script, which cannot compile its Python"
        )

    def _options_repr(self) -> str:
        """The options that are on and that torch's own modules lack."""
        shown = {
            "layer_norm": (self.layer_norm, False),
            "recurrent_dropout": (self.recurrent_dropout, 0),
            "recurrent_dropout_on": (self.recurrent_dropout_on, "hidden"),
            "zoneout": (self.zoneout, (0, 0)),
            "weight_dropout": (self.weight_dropout, 0),
            "peephole": (self.peephole, False),
            "forget_bias": (self.forget_bias, None),
            "open_gates": (self.open_gates, ()),
            "eps": (self.eps, 1e-5),
        }
        return "".join(f", {name}={value!r}" for name, (value, default) in shown.items() if value != default)


def _segment_steps(T: int) -> int:
    """Steps between the states that are kept. The T / k states and the k steps of a segment both take memory."""
    if torch.compiler.is_compiling():  # where T is a symbol; there is no symbolic root that torch compiles reliably
        return 32
    return max(1, math.isqrt(T))


def _is_traced() -> bool:
    """By ``torch.jit.trace``. What it records may be trained, whether gradients are on while it does so or not."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def _own(x: Tensor, *weights: Tensor) -> Tensor:
    """A copy of what multiplies weights that are not trained.

    torch's own operators do not need it in their backward pass, so that the caller may change it in place before; ours
    do.
    """
    return x.clone() if x.requires_grad and not all(weight.requires_grad for weight in weights) else x


class FusedLSTM(_FusedBase):
    """``nn.LSTM`` with regularization inside the recurrence, one op per layer and direction.

    Arguments, initialization, state dict and results are those of ``nn.LSTM``; the keyword-only arguments are new. At
    every step a layer computes, with the new arguments at their defaults::

        i_t = sigmoid(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi)
        f_t = sigmoid(W_if x_t + b_if + W_hf h_{t-1} + b_hf)
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        o_t = sigmoid(W_io x_t + b_io + W_ho h_{t-1} + b_ho)
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t)                                  with a projection: W_hr (o_t * tanh(c_t))

    Where each option enters these equations is said in :func:`lstm_fused.reference.lstm_cell`.

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
        open_gates: gates held at 1, any of ``"i"``, ``"f"``, ``"o"``, to see what a gate is good for. Default: none.
        recompute: less memory for a longer training step (Chen et al. 2016): the forward pass keeps only a state every
            k steps, and the backward pass computes the steps between two of them again. k is the square root of T,
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
        TypeError: an argument has a wrong type: a size that is no int, a switch that is no bool.
        ValueError: an argument has a wrong value, or two exclude each other.

    Note:
        It is no ``nn.LSTM`` for ``isinstance``: see :class:`lstm_fused.LSTM`, and for initialization
        :attr:`all_weights`.

        On the CPU, in all dtypes but float32 and with a projection, the output of a training step may be changed in
        place before the backward pass, as that of ``nn.LSTM`` may. It is a copy, unless ``bidirectional`` or
        ``recompute`` makes that needless, and costs about 1 % of the step's time and 8 to 14 % of the memory that it
        keeps.

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

    mode = "LSTM"  # of torch's recurrent layers, to tell them apart
    _OPACUS = "DPLSTM"

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
        recompute: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(
            input_size, hidden_size, checks.boolean("bias", bias), layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout, recurrent_dropout_on=recurrent_dropout_on, zoneout=zoneout,
            weight_dropout=weight_dropout, peephole=peephole, forget_bias=forget_bias, open_gates=open_gates, eps=eps,
            proj_size=proj_size,
        )  # fmt: skip
        self.num_layers: int = checks.positive_int("num_layers", num_layers)
        self.batch_first: bool = checks.boolean("batch_first", batch_first)
        self.dropout: float = checks.output_dropout_rate(dropout)
        self.bidirectional: bool = checks.boolean("bidirectional", bidirectional)
        self.variational: bool = checks.boolean("variational", variational)
        self.recompute: bool = checks.boolean("recompute", recompute)
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

    # Private in nn.LSTM too, but read by much code that initializes weights, and the biases of forget gates: so these
    # name matrices, and vectors [4H] of all four gates, and nothing else.
    @property
    def _all_weights(self) -> list[list[str]]:
        kinds = _WEIGHTS + (_NORM_BIASES if self.layer_norm == "carry" else _BIASES) + _PROJECTION
        names = ([kind + suffix for kind in kinds] for suffix in self._suffixes())
        return [[name for name in of_layer if getattr(self, name) is not None] for of_layer in names]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[nn.Parameter]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def flatten_parameters(self) -> None:
        """Nothing to do: the ops take the weights as they are. Here because code written for ``nn.LSTM`` calls it."""

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse")[: self.num_directions]
        return [f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    def _random(self) -> bool:
        return super()._random() or (self.training and self.dropout > 0 and self.num_layers > 1)

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
                device (the better choice under ``torch.compile``, which makes a graph for every length of a list).
            reset: bool [T, B], laid out as the input ([T] for one sequence): where the state, also that of ``hx``, is
                zero before a step in running order, as at the start of an episode or a document.
            seed: of the random masks, an int or an int64 0-dim tensor; drawn from torch's generator when needed and not
                given. The same seed gives the same masks.

        Returns:
            ``output, (h_n, c_n)``: output [T, B, D * P] (or as the input is laid out), zero past a sequence's length;
            h_n and c_n shaped as ``hx``, those after the last real step (of the reverse direction: after step 0).

        Raises:
            TypeError: ``hx`` is no pair of tensors; input, lengths, reset or seed have a wrong type.
            ValueError: input has the wrong number of dimensions or dtype, or is no dense tensor; seed has more than 64
                bits; lengths are given with a ``PackedSequence``.
            RuntimeError: sizes, dtypes or devices of two tensors differ; lengths are not in 0..T; a
                ``PackedSequence`` is damaged, or to be traced.

            All as ``nn.LSTM`` where it checks the same, in one sentence that names the argument.
        """
        plain_call = lengths is None and reset is None and seed is None
        if plain_call and not torch.is_grad_enabled() and self._is_plain_layer():
            result = ops.plain_layer(input, hx, self._all_parameters()[0], self.hidden_size)
            if result is not None:
                return result
        if not isinstance(input, Tensor) and isinstance(input, torch.fx.Proxy):
            return self._in_fx_graph(input, hx=hx, lengths=lengths, reset=reset, seed=seed)
        return self._forward(input, hx, lengths, reset, seed, ops.lstm_layer)

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module has no type for it

    def _is_plain_layer(self) -> bool:
        """Whether the op alone gives what this module gives, but for the layout of the state."""
        one = self.num_layers == 1 and not self.bidirectional
        return one and not (self.batch_first or self.proj_size or self.recompute) and self._is_plain()

    def trace(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Trace:
        """As :meth:`forward`, and what went on inside: the gates, cells and hidden states of every layer and direction.

        The numbers are those of forward (with the same ``seed``, where masks are drawn); there are no gradients.
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
        run_layer: Callable[..., tuple[Tensor, Tensor, Tensor]],
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
        run_layer: Callable[..., tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[PackedSequence, State]:
        """Run it padded, in the caller's order of sequences, as are hx, reset and the masks; pack the output again."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "input must be a padded tensor, with lengths, under torch.compile(fullgraph=True) and torch.export, "
                "which cannot trace the sizes in it, got a PackedSequence"
            )
        parameters = self._all_parameters()
        weight = parameters[0][0]
        checks.packed(input)
        # [T, B, I], the longest first, and lengths on the CPU, [B]. They are put in the caller's order here, for which
        # torch would wait for a GPU.
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
        run_layer: Callable[..., tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[Tensor, State]:
        """input [T, B, I] -> output [T, B, D * P], (h_n, c_n) [L * D, B, P and H]."""
        changes_allowed = False
        if torch.is_grad_enabled() or _is_traced():
            input = input.contiguous()  # once, not in the op and in its backward op
            changes_allowed = self._allows_changes(input)
            if changes_allowed:
                input = _own(input, parameters[0][0])
            if hx is not None:
                hx = (_own(hx[0], *(weights[1] for weights in parameters)), hx[1])
        h_0: Sequence[Tensor]
        c_0: Sequence[Tensor]
        if hx is None:
            h_0 = c_0 = [parameters[0][0].new_zeros(input.shape[1], self.hidden_size)] * len(parameters)
            if self.proj_size:
                h_0 = [parameters[0][0].new_zeros(input.shape[1], self.proj_size)] * len(parameters)
        else:
            h_0, c_0 = hx[0].unbind(), hx[1].unbind()
        if seed is not None or self.training:
            seed = self._seed(seed, input.device)
        options = self._recurrence_options()
        if self.recompute:
            options["recompute"] = _segment_steps(input.shape[0])
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            outputs = []
            dropout = self.dropout if layer < self.num_layers - 1 else 0.0
            for direction in range(self.num_directions):
                stream = layer * self.num_directions + direction
                output, h, c = run_layer(
                    input,
                    h_0[stream],
                    c_0[stream],
                    *parameters[stream],
                    lengths=lengths,
                    reset=reset,
                    seed=seed,
                    reverse=direction == 1,
                    dropout=0.0 if dropout == 1 else dropout,
                    variational=self.variational,
                    stream=stream,
                    **options,
                )
                outputs.append(output)
                h_n.append(h)
                c_n.append(c)
            input = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
            if dropout == 1 and self.training:  # which the kernels, dividing by 1 - rate, cannot do
                input = input * 0
        if changes_allowed and not (self.bidirectional or self.recompute) and (input.requires_grad or _is_traced()):
            input = input.clone()  # the last op's backward pass reads what it gave
        if len(h_n) == 1:
            return input, (h_n[0].unsqueeze(0), c_n[0].unsqueeze(0))
        return input, (torch.stack(h_n), torch.stack(c_n))

    def _allows_changes(self, input: Tensor) -> bool:
        """Whether ``nn.LSTM`` lets the caller change tensors in place between this call and its backward pass.

        On the CPU it does where it runs in torch's own operators, which read no output in their backward pass
        (``ReLU(inplace=True)``, ``output += x``), nor the input or h_0 of weights that are not trained; not where
        oneDNN's kernel runs.
        """
        if not input.is_cpu:
            return False
        dtype = torch.get_autocast_dtype("cpu") if checks.autocast_is_on(input) else input.dtype
        # Whether it is switched on no graph should depend on: torch.compile is given no nn.LSTM to compare with.
        onednn = _HAS_ONEDNN and (torch.compiler.is_compiling() or torch._C._get_mkldnn_enabled())
        return not (onednn and dtype == torch.float32 and not self.proj_size)

    def extra_repr(self) -> str:
        shown = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0}
        shown |= {"bidirectional": False, "variational": False, "recompute": False}
        on = [f", {name}={getattr(self, name)}" for name, default in shown.items() if getattr(self, name) != default]
        return f"{self.input_size}, {self.hidden_size}" + "".join(on) + self._options_repr()


class FusedLSTMCell(_FusedBase):
    """``nn.LSTMCell`` with layer norm, recurrent dropout and zoneout: a step of :class:`FusedLSTM`, with its equations.

    A loop over the steps of a sequence gives what the layer gives if every call gets the layer's ``seed`` and its
    number as ``step``.

    Args:
        input_size: features of the input, I.
        hidden_size: units of the state, H.
        bias: whether there are ``bias_ih`` and ``bias_hh``. Default: ``True``.
        device, dtype: of the parameters.
        layer_norm, recurrent_dropout, recurrent_dropout_on, zoneout: as in :class:`FusedLSTM`.
        weight_dropout, peephole, forget_bias, open_gates, eps: likewise.

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
        eps: float = 1e-5,
    ) -> None:
        super().__init__(
            input_size, hidden_size, checks.truth("bias", bias), layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout, recurrent_dropout_on=recurrent_dropout_on, zoneout=zoneout,
            weight_dropout=weight_dropout, peephole=peephole, forget_bias=forget_bias, open_gates=open_gates, eps=eps,
        )  # fmt: skip
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
            hx: ``(h_0, c_0)``, each [B, H] or [H]; zeros when not given.
            reset: bool [B] or []: whose previous state is taken as zero.
            seed: as in :class:`FusedLSTM`. Without one every call draws new masks, those of ``recurrent_dropout`` too.
            step: the number of this step in its sequence, from 0, which ``None`` means; chooses the masks of zoneout.

        Raises:
            TypeError: ``hx`` is no pair of tensors; input, reset, seed or step have a wrong type.
            ValueError: input or ``hx`` have a number of dimensions that ``nn.LSTMCell`` does not know, or input a wrong
                dtype; seed or step are out of range.
            RuntimeError: sizes, dtypes or devices of two tensors differ.

            All as ``nn.LSTMCell`` where it checks the same, in one sentence that names the argument.
        """
        (parameters,) = self._all_parameters()
        given_step, step = step, 0 if step is None else checks.step_number(step)
        if reset is None and seed is None and self._is_plain():  # which draws nothing for a step
            state = ops.plain_step(input, hx, parameters)
            if state is not None:
                return state
        if not isinstance(input, Tensor) and isinstance(input, torch.fx.Proxy):
            return self._in_fx_graph(input, hx=hx, reset=reset, seed=seed, step=given_step)
        weight = parameters[0]
        checks.input_tensor(input, self.input_size, (1, 2), weight)
        if hx is None:
            hx = (weight.new_zeros(*input.shape[:-1], self.hidden_size),) * 2
        batched = input.dim() == 2
        leading = (input.shape[0],) if batched else ()
        checks.state(hx, leading, (self.hidden_size,) * 2, weight, ranks=(1, 2))
        if reset is not None:
            checks.reset_tensor(reset, leading, input.device)
        if seed is not None or self.training:
            seed = self._seed(seed, input.device)
        if not batched:
            input, hx = input.unsqueeze(0), (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
            reset = None if reset is None else reset.unsqueeze(0)
        if torch.is_grad_enabled() or _is_traced():
            input, hx = _own(input, weight), (_own(hx[0], parameters[1]), hx[1])
        lstm_cell: Callable[..., State] = ops.lstm_cell  # no type says how many tensors *parameters holds
        h, c = lstm_cell(
            input,
            *hx,
            *parameters,
            reset=reset,
            seed=seed,
            step=step,
            **self._recurrence_options(),
        )
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}{self._options_repr()}"
