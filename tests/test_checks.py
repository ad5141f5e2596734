"""Bad input: one sentence that names the argument, what it got and what it wanted; never a crash."""

import contextlib
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from testing import EVERYTHING, EVERYTHING_ELSE, NOT_OF_A_CELL, cell_case, label, layer_case
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_sequence

from lstm_fused import FusedLSTM, FusedLSTMCell, convert, ops

NAN = float("nan")
TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])


def one_sentence(error: BaseException) -> bool:
    """One line, with neither a file of the source nor a stack trace in it."""
    text = str(error)
    return "\n" not in text.strip() and not re.search(r"\.(cpp|h|py)\b", text)


def name(x: object) -> str:
    """Of a case, in a test's id: its sentence."""
    return x if isinstance(x, str) else ""


# --- constructors

CONSTRUCTORS = [
    (FusedLSTM, {"input_size": 0}, ValueError, "input_size must be greater than zero, got 0"),
    (FusedLSTM, {"input_size": 2.5}, TypeError, "input_size must be an int, got float"),
    (FusedLSTM, {"hidden_size": -3}, ValueError, "hidden_size must be greater than zero, got -3"),
    (FusedLSTM, {"hidden_size": "8"}, TypeError, "hidden_size must be an int, got str"),
    (FusedLSTM, {"num_layers": 0}, ValueError, "num_layers must be greater than zero, got 0"),
    (FusedLSTM, {"input_size": torch.ones(2)}, TypeError, "input_size must be an int, got Tensor"),
    (FusedLSTM, {"num_layers": 2.0}, TypeError, "num_layers must be an int, got float"),
    (FusedLSTM, {"bias": 1}, TypeError, "bias must be a bool, got int"),
    (FusedLSTM, {"batch_first": np.zeros(2)}, TypeError, "batch_first must be a bool, got ndarray"),
    (FusedLSTM, {"batch_first": None}, TypeError, "batch_first must be a bool, got NoneType"),
    (FusedLSTM, {"bidirectional": "yes"}, TypeError, "bidirectional must be a bool, got str"),
    (FusedLSTM, {"variational": 1}, TypeError, "variational must be a bool, got int"),
    (FusedLSTM, {"recompute": 32}, TypeError, "recompute must be a bool, got int"),
    (FusedLSTM, {"dropout": 1.1}, ValueError, "dropout must be a number in [0, 1], got 1.1"),
    (FusedLSTM, {"dropout": -0.1}, ValueError, "dropout must be a number in [0, 1], got -0.1"),
    (FusedLSTM, {"dropout": NAN}, ValueError, "dropout must be a number in [0, 1], got nan"),
    (FusedLSTM, {"dropout": True}, ValueError, "dropout must be a number in [0, 1], got True"),
    (FusedLSTM, {"dropout": "0.5"}, ValueError, "dropout must be a number in [0, 1], got '0.5'"),
    (FusedLSTM, {"eps": 10**400}, ValueError, "eps must be a finite number of at least 1.2e-38, got 1000"),
    (FusedLSTM, {"dropout": 1j}, ValueError, "dropout must be a number in [0, 1], got 1j"),
    (FusedLSTM, {"recurrent_dropout": 2}, ValueError, "recurrent_dropout must be a number in [0, 1), got 2"),
    (FusedLSTM, {"zoneout": 1}, ValueError, "zoneout must be a number in [0, 1), got 1"),
    (FusedLSTM, {"zoneout": (0.1, NAN)}, ValueError, "zoneout[1] must be a number in [0, 1), got nan"),
    (FusedLSTM, {"zoneout": (0.1,)}, ValueError, "zoneout must be a rate or a pair (rate_h, rate_c), got 1 values"),
    (
        FusedLSTM,
        {"layer_norm": "ba2017"},
        ValueError,
        "layer_norm must be False, True, 'ba2016' or 'carry', got",
    ),
    (FusedLSTM, {"layer_norm": "carry", "bias": False}, ValueError, "layer_norm must not be 'carry' without biases"),
    (FusedLSTM, {"layer_norm": None}, ValueError, "layer_norm must be False, True, 'ba2016' or 'carry', got None"),
    (FusedLSTM, {"proj_size": 5}, ValueError, "proj_size must be 0 or a positive int below hidden_size (5), got 5"),
    (FusedLSTM, {"proj_size": -1}, ValueError, "proj_size must be 0 or a positive int below hidden_size (5), got -1"),
    (FusedLSTM, {"proj_size": 1.0}, TypeError, "proj_size must be an int, got float"),
    (FusedLSTM, {"proj_size": 2, "zoneout": 0.1}, ValueError, "zoneout of h must be 0 with a projection"),
    (FusedLSTM, {"recurrent_dropout_on": "c"}, ValueError, "recurrent_dropout_on must be 'hidden' or 'candidate', got"),
    (FusedLSTM, {"open_gates": "ig"}, ValueError, "open_gates must name gates among 'i', 'f' and 'o', got 'ig'"),
    (FusedLSTM, {"open_gates": 3}, ValueError, "open_gates must name gates among 'i', 'f' and 'o', got 3"),
    (FusedLSTM, {"activation": "gelu"}, ValueError, "activation must be 'tanh' or 'relu', got 'gelu'"),
    (
        FusedLSTMCell,
        {"recurrent_activation": 1},
        ValueError,
        "recurrent_activation must be 'sigmoid' or 'hard_sigmoid', got 1",
    ),
    (FusedLSTM, {"forget_bias": NAN}, ValueError, "forget_bias must be None or a finite number in float32, got nan"),
    (FusedLSTM, {"forget_bias": 1, "bias": False}, ValueError, "forget_bias must be None when there are no biases"),
    (FusedLSTM, {"eps": 0}, ValueError, "eps must be a finite number of at least 1.2e-38, got 0"),
    (FusedLSTM, {"peephole": 1}, TypeError, "peephole must be a bool, got int"),
    (FusedLSTM, {"weight_dropout": 1}, ValueError, "weight_dropout must be a number in [0, 1), got 1"),
    (FusedLSTMCell, {"input_size": 0}, ValueError, "input_size must be greater than zero, got 0"),
    (FusedLSTMCell, {"bias": torch.ones(2)}, TypeError, "bias must be true or false, got Tensor of several values"),
    (FusedLSTMCell, {"recurrent_dropout": 1}, ValueError, "recurrent_dropout must be a number in [0, 1), got 1"),
    (FusedLSTMCell, {"proj_size": 2}, TypeError, "unexpected keyword argument 'proj_size'"),
    (FusedLSTMCell, {"dropout": 0.5}, TypeError, "unexpected keyword argument 'dropout'"),
    (FusedLSTMCell, {"recompute": True}, TypeError, "unexpected keyword argument 'recompute'"),
]


