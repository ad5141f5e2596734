"""Every field of the options is an argument and an attribute of the modules, and acts on every path of a call."""

import copy
import inspect
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from testing import assert_close, assert_same_bits, random

from lstm_fused import FusedLSTM, FusedLSTMCell, convert, cuda, ops
from lstm_fused._options import HAVE_PARAMETERS, CellOptions, LayerOptions
from lstm_fused._schema import CELL_OPTIONS, LAYER_OPTIONS, LAYER_TENSORS

T, B, I, H = 5, 3, 4, 6  # noqa: E741

# A value of each option that changes what a module in training computes, and what has to be on for that.
ACTING = {
    "layer_norm": (True, {}),
    "recurrent_dropout": (0.3, {}),
    "recurrent_dropout_on": ("candidate", {"recurrent_dropout": 0.3}),
    "zoneout": ((0.2, 0.3), {}),
    "weight_dropout": (0.3, {}),
    "peephole": (True, {}),
    "forget_bias": (3.0, {}),
    "open_gates": ("f", {}),
    "activation": ("relu", {}),
    "recurrent_activation": ("hard_sigmoid", {}),
    "eps": (0.1, {"layer_norm": True}),
    "variational": (True, {"dropout": 0.4}),
    "recompute": (True, {}),  # which changes what is kept alone
}
KINDS = {FusedLSTM: LayerOptions, FusedLSTMCell: CellOptions}


def layer(**options):
    return FusedLSTM(I, H, 2, dtype=torch.float64, **options)


def names(kind):
    return [option.name for option in fields(kind)]


