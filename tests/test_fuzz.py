"""Damaged arguments: an op either computes what the specification does, or refuses in one sentence.

A valid call is changed in one to three places. Changes that a call must take (another layout in memory, values that are
not finite, frozen or inference tensors, another mode of torch) are never refused; of the others the specification
decides: what an op computes has to equal it. Arguments are never written to.
"""

import collections
import contextlib
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import OPTIONS, compatible, layer_case, run
from torch import Tensor

from lstm_fused import ops, reference

TENSORS = [a.name for a in torch.ops.lstm_fused.lstm_layer.default._schema.arguments if not a.kwarg_only]
ARGUMENTS = [a.name for a in torch.ops.lstm_fused.lstm_layer.default._schema.arguments]

COUNTS: collections.Counter[str] = collections.Counter()  # of calls, by what came of them


@pytest.fixture(scope="module", autouse=True)
def printed_counts():
    """With ``-s``: how many calls were refused, computed, compared."""
    yield
    print(dict(COUNTS))


class Labeled(Tensor):
    """A subclass that adds nothing."""


# Changes that every call takes, of one tensor.


def with_values(value: float):
    def change(x: Tensor) -> Tensor:
        y = x.detach().clone()
        if y.is_floating_point() and y.numel():
            y.view(-1)[y.numel() // 2] = value
        return y.requires_grad_(x.requires_grad)

    return change


def offset(x: Tensor) -> Tensor:
    """In the middle of a larger block."""
    block = torch.zeros(x.numel() + 7, dtype=x.dtype)
    y = block[3 : 3 + x.numel()].view(x.shape)
    y.copy_(x.detach())
    return y.detach().requires_grad_(x.requires_grad)


def expanded(x: Tensor) -> Tensor:
    """The first element along the first dimension for all of them: a stride of zero."""
    return x.detach()[:1].expand(x.shape).requires_grad_(x.requires_grad) if x.dim() else x


def non_leaf(x: Tensor) -> Tensor:
    return x * 1 if x.requires_grad else x


def frozen(x: Tensor) -> Tensor:
    return x.detach()


def subclass(x: Tensor) -> Tensor:
    return x.detach().as_subclass(Labeled).requires_grad_(x.requires_grad)


def inference_tensor(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.detach().clone()


LEGAL = {
    "nan": with_values(math.nan),
    "infinity": with_values(math.inf),
    "huge": with_values(1e30),
    "denormal": with_values(1e-40),
    "offset": offset,
    "expanded": expanded,
    "frozen": frozen,
    "non-leaf": non_leaf,
    "subclass": subclass,
}

# Changes that some arguments do not take.
OTHER = {
    "float64": lambda x: x.detach().to(torch.float64),
    "float32": lambda x: x.detach().to(torch.float32),
    "int64": lambda x: x.detach().to(torch.int64),
    "bool": lambda x: x.detach().to(torch.bool),
    "complex": lambda x: x.detach().to(torch.complex64),
    "meta": lambda x: x.detach().to("meta"),
    "sparse": lambda x: x.detach().to_sparse(),
    "one dimension more": lambda x: x.detach().unsqueeze(0),
    "one dimension less": lambda x: x.detach()[0] if x.dim() and len(x) else x,
    "longer": lambda x: torch.cat([x.detach(), x.detach()[:1]]) if x.dim() else x,
    "shorter": lambda x: x.detach()[1:] if x.dim() else x,
    "narrower": lambda x: x.detach()[..., 1:] if x.dim() else x,
    "empty": lambda x: x.detach()[..., :0] if x.dim() else x,
    "transposed": lambda x: x.detach().transpose(0, -1) if x.dim() else x,
    "negated": lambda x: -x.detach() if x.dtype != torch.bool else x,
    "inference tensor": inference_tensor,
    "absent": lambda x: None,
    "a number": lambda x: 1.0,
}

MODES = {
    "": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: deterministic(False),
    "warn only": lambda: deterministic(True),
    "default dtype": lambda: default_dtype(torch.float16),
    "default device": lambda: torch.device("meta"),
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
}

OPTION_VALUES = st.sampled_from(
    [-0.1, -1, 0, 0.0, 1e-30, 0.5, 1 - 1e-9, 1.0, 1, 2, 7, 8, 2**40, -(2**63), math.nan, math.inf, True, None, "0.5"]
)
CASES = st.fixed_dictionaries(
    {
        "T": st.integers(0, 4),
        "B": st.integers(0, 5),
        "I": st.integers(1, 9),
        "H": st.integers(1, 18),
        "dtype": st.sampled_from([torch.float64, torch.float32]),
        "seed": st.integers(0, 1000),
    }
)
OPTION_SETS = st.sets(st.sampled_from(sorted(OPTIONS))).filter(compatible)
LEGAL_CHANGES = st.lists(st.tuples(st.sampled_from(TENSORS), st.sampled_from(sorted(LEGAL))), max_size=3)
OTHER_CHANGES = st.lists(st.tuples(st.sampled_from(TENSORS), st.sampled_from(sorted(OTHER))), max_size=2)
OPTION_CHANGES = st.lists(
    st.tuples(st.sampled_from([name for name in ARGUMENTS if name not in TENSORS]), OPTION_VALUES), max_size=1
)


@contextlib.contextmanager
def deterministic(warn_only: bool):
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def call(function, tensors, options, gradients, mode=contextlib.nullcontext):
    """The results, and the gradients; the mode is on while the function runs."""

    def in_mode(**arguments):
        with mode():
            return function(**arguments)

    if gradients:
        return run(in_mode, tensors, options)
    with torch.no_grad():
        return dict(zip(("output", "h_n", "c_n"), in_mode(**tensors, **options), strict=True))


def damaged(on, case, legal, other, option_changes):
    """A valid call with the changes made: its tensors and options."""
    tensors, options = layer_case(on, **case)
    for name, change in legal:
        if tensors.get(name) is not None and name not in ("lengths", "reset", "seed"):
            tensors[name] = LEGAL[change](tensors[name])
    for name, change in other:
        if isinstance(tensors.get(name), Tensor):
            with contextlib.suppress(NotImplementedError, RuntimeError):  # what torch itself cannot make of it
                tensors[name] = OTHER[change](tensors[name])
    return tensors, options | dict(option_changes)


def in_float64(tensors):
    """The same numbers, as the specification computes with them."""

    def convert(x):
        if not isinstance(x, Tensor):
            return x
        x = x.detach().as_subclass(Tensor).clone().requires_grad_(x.requires_grad)
        return x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x

    return {name: convert(x) for name, x in tensors.items()}


def assert_equal(got, want, given_nan):
    """NaN wherever the specification has NaN, and the same numbers elsewhere.

    A kernel multiplies with masks, the specification selects: what a mask drops may be NaN in a kernel too. Gradients
    are not compared then: those of the specification are NaN also where the step is padding.
    """
    assert got.keys() == want.keys()
    for name, x in got.items():
        if given_nan and name.startswith("d_"):
            continue
        x, y = x.detach().as_subclass(Tensor).double(), want[name].detach().double()
        tolerance = 1e-8 if got["output"].dtype == torch.float64 else 2e-3
        largest = max(1.0, y.nan_to_num(0, 0, 0).abs().max().item() if y.numel() else 0.0)
        assert x[y.isnan()].isnan().all(), name
        assert given_nan or not x.isnan().any(), name
        assert ((x - y).nan_to_num(0).abs() <= tolerance * largest).all(), name


def assert_one_sentence(text: str):
    """That names an argument; torch itself refuses to save inference tensors."""
    if text.startswith("Inference tensors cannot be saved for backward."):
        return
    assert "\n" not in text, text
    assert not re.search(r"\.(cpp|h|py)\b", text), text
    assert any(re.search(rf"\b{name}\b", text) for name in ARGUMENTS), text


def attempt(on, case, legal, other, option_changes, mode):
    tensors, options = damaged(on, case, legal, other, option_changes)
    gradients = mode not in ("no_grad", "inference_mode")
    before = {name: x.detach().clone() for name, x in tensors.items() if isinstance(x, Tensor)}
    try:
        got = call(ops.lstm_layer, tensors, options, gradients, MODES[mode])
    except (TypeError, ValueError, RuntimeError) as error:
        if not (other or option_changes):
            raise  # the call is valid
        assert_one_sentence(str(error).strip())
        COUNTS["refused"] += 1
    else:
        values = {change for _, change in legal}
        on_meta = any(isinstance(x, Tensor) and x.is_meta for x in tensors.values())
        # Where numbers overflow, float32 and float64 differ; it is enough that nothing breaks.
        if on_meta or values & {"infinity", "huge"}:
            COUNTS["computed"] += 1
        else:
            assert_equal(got, call(reference.lstm_layer, in_float64(tensors), options, gradients), "nan" in values)
            COUNTS["compared"] += 1
    for name, copy in before.items():
        if not copy.is_meta:
            x = tensors[name].detach()
            assert torch.equal(x.to_dense().isnan(), copy.to_dense().isnan()), f"{name} was written to"
            assert torch.equal(x.to_dense().nan_to_num(), copy.to_dense().nan_to_num()), f"{name} was written to"


# Calls with damage are often refused; of the valid ones none may be.
ARGUMENTS_OF_ATTEMPT = (
    OPTION_SETS,
    CASES,
    LEGAL_CHANGES,
    OTHER_CHANGES,
    OPTION_CHANGES,
    st.sampled_from(sorted(MODES)),
)
VALID = (OPTION_SETS, CASES, LEGAL_CHANGES, st.just([]), st.just([]), st.sampled_from(sorted(MODES)))
FUZZ = {"derandomize": True, "deadline": None, "database": None}


@settings(max_examples=40, **FUZZ)
@given(*VALID)
def test_some_valid_calls(on, case, legal, other, option_changes, mode):
    attempt(on, case, legal, other, option_changes, mode)


@settings(max_examples=60, **FUZZ)
@given(*ARGUMENTS_OF_ATTEMPT)
def test_some_calls(on, case, legal, other, option_changes, mode):
    attempt(on, case, legal, other, option_changes, mode)


@pytest.mark.slow
@settings(max_examples=3000, **FUZZ)
@given(*VALID)
def test_many_valid_calls(on, case, legal, other, option_changes, mode):
    attempt(on, case, legal, other, option_changes, mode)


@pytest.mark.slow
@settings(max_examples=5000, **FUZZ)
@given(*ARGUMENTS_OF_ATTEMPT)
def test_many_calls(on, case, legal, other, option_changes, mode):
    attempt(on, case, legal, other, option_changes, mode)