@pytest.mark.parametrize(("kind", "arguments", "error", "sentence"), CONSTRUCTORS, ids=name)
def test_constructor(kind, arguments, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        kind(**{"input_size": 3, "hidden_size": 5} | arguments)
    assert one_sentence(caught.value)


# --- calls of the modules: T = 4, B = 2, I = 3, H = 5, two layers

X = torch.zeros(4, 2, 3)
STATE = torch.zeros(2, 2, 5)
PACKED = pack_sequence([torch.zeros(2, 3), torch.zeros(1, 3)])

CALLS = [
    ({"input": X.tolist()}, TypeError, "input must be a tensor, got list"),
    ({"input": X[0, 0]}, ValueError, "input must be 2-D (unbatched) or 3-D, got 1-D"),
    ({"input": X[None]}, ValueError, "input must be 2-D (unbatched) or 3-D, got 4-D"),
    ({"input": X[..., :2]}, RuntimeError, "input must have 3 features (input_size) in its last dimension, got 2"),
    ({"input": X.double()}, ValueError, "input must have the dtype of the weights, torch.float32, got torch.float64"),
    ({"input": X.half()}, ValueError, "input must have the dtype of the weights, torch.float32, got torch.float16"),
    ({"input": X.long()}, ValueError, "input must have the dtype of the weights, torch.float32, got torch.int64"),
    ({"input": X.to("meta")}, RuntimeError, "input must be on the device of the weights, cpu, got meta"),
    ({"hx": STATE}, TypeError, "hx must be a tuple of two tensors, (h_0, c_0), got Tensor"),
    ({"hx": (STATE,)}, TypeError, "hx must be a tuple of two tensors, (h_0, c_0), got tuple of 1"),
    ({"hx": (STATE, None)}, TypeError, "hx must be a tuple of two tensors, (h_0, c_0), got tuple of 2"),
    ({"hx": (STATE[:1], STATE)}, RuntimeError, "h_0 in hx must have shape [2, 2, 5], got [1, 2, 5]"),
    ({"hx": (STATE, STATE[:, 0])}, RuntimeError, "c_0 in hx must have shape [2, 2, 5], got [2, 5]"),
    ({"hx": (STATE, STATE.double())}, RuntimeError, "c_0 in hx must have the dtype of the weights, torch.float32"),
    ({"hx": (STATE.to("meta"), STATE)}, RuntimeError, "h_0 in hx must be on the device of the weights, cpu, got meta"),
    ({"input": X[:, 0], "hx": (STATE, STATE)}, RuntimeError, "h_0 in hx must have shape [2, 5], got [2, 2, 5]"),
    ({"lengths": [4, NAN]}, TypeError, "lengths must be an integer tensor or a list of ints, got nan in the list"),
    ({"lengths": [4, 2.0]}, TypeError, "lengths must be an integer tensor or a list of ints, got 2.0 in the list"),
    ({"lengths": [4, True]}, TypeError, "lengths must be an integer tensor or a list of ints, got True in the list"),
    (
        {"lengths": torch.tensor([4, NAN])},
        TypeError,
        "lengths must be an integer tensor or a list of ints, got torch.float",
    ),
    ({"lengths": np.array([4.0, 2.0])}, TypeError, "or a list of ints, got torch.float64"),
    ({"lengths": [np.int64(4), np.int64(5)]}, RuntimeError, "lengths must be in 0..T = 4, got 5 at index 1"),
    ({"lengths": torch.tensor([True, False])}, TypeError, "or a list of ints, got torch.bool"),
    ({"lengths": 3}, TypeError, "lengths must be an integer tensor or a list of ints, got int"),
    ({"lengths": [4, 5]}, RuntimeError, "lengths must be in 0..T = 4, got 5 at index 1"),
    ({"lengths": [-1, 4]}, RuntimeError, "lengths must be in 0..T, got -1 in the list"),
    ({"lengths": [2**70, 4]}, RuntimeError, "lengths must be in 0..T, got 1180591620717411303424 in the list"),
    ({"lengths": torch.tensor([-1, 4])}, RuntimeError, "lengths must be in 0..T = 4, got -1 at index 0"),
    ({"lengths": torch.ones(2, dtype=torch.int64, device="meta")}, RuntimeError, "lengths must have values"),
    ({"seed": torch.tensor(1, device="meta")}, RuntimeError, "seed must be on the device of the input, cpu, got meta"),
    ({"input": torch.randn(4, 2, 3).to_sparse()}, ValueError, "input must be a dense tensor, got torch.sparse_coo"),
    ({"input": PACKED._replace(batch_sizes=torch.tensor([2, -2, 1]))}, RuntimeError, "got [2, -2, 1] for data of"),
    ({"input": PACKED._replace(batch_sizes=torch.tensor([], dtype=torch.int64))}, RuntimeError, "batch_sizes on the"),
    ({"input": PACKED._replace(sorted_indices=torch.tensor([0, 5]))}, RuntimeError, "sorted_indices order its 2"),
    ({"lengths": [4]}, RuntimeError, "lengths must have shape [B] = [2], got [1]"),
    ({"lengths": torch.ones(2, 1, dtype=torch.int64)}, RuntimeError, "lengths must have shape [B] = [2], got [2, 1]"),
    ({"input": PACKED, "lengths": [2, 1]}, ValueError, "lengths must be None with a PackedSequence, which has its own"),
    ({"input": PACKED._replace(data=PACKED.data.double())}, ValueError, "input must have the dtype of the weights"),
    ({"input": PACKED._replace(data=PACKED.data[:, :2])}, RuntimeError, "input must have 3 features (input_size)"),
    ({"input": PACKED._replace(data=PACKED.data[:, 0])}, RuntimeError, "input must be a PackedSequence of 2-D data"),
    (
        {"input": PACKED, "hx": (STATE[:, :1], STATE)},
        RuntimeError,
        "h_0 in hx must have shape [2, 2, 5], got [2, 1, 5]",
    ),
    ({"seed": 1.5}, TypeError, "seed must be an int or a 0-dim int64 tensor, got float"),
    ({"seed": True}, TypeError, "seed must be an int or a 0-dim int64 tensor, got bool"),
    ({"seed": 2**63}, ValueError, "seed must fit in a signed 64-bit integer, got 9223372036854775808"),
    (
        {"seed": torch.tensor([3])},
        TypeError,
        "seed must be an int or a 0-dim int64 tensor, got torch.int64 of shape [1]",
    ),
    (
        {"seed": torch.tensor(3.0)},
        TypeError,
        "seed must be an int or a 0-dim int64 tensor, got torch.float32 of shape []",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "sentence"), CALLS, ids=name)
def test_call(arguments, error, sentence):
    module = FusedLSTM(3, 5, 2, zoneout=0.1)
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        module(**{"input": X} | arguments)
    assert one_sentence(caught.value)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("parameter", ["weight_hh", "bias_ih", "weight_ln_c"])
def test_a_parameter_on_meta(parameter, grad):
    """As of a model that was made on "meta" and loaded in part: not a result without numbers."""
    layer, cell = FusedLSTM(3, 5, layer_norm=True), FusedLSTMCell(3, 5, layer_norm=True)
    for module, place, x in ((layer, f"{parameter}_l0", X), (cell, parameter, X[0])):
        setattr(module, place, nn.Parameter(getattr(module, place).detach().to("meta")))
        sentence = f"{parameter} must be on the device of the input, cpu, got meta"
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=re.escape(sentence)) as caught:
            module(x)
        assert one_sentence(caught.value)


