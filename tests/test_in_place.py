"""Tensors changed in place between a call and its backward pass: nn.LSTM's gradients, wherever it allows that.

That depends on the CPU: torch's own operators allow more than oneDNN's kernel. So each test tries nn.LSTM first.
"""

import warnings

import pytest
import torch
from testing import NN_LSTM_OPTIONS, TOLERANCE, assert_close, module_options, of_peer, random
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_fused import FusedLSTM, FusedLSTMCell

T, B, I, H = 5, 3, 6, 4  # noqa: E741
CHANGES = {
    "relu_": lambda x: x.relu_(),
    "add_": lambda x: x.add_(1),
    "dropout": lambda x: torch.manual_seed(1) and nn.functional.dropout(x, 0.5, inplace=True),
    "one row": lambda x: x[-1].zero_(),
    "items": lambda x: x.__setitem__((..., 0), 0.5),
}
FROZEN = {"none": (), "weight_ih": ("weight_ih",), "weight_hh": ("weight_hh",), "all": ("weight", "bias")}
LAYOUTS = ("padded", "unbatched", "packed", "strided")
TENSORS = ("output", "h_n", "c_n", "input", "h_0", "c_0")


def freeze(module, prefixes):
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes or "none"))


def loss(results):
    return sum((k + 1) * x.double().sum() for k, x in enumerate(results))


def gradients(module, changed, change, layout="padded", twice=False):
    """Gradients of a call with one tensor changed before the backward pass; None if that is an error."""
    dtype, cell = next(module.parameters()).dtype, not hasattr(module, "num_layers")
    rows = () if cell else (module.num_layers * (2 if module.bidirectional else 1),)
    shape = (B, I) if cell else (B, T, I) if module.batch_first else (T, B, I)
    P = getattr(module, "proj_size", 0) or H
    if layout == "unbatched":
        shape, state = (shape[1:] if cell else (T, I)), (*rows,)
    else:
        state = (*rows, B)
    leaves = [random(*s, seed=k).to(dtype).requires_grad_() for k, s in enumerate((shape, (*state, P), (*state, H)))]
    x, h_0, c_0 = (leaf * 1 for leaf in leaves)
    input = x
    if layout == "packed":
        input = pack_padded_sequence(x, [5, 4, 1], batch_first=module.batch_first)
    if layout == "strided":
        input = x = x.transpose(0, 1).contiguous().transpose(0, 1)
    results = module(input, (h_0, c_0))
    if not cell:
        output, (h_n, c_n) = results
        results = (output.data if layout == "packed" else output, h_n, c_n)
    tensors = dict(zip(("output", "h_n", "c_n")[-len(results) :], results, strict=True))
    change((tensors | {"input": x, "h_0": h_0, "c_0": c_0})[changed])
    leaves += [p for p in module.parameters() if p.requires_grad]
    try:
        found = torch.autograd.grad(loss(results), leaves, create_graph=twice)
        if twice:
            found = torch.autograd.grad(sum(g.square().sum() for g in found), leaves, materialize_grads=True)
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error) or "modified inplace" in str(error):
            return None
        raise
    return list(found)


