"""torch.library.opcheck on every registered op: schema, fake kernel, autograd registration, AOT dispatch."""

import pytest
import torch
from testing import (
    EVERYTHING,
    EVERYTHING_ELSE,
    NOT_OF_A_CELL,
    assert_same_bits,
    cell_case,
    label,
    layer_case,
    named_results,
    op_arguments,
)

OPS = torch.ops.lstm_fused
OPTION_SETS = [(), ("initial_state", "lengths", "reverse"), ("layer_norm", "dropout"), EVERYTHING, EVERYTHING_ELSE]
OPTION_SETS += [("recompute",), (*EVERYTHING_ELSE, "recompute")]
# A cell has no recompute, so its sets that differ in that alone would be checked twice.
CASES = [("lstm_layer", on) for on in OPTION_SETS] + [("lstm_cell", on) for on in OPTION_SETS if "recompute" not in on]
RESULTS = {"lstm_layer": ("output", "h_n", "c_n"), "lstm_cell": ("h", "c")}


def case_of(name, on, **sizes):
    """Tensors and options by name."""
    tensors, options = layer_case(on, **sizes) if name == "lstm_layer" else cell_case(set(on) - NOT_OF_A_CELL, **sizes)
    return tensors | options


def detached(case):
    return {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in case.items()}


def opcheck(name, case):
    arguments, options = op_arguments(name, case)
    torch.library.opcheck(getattr(OPS, name), arguments, options)


def call(name, case):
    arguments, options = op_arguments(name, case)
    return getattr(OPS, name)(*arguments, **options)


def test_every_op_is_checked_here():
    """A new op must come into these tests."""
    names = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas() if s.name.startswith("lstm_fused::")}
    assert names == {f"{name}{kind}" for name in RESULTS for kind in ("", "_inference", "_backward")} | {
        "lstm_cell_plain"
    }


@pytest.mark.parametrize(("name", "on"), CASES, ids=lambda part: part if isinstance(part, str) else label(part))
def test_opcheck(name, on, device):
    """The three ops of a kind."""
    case = case_of(name, on, device=device)
    opcheck(name, case)
    case = detached(case)
    opcheck(f"{name}_inference", case)
    results = named_results(name, call(name, case))
    gradients = {f"d_{result}": torch.ones_like(results[result]) for result in RESULTS[name]}
    for wanted in (True, False):
        opcheck(f"{name}_backward", case | results | gradients | {"want_input": wanted, "want_weights": wanted})


@pytest.mark.parametrize("on", [(), ("no_bias", "initial_state")], ids=label)
def test_opcheck_of_the_default_step(on, device):
    """The op of a step without options: checked as the others, and the same bits as the op with them."""
    case = detached(case_of("lstm_cell", on, device=device))
    opcheck("lstm_cell_plain", case)
    assert_same_bits(call("lstm_cell_plain", case), call("lstm_cell_inference", case))


def test_what_is_kept_for_backward_is_not_differentiable():
    x, h, w = torch.randn(2, 1, 3), torch.zeros(1, 3), torch.randn(12, 3, requires_grad=True)
    results = named_results("lstm_layer", OPS.lstm_layer(x, h, h, w, w))
    assert [name for name, result in results.items() if result.requires_grad] == ["output", "h_n", "c_n"]