CELL_CALLS = [
    ({"input": X}, ValueError, "input must be 1-D (unbatched) or 2-D, got 3-D"),
    ({"input": X[0, :, :2]}, RuntimeError, "input must have 3 features (input_size) in its last dimension, got 2"),
    (
        {"input": X[0].double()},
        ValueError,
        "input must have the dtype of the weights, torch.float32, got torch.float64",
    ),
    ({"input": X[0].tolist()}, TypeError, "input must be a tensor, got list"),
    ({"input": X[0].to("meta")}, RuntimeError, "input must be on the device of the weights, cpu, got meta"),
    ({"input": X[0].to_sparse()}, ValueError, "input must be a dense tensor, got torch.sparse_coo"),
    ({"hx": STATE[0]}, TypeError, "hx must be a tuple of two tensors, (h_0, c_0), got Tensor"),
    ({"hx": (STATE[0],) * 3}, TypeError, "hx must be a tuple of two tensors, (h_0, c_0), got tuple of 3"),
    ({"hx": (STATE[0], None)}, TypeError, "hx must be a tuple of two tensors, (h_0, c_0), got tuple of 2"),
    ({"hx": (STATE[0].half(), STATE[0])}, RuntimeError, "h_0 in hx must have the dtype of the weights, torch.float32"),
    ({"hx": (STATE[0], STATE[0].to("meta"))}, RuntimeError, "c_0 in hx must be on the device of the weights, cpu"),
    ({"hx": (STATE[0], STATE[0, :1])}, RuntimeError, "c_0 in hx must have shape [2, 5], got [1, 5]"),
    ({"input": X[0, 0], "hx": (STATE[0], STATE[0])}, RuntimeError, "h_0 in hx must have shape [5], got [2, 5]"),
    ({"seed": "1"}, TypeError, "seed must be an int or a 0-dim int64 tensor, got str"),
    ({"step": -1}, ValueError, "step must be at least 0 and below 2**32, got -1"),
    ({"step": 2**63 - 1}, ValueError, "step must be at least 0 and below 2**32, got 9223372036854775807"),
    ({"step": 1.5}, TypeError, "step must be an int, got float"),
]