def check(theirs, ours, *case, **options):
    expected = of_peer(lambda: gradients(theirs, *case, **options))
    if expected is not None:  # and more may be allowed here
        got = gradients(ours, *case, **options)
        assert got is not None, (case, options)
        assert_close(got, expected, 3 * TOLERANCE[got[0].dtype])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("changed", TENSORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_what_nn_lstm_allows(dtype, changed):
    cases = [(options, (), "padded") for options in NN_LSTM_OPTIONS.values()]
    cases += [({}, frozen, layout) for frozen in FROZEN.values() for layout in LAYOUTS]
    cases += [({"num_layers": 2, "proj_size": 3}, frozen, "packed") for frozen in FROZEN.values()]
    for options, frozen, layout in cases:
        theirs = nn.LSTM(I, H, dtype=dtype, **options)
        freeze(theirs, frozen)
        check(theirs, FusedLSTM.from_torch(theirs), changed, CHANGES["add_"], layout)


@pytest.mark.parametrize("changed", TENSORS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_what_nn_lstm_cell_allows(dtype, changed):
    for frozen in FROZEN.values():
        theirs, ours = nn.LSTMCell(I, H, dtype=dtype), FusedLSTMCell(I, H, dtype=dtype)
        ours.load_state_dict(theirs.state_dict())
        freeze(theirs, frozen)
        freeze(ours, frozen)
        for layout in ("padded", "unbatched", "strided"):
            check(theirs, ours, changed, CHANGES["add_"], layout)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("twice", [False, True])
def test_ways_to_change_the_output(twice, change):
    """Also where a gradient is differentiated again, in the dtype in which nn.LSTM allows it on every CPU."""
    for options in NN_LSTM_OPTIONS.values():
        theirs = nn.LSTM(I, H, dtype=torch.float64, **options)
        assert gradients(theirs, "output", change, twice=twice) is not None
        check(theirs, FusedLSTM.from_torch(theirs), "output", change, twice=twice)


def test_without_onednn_float32_is_as_the_others():
    theirs = nn.LSTM(I, H)
    ours = FusedLSTM.from_torch(theirs)
    enabled = torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(False)
        assert gradients(theirs, "output", CHANGES["relu_"]) is not None
        check(theirs, ours, "output", CHANGES["relu_"])
    finally:
        torch._C._set_mkldnn_enabled(enabled)


OURS = {
    "layer_norm": module_options("layer_norm", "recurrent_dropout"),
    "carry": module_options("carry", "peephole", "zoneout_h", "zoneout_c"),
    "recompute": module_options("layer_norm", "recompute"),
    "dropout_between_layers": module_options("dropout", "recompute") | {"num_layers": 2},
    "all": module_options("dropout", "zoneout_h", "zoneout_c") | NN_LSTM_OPTIONS["all"] | {"proj_size": 0},
}


@pytest.mark.parametrize(
    ("options", "way"),
    [
        pytest.param(options, way, id=f"{name}-{way}", marks=[pytest.mark.slow] * (way == "compiled" and name != "all"))
        for name, options in OURS.items()
        for way in ("eager", "compiled", "autocast")
    ],
)
def test_our_options(options, way):
    """Against a change of a copy, which is always allowed."""
    dtype = torch.float32 if way == "autocast" else torch.float64
    module = FusedLSTM(I, H, dtype=dtype, **options)
    x = random(T, B, I, seed=1).to(dtype)

    def step(copy):
        output, _ = module(x, seed=3)
        output = output.clone() if copy else output
        return output.relu_().square().sum()

    found = []
    for copy in (False, True):
        torch.compiler.reset()
        call = torch.compile(step, fullgraph=True, backend="aot_eager") if way == "compiled" else step
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            value = call(copy)
        found.append([value, *torch.autograd.grad(value, list(module.parameters()))])
    assert_close(found[0], found[1])


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_traced_allows_as_much(grad):
    """Whether gradients were on while torch.jit.trace traced it or not; its own check finds the two to be the same."""
    module, x = FusedLSTM(I, H, dtype=torch.float64), random(T, B, I, seed=1)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, x)
    found = []
    for call in (traced, module):
        value = call(x)[0].relu_().square().sum()
        found.append([value, *torch.autograd.grad(value, list(call.parameters()))])
    assert_close(found[0], found[1])


def test_nothing_is_copied_that_need_not_be():
    """The output is the op's own where no backward pass reads it, and in plain float32 through oneDNN, as nn.LSTM's."""

    def copied(module, x):
        with torch.profiler.profile() as profile:
            module(x)
        return "aten::clone" in {event.name for event in profile.events()}

    x = random(T, B, I, seed=1)
    assert copied(FusedLSTM(I, H, dtype=torch.float64), x)
    assert not copied(FusedLSTM(I, H, dtype=torch.float64, recompute=True), x)
    assert not copied(FusedLSTM(I, H, dtype=torch.float64, bidirectional=True), x)
    assert not copied(FusedLSTM(I, H, dtype=torch.float64).requires_grad_(False), x)
    with torch.no_grad():
        assert not copied(FusedLSTM(I, H, dtype=torch.float64), x)
    if torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled():
        assert not copied(FusedLSTM(I, H), x.float())
