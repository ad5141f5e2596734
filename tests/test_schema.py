"""Every argument of the registered ops reaches them: no list of options in Python forgets one on any path."""

import inspect

import pytest
import torch
from testing import MODULE_OPTIONS, OPTIONS, assert_same_bits, layer_case, module_options

from lstm_fused import LSTM, FusedLSTM, ops, reference
from lstm_fused._schema import CELL_TENSORS, LAYER_TENSORS, RATES
from lstm_fused._types import LayerTensors

# A value of each option that changes the result, and what else has to be on for that.
ACTING = {
    option: (value, {}) for on in OPTIONS.values() for option, value in on.items()
}  # recompute: what is kept alone
ACTING |= {
    "variational": (True, OPTIONS["dropout"]),
    "training": (False, OPTIONS["recurrent_dropout"]),
    "eps": (0.1, {}),
    "stream": (1, OPTIONS["recurrent_dropout"]),
    "step": (1, OPTIONS["zoneout_c"]),  # of a cell
}
OPS = {"lstm_layer": (ops.lstm_layer, reference.lstm_layer), "lstm_cell": (ops.lstm_cell, reference.lstm_cell)}


def options_of(name):
    return [
        argument.name
        for argument in getattr(torch.ops.lstm_fused, name).default._schema.arguments
        if argument.kwarg_only
    ]


def case_of(name):
    """Tensors of a layer-normed layer, where eps counts too; of a cell those of one step."""
    tensors, _ = layer_case(["layer_norm", "initial_state"])
    if name == "lstm_cell":
        tensors["input"] = tensors["input"][0]
    return tensors | {"seed": torch.tensor(5)}


@pytest.mark.parametrize("name", OPS)
def test_python_takes_the_arguments_of_the_schema(name):
    schema = getattr(torch.ops.lstm_fused, name).default._schema.arguments
    of_schema = [(a.name, a.default_value if a.has_default_value() else inspect.Parameter.empty) for a in schema]
    for function in OPS[name]:
        taken = [(p.name, p.default) for p in inspect.signature(function).parameters.values()]
        assert taken == of_schema, function
    for other in (f"{name}_inference", f"{name}_backward"):
        assert options_of(other)[: len(options_of(name))] == options_of(name)


def test_the_names_of_tensors_are_those_of_the_schema():
    assert LayerTensors._fields == LAYER_TENSORS
    assert tuple(name for name in LAYER_TENSORS if name != "lengths") == CELL_TENSORS
    assert set(RATES) == {name for name in options_of("lstm_layer") if "dropout" in name or "zoneout" in name}


def test_the_tests_know_every_option():
    """Of the ops and of the modules: a new one joins the lists in testing.py, which all tests run over."""
    own = {"eps", "stream"}  # which have tests of their own
    assert {option for on in OPTIONS.values() for option in on} == set(options_of("lstm_layer")) - own
    new = set(inspect.signature(FusedLSTM).parameters) - set(inspect.signature(LSTM).parameters)
    known = {argument for name in MODULE_OPTIONS for argument in module_options(name)}
    assert new - known <= {"eps", "forget_bias"}


# Each path makes a list of calls of one op, with the options of each: what is compiled or exported is one graph of all.


def eager(function, tensors, calls):
    return [function(**tensors, **options) for options in calls]


def inference(function, tensors, calls):
    with torch.no_grad():
        return eager(function, tensors, calls)


def vmapped(function, tensors, calls):
    def call(input):
        return eager(function, tensors | {"input": input}, calls)

    results = torch.vmap(call)(tensors["input"].expand(1, *tensors["input"].shape))
    return [tuple(x[0] for x in of_one) for of_one in results]


def compiled(function, tensors, calls):
    torch.compiler.reset()
    return torch.compile(lambda tensors: eager(function, tensors, calls), backend="aot_eager", fullgraph=True)(tensors)


def exported(function, tensors, calls):
    class Calls(torch.nn.Module):
        def forward(self, tensors):
            return eager(function, tensors, calls)

    return torch.export.export(Calls(), (tensors,)).module()(tensors)


@pytest.mark.parametrize("path", [eager, inference, vmapped, compiled, exported], ids=lambda path: path.__name__)
@pytest.mark.parametrize("name", OPS)
def test_every_option_acts_on_every_path(name, path):
    function, specification = OPS[name]
    names = options_of(name)
    assert set(names) <= set(ACTING)
    tensors = case_of(name)
    without = [ACTING[option][1] for option in names]
    with_it = [base | {option: ACTING[option][0]} for option, base in zip(names, without, strict=True)]
    results, expected = path(function, tensors, with_it), eager(function, tensors, with_it)
    for option, got, wanted, base in zip(names, results, expected, eager(function, tensors, without), strict=True):
        assert_same_bits(got, wanted)
        same = all(torch.equal(a, b) for a, b in zip(got, base, strict=True))
        assert same == (option == "recompute"), option
    if path is eager:
        for got, wanted in zip(results, eager(specification, tensors, with_it), strict=True):
            torch.testing.assert_close(got, wanted)