@pytest.mark.parametrize(("arguments", "error", "sentence"), CELL_CALLS, ids=name)
def test_cell_call(arguments, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        FusedLSTMCell(3, 5, zoneout=0.1)(**{"input": X[0]} | arguments)
    assert one_sentence(caught.value)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"layer_norm": True}], ids=label)
@pytest.mark.parametrize(("arguments", "error", "sentence"), CELL_CALLS, ids=name)
def test_cell_call_without_gradients(arguments, error, sentence, options):
    """Where the op looks at the arguments first: the same sentences, and not one after another."""
    with torch.no_grad(), pytest.raises(error, match=re.escape(sentence)) as caught:
        FusedLSTMCell(3, 5, **options)(**{"input": X[0], "hx": (STATE[0], STATE[0])} | arguments)
    assert one_sentence(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("attribute", "value", "error", "sentence"),
    [
        ("recurrent_dropout", -1.0, ValueError, "recurrent_dropout must be a number in [0, 1), got -1.0"),
        ("recurrent_dropout", None, ValueError, "recurrent_dropout must be a number in [0, 1), got None"),
        ("recurrent_dropout_on", "foo", ValueError, "recurrent_dropout_on must be"),
        ("zoneout", (0.1, NAN), ValueError, "zoneout[1] must be a number in [0, 1), got nan"),
        ("open_gates", "xy", ValueError, "open_gates must"),
        ("variational", 1, TypeError, "variational must be a bool, got int"),
        ("layer_norm", "carry", AttributeError, "layer_norm must keep the value of the constructor"),
        ("peephole", True, AttributeError, "peephole must keep the value of the constructor"),
    ],
    ids=name,
)
def test_an_option_changed_later(attribute, value, error, sentence):
    """Attributes are open, since a schedule may set them; a refused value changes nothing."""
    module = FusedLSTM(3, 5, 2, recurrent_dropout=0.1, zoneout=0.1)
    before = repr(module)
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        setattr(module, attribute, value)
    assert one_sentence(caught.value)
    assert repr(module) == before
    module.layer_norm, module.zoneout = False, 0.3
    assert module.zoneout == (0.3, 0.3)
    module(X)