@pytest.mark.parametrize("module", KINDS, ids=lambda module: module.__name__)
def test_a_field_is_an_argument_and_an_attribute(module):
    """With the same default; the arguments after the options of torch's own are the fields and no others."""
    of_constructor = {
        p.name: p.default for p in inspect.signature(module).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    of_fields = {option.name: option.default for option in fields(KINDS[module])}
    assert set(of_constructor) == set(of_fields)
    made = module(I, H)
    for name, default in of_fields.items():
        assert getattr(made, name) == default
        assert getattr(KINDS[module](**{name: of_constructor[name]}), name) == default
        value, base = ACTING[name]
        base = {option: on for option, on in base.items() if option in of_fields}
        assert getattr(module(I, H, **base, **{name: value}), name) == getattr(KINDS[module](**{name: value}), name)


def test_an_option_that_makes_parameters_cannot_be_set():
    """Exactly those that change which parameters a module has: set later, another would do nothing in silence."""
    default = set(layer().state_dict())
    make_parameters = {
        name for name, (value, _) in ACTING.items() if set(layer(**{name: value}).state_dict()) != default
    }
    assert make_parameters == set(HAVE_PARAMETERS)


def test_options_are_frozen_and_attributes_are_not():
    module = layer(zoneout=0.1)
    with pytest.raises(FrozenInstanceError):
        module._options.zoneout = (0.0, 0.0)
    twin = copy.deepcopy(module)
    twin.zoneout = 0.3
    assert twin.zoneout == (0.3, 0.3)
    assert module.zoneout == (0.1, 0.1)
    assert pickle.loads(pickle.dumps(twin)).zoneout == (0.3, 0.3)
    x, seed = random(T, B, I, seed=1), 3
    made = layer(zoneout=0.3)
    made.load_state_dict(module.state_dict())
    assert_same_bits(twin(x, seed=seed)[0], made(x, seed=seed)[0])


def test_every_option_of_an_op_comes_from_a_field_or_from_the_call():
    of_the_call = {"reverse", "dropout", "training", "stream", "step"}
    everything = {}
    for place in ("hidden", "candidate"):
        on = {"recurrent_dropout": 0.3, "recurrent_dropout_on": place, "zoneout": 0.2, "weight_dropout": 0.1}
        rest = {"open_gates": "f", "eps": 0.1, "variational": True, "recompute": True}
        rest |= {"activation": "relu", "recurrent_activation": "hard_sigmoid"}
        everything |= LayerOptions(**on, **rest).op_arguments()
    assert set(everything) | of_the_call == set(LAYER_OPTIONS) | set(CELL_OPTIONS)
    assert LayerOptions().op_arguments() == {}


class AllOf(torch.nn.Module):
    """The outputs of several layers, so that they are compiled or exported at once."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x, seed):
        return [layer(x, seed=seed)[0] for layer in self.layers]


def eager(layers, x):
    return AllOf(layers)(x, 3)


def inference(layers, x):
    with torch.no_grad():
        return AllOf(layers)(x, 3)


def compiled(layers, x):
    """By dynamo alone, which reads the options; what comes after it, test_schema.py tries of the ops."""
    torch._dynamo.reset()
    return torch.compile(AllOf(layers), backend="eager", fullgraph=True)(x, 3)


def exported(layers, x):
    given = x, torch.tensor(3)
    return torch.export.export(AllOf(layers), given).module()(*given)


def vmapped(layers, x):
    return [x[0] for x in torch.vmap(lambda x: AllOf(layers)(x, 3))(x.expand(1, *x.shape))]


def traced(layers, x):
    return [layer.trace(x, seed=3).output for layer in layers]


PATHS = [eager, inference, compiled, exported, vmapped, traced]


@pytest.fixture(scope="module")
def pairs():
    """Of each option two layers, with it and without, whose parameters are the same where both have one."""
    torch.manual_seed(0)
    made = []
    for name, (value, base) in ACTING.items():
        with_it, without = layer(**base, **{name: value}), layer(**base)
        if name != "forget_bias":
            with_it.load_state_dict(without.state_dict(), strict=False)
        made.append((with_it, without))
    return made


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_every_option_acts(path, pairs):
    x = random(T, B, I, seed=1)
    assert set(names(LayerOptions)) == set(ACTING)
    with_it, without = zip(*pairs, strict=True)
    results = path(with_it, x), eager(with_it, x), eager(without, x)
    for name, got, wanted, other in zip(ACTING, *results, strict=True):
        assert_same_bits(got, wanted)
        assert torch.equal(got, other) == (name == "recompute"), name


def test_recompute_keeps_less():
    kept = []
    for recompute in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            FusedLSTM(I, H, recompute=recompute)(torch.ones(16, B, I))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("name", names(CellOptions))
def test_every_option_acts_in_a_cell(name):
    value, base = ACTING[name]
    torch.manual_seed(0)
    lstm = FusedLSTM(I, H, dtype=torch.float64, **base, **{name: value})
    cells = (
        FusedLSTMCell(I, H, dtype=torch.float64, **base, **{name: value}),
        FusedLSTMCell(I, H, dtype=torch.float64, **base),
    )
    weights = {key.removesuffix("_l0"): weight for key, weight in lstm.state_dict().items()}
    cells[0].load_state_dict(weights)
    if name != "forget_bias":
        cells[1].load_state_dict(weights, strict=False)
    x, outputs = random(T, B, I, seed=1), []
    for cell in cells:
        state = None
        for t in range(T):
            state = cell(x[t], state, seed=3, step=t)
        outputs.append(state[0])
    assert_close(outputs[0], lstm(x, seed=3)[0][-1])
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("name", ACTING)
def test_conversion_to_torch_refuses_what_changes_numbers(name):
    value, base = ACTING[name]
    module, x = layer(**base, **{name: value}), random(T, B, I, seed=1)
    if name in ("forget_bias", "recompute"):
        assert_close(convert.to_torch(module)(x)[0], module(x)[0])
    else:
        with pytest.raises(ValueError, match=r"must have no option that nn\.LSTM lacks"):
            convert.to_torch(module)


@pytest.mark.parametrize("name", ACTING)
def test_cudnn_gets_no_layer_with_an_option(name, monkeypatch):
    """Whatever the module passes to the op keeps it from cuDNN, but what is drawn at initialization only."""
    monkeypatch.setattr(cuda, "_cudnn_computes", lambda dtype: True)
    calls = []

    def record(*tensors, **arguments):
        given = dict(zip(LAYER_TENSORS, tensors, strict=False)) | {
            name: arguments.pop(name) for name in ("lengths", "reset", "seed")
        }
        calls.append(cuda.backend("cuda", tuple(given.get(name) for name in LAYER_TENSORS), arguments))
        return run(**given, **arguments)

    run = ops.lstm_layer
    monkeypatch.setattr(ops, "lstm_layer", record)
    value, base = ACTING[name]
    layer(**base, **{name: value})(random(T, B, I, seed=1))
    assert ("cudnn" in calls[0]) == (name == "forget_bias")