def test_a_dropout_changed_later():
    """An attribute of nn.LSTM, which the op checks."""
    module = FusedLSTM(3, 5, 2, dropout=0.1)
    module.dropout = 1.5
    with pytest.raises(RuntimeError, match=re.escape("dropout must be in [0, 1), got 1.5")):
        module(X)


@pytest.mark.parametrize("module", [nn.GRU(3, 5), nn.LSTMCell(3, 5), FusedLSTM(3, 5, layer_norm=True)], ids=name)
def test_from_torch_of_another_module(module):
    with pytest.raises(TypeError, match=f"lstm must be of type LSTM, got {type(module).__name__}"):
        FusedLSTM.from_torch(module)


@pytest.mark.parametrize("module", [nn.LSTM(3, 5), FusedLSTMCell(3, 5)], ids=name)
def test_to_torch_of_another_module(module):
    with pytest.raises(TypeError, match=f"lstm must be of type FusedLSTM, got {type(module).__name__}"):
        convert.to_torch(module)


@pytest.mark.parametrize("module", [FusedLSTM(3, 5), FusedLSTMCell(3, 5)], ids=name)
def test_torchscript(module):
    """It is refused, also deep in a model."""
    with pytest.raises(RuntimeError, match=r"module must be traced .* got torch\.jit\.script") as caught:
        torch.jit.script(nn.Sequential(nn.Linear(2, 3), module))
    assert one_sentence(caught.value)


def test_a_state_dict_that_does_not_fit():
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        FusedLSTM(3, 5).load_state_dict(FusedLSTM(4, 5).state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight_ln_ih_l0"'):
        FusedLSTM(3, 5, layer_norm=True).load_state_dict(FusedLSTM(3, 5).state_dict())


# --- the ops themselves, which may be called with any arguments

OP_CALLS = [
    ({"input": torch.zeros(4, 3)}, "input must have shape [T, B, I], got [4, 3]"),
    ({"input": torch.zeros(4, 2, 7)}, "weight_ih must have shape [4H, I] = [20, 7], got [20, 3]"),
    ({"input": torch.zeros(4, 2, 3).int()}, "input must be float32, float64, bfloat16 or float16, got "),
    ({"input": torch.zeros(4, 2, 3).half()}, "h_0 must be float16, got float32"),
    ({"h_0": torch.zeros(2, 4)}, "h_0 must have shape [B, H] = [2, 5], got [2, 4]"),
    ({"c_0": torch.zeros(3, 5)}, "c_0 must have shape [B, H] = [2, 5], got [3, 5]"),
    ({"c_0": torch.zeros(2, 5).double()}, "c_0 must be float32, got float64"),
    ({"weight_hh": torch.zeros(20)}, "weight_hh must have shape [4H, H], got [20]"),
    ({"weight_hh": torch.zeros(19, 5)}, "weight_hh must have shape [4H, H] = [20, 5], got [19, 5]"),
    ({"weight_hh": torch.zeros(0, 0)}, "at least one input and one hidden unit"),
    ({"bias_ih": torch.zeros(5)}, "bias_ih must have shape [4H] = [20], got [5]"),
    ({"bias_hh": None}, "bias_ih and bias_hh must be given together"),
    ({"weight_hr": torch.zeros(3)}, "weight_hr must have shape [P, H], got [3]"),
    ({"weight_hr": torch.zeros(3, 5)}, "weight_hr must have shape [P, H] = [5, 5], got [3, 5]"),
    ({"weight_hr": torch.zeros(5, 5)}, "zoneout_h must be 0 with a projection (weight_hr), got 0.25"),
    ({"weight_hh": torch.zeros(16, 5), "weight_hr": torch.zeros(5, 5)}, "weight_hh must have shape [4H, P] = [20, 5]"),
    ({"weight_ci": torch.zeros(4)}, "weight_ci must have shape [H] = [5], got [4]"),
    ({"weight_cf": None}, "weight_ci, weight_cf and weight_co must be given together"),
    ({"bias_ln_ih": torch.zeros(20)}, "bias_ln_ih and bias_ln_hh must be given together"),
    (
        {"bias_ln_ih": torch.zeros(20), "bias_ln_hh": torch.zeros(20)},
        "bias_ih and bias_hh must be None with bias_ln_ih and bias_ln_hh, which take their place",
    ),
    ({"weight_ln_c": torch.zeros(20)}, "weight_ln_c must have shape [H] = [5], got [20]"),
    ({"bias_ln_c": None}, "weight_ln_ih, weight_ln_hh, weight_ln_c and bias_ln_c must be given together"),
    ({"lengths": torch.tensor([4, 2], dtype=torch.int32)}, "lengths must be int64, got"),
    ({"lengths": torch.tensor([1, 2, 3])}, "lengths must have shape [B] = [2], got [3]"),
    ({"lengths": torch.tensor([2, 2**62])}, "lengths must be in 0..T = 4, got 4611686018427387904 at index 1"),
    ({"reset": torch.zeros(4, 2)}, "reset must be bool, got float32"),
    ({"reset": torch.zeros(4, dtype=torch.bool)}, "reset must have shape [T, B] = [4, 2], got [4]"),
    ({"seed": None}, "seed must be given when a rate is above 0 in training, got None"),
    ({"seed": torch.tensor([1])}, "seed must have shape [] = [], got [1]"),
    ({"seed": torch.tensor(1.0)}, "seed must be int64, got float32"),
    ({"dropout": NAN}, "dropout must be in [0, 1), got nan"),
    ({"zoneout_c": 1.0}, "zoneout_c must be in [0, 1), got 1"),
    ({"candidate_dropout": -0.5}, "candidate_dropout must be in [0, 1), got -0.5"),
    ({"weight_dropout": 1.0}, "weight_dropout must be in [0, 1), got 1"),
    ({"open_gates": 8}, "open_gates must be a sum of 1 (i), 2 (f) and 4 (o), got 8"),
    ({"open_gates": -1}, "open_gates must be a sum of 1 (i), 2 (f) and 4 (o), got -1"),
    ({"activation": 2}, "activation must be 0 (tanh) or 1 (relu), got 2"),
    ({"recurrent_activation": -1}, "recurrent_activation must be 0 (sigmoid) or 1 (hard_sigmoid), got -1"),
    ({"recompute": -1}, "recompute must be a number of steps, or 0 to save all, got -1"),
    ({"eps": -1.0}, "eps must be positive, got -1"),
    ({"stream": -1}, "stream must be in"),
    ({"input": torch.zeros(4, 2, 3, dtype=torch.complex64)}, "input must be real where layer norm is on, got"),
    ({"h_0": None}, "h_0 must be a tensor, got NoneType"),
    ({"input": 1.0}, "input must be a tensor, got float"),
    ({"lengths": 3}, "lengths must be a tensor, got int"),
    ({"weight_hh": torch.zeros(20, 5).to_sparse()}, "weight_hh must be a dense tensor, got layout torch.sparse_coo"),
    ({"dropout": "0.5"}, "dropout must be of type float, got str"),
    ({"recompute": None}, "recompute must be of type int, got NoneType"),
]


SEEN_BY_THE_REFERENCE = ("bias_ih and bias_hh must be given", "zoneout_h must be 0", "seed must be given")


def test_an_error_is_not_blamed_on_an_option():
    """The op takes NumPy's numbers and 0-dim tensors for options."""
    tensors, _ = layer_case(dtype=torch.float32)
    tensors["h_0"] = torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match=r"^h_0 must have shape"):
        ops.lstm_layer(**tensors, eps=np.float32(1e-3), reverse=np.bool_(True), recompute=np.int64(2))


def test_complex_input_and_real_weights():
    tensors, _ = layer_case(dtype=torch.float32)
    tensors["input"] = tensors["input"].detach().to(torch.complex64)
    with pytest.raises(RuntimeError, match=r"^h_0 must be complex64, got float32$"):
        ops.lstm_layer(**tensors)


@pytest.mark.parametrize(("arguments", "sentence"), OP_CALLS, ids=name)
def test_op_where_the_reference_computes(arguments, sentence):
    """It raises no other type than the op, and the same sentence where it has one of its own."""
    tensors, options = layer_case(EVERYTHING, T=4, B=2, I=3, H=5, dtype=torch.float32)
    for argument, value in arguments.items():
        (tensors if argument in tensors else options)[argument] = value
    with forward_ad.dual_level():
        tensors["c_0"] = forward_ad.make_dual(tensors["c_0"], torch.ones_like(tensors["c_0"]))
        if sentence.startswith(SEEN_BY_THE_REFERENCE):
            with pytest.raises(RuntimeError, match=re.escape(sentence)):
                ops.lstm_layer(**tensors, **options)
        else:
            with contextlib.suppress(RuntimeError):
                ops.lstm_layer(**tensors, **options)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(("arguments", "sentence"), OP_CALLS, ids=name)
def test_op(arguments, sentence, inference):
    tensors, options = layer_case(EVERYTHING, T=4, B=2, I=3, H=5, dtype=torch.float32)
    for argument, value in arguments.items():
        (tensors if argument in tensors else options)[argument] = value
    if inference:
        tensors = {argument: x.detach() if torch.is_tensor(x) else x for argument, x in tensors.items()}
    with pytest.raises(RuntimeError, match=re.escape(sentence)) as caught:
        ops.lstm_layer(**tensors, **options)
    assert one_sentence(caught.value)


def spoilt(x: torch.Tensor):
    """The tensor in every wrong way."""
    yield x.to(torch.float16)
    yield x.to(torch.int32)
    yield x.to(torch.complex64)
    yield x.to(torch.float32 if x.dtype == torch.float64 else torch.float64)
    yield x.to("meta")
    yield x.to_sparse() if x.dim() else x.unsqueeze(0)
    yield x.unsqueeze(0)
    yield x.new_zeros(0)
    yield x.flatten()[:0]
    for dim in range(x.dim()):
        yield x.repeat_interleave(2, dim)
        yield x.narrow(dim, 0, max(x.shape[dim] - 1, 0))


def op_calls(kind: str, on: tuple[str, ...]):
    """Every op of a kind, with tensors and options that it accepts, each by name."""
    tensors, given = layer_case(on) if kind == "lstm_layer" else cell_case(set(on) - NOT_OF_A_CELL)
    tensors = {argument: x.detach() for argument, x in tensors.items()}
    forward, inference, backward = (getattr(torch.ops.lstm_fused, kind + e) for e in ("", "_inference", "_backward"))
    schema = forward.default._schema
    options = {a.name: {"float": 0.0, "bool": False, "int": 0}[str(a.type)] for a in schema.arguments if a.kwarg_only}
    options |= given | {"eps": 1e-5}
    yield forward, tensors, options
    yield inference, tensors, options
    results = dict(zip((r.name for r in schema.returns), forward(**tensors, **options), strict=True))
    results |= {f"d_{result}": x for result, x in results.items()}
    saved = {a.name: results[a.name] for a in backward.default._schema.arguments if a.name in results}
    absent = {a.name: None for a in schema.arguments if not a.kwarg_only and a.name not in tensors}
    yield backward, saved | tensors, options | absent | {"want_input": True, "want_weights": True}


@pytest.mark.parametrize("on", [EVERYTHING, (*EVERYTHING_ELSE, "recompute")], ids=label)
@pytest.mark.parametrize("kind", ["lstm_layer", "lstm_cell"])
def test_no_tensor_crashes_an_op(kind, on):
    """Every tensor of every op, spoilt in every way: an error, or a result where it does not matter; no crash."""
    for op, tensors, options in op_calls(kind, on):
        op(**tensors, **options)
        refused = 0
        for argument, x in tensors.items():
            for wrong in spoilt(x):
                try:
                    op(**tensors | {argument: wrong}, **options)
                except (RuntimeError, NotImplementedError):
                    refused += 1
        assert refused > 5 * len(tensors), op


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory cannot be limited here")
def test_what_does_not_fit_into_memory_is_told_with_torchs_reason():
    lstm, x = FusedLSTM(1, 1024), torch.zeros(2**18, 4, 1)  # its output: 4 GiB
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) << 10
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    try:
        with pytest.raises(RuntimeError) as error:
            lstm(x)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    reason = r": .*can't allocate memory" if TORCH >= (2, 13) else r" \(torch has printed why to the standard error\)"
    assert re.match(r"torch could not allocate a tensor of shape \[262144, 4, 1024\]" + reason, str(error.value))
