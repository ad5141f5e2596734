"""torch.vmap on the modules and ops, against a loop over the slices."""

import pytest
import torch
from testing import (
    EVERYTHING,
    EVERYTHING_ELSE,
    assert_close,
    assert_same_bits,
    cell_case,
    layer_case,
    module_options,
    random,
    recorded,
)
from torch.func import vmap

from lstm_fused import FusedLSTM, FusedLSTMCell, ops

N, T, B, I, H = 4, 3, 2, 3, 4  # noqa: E741
OPTIONS = {"default": {}, "layer_norm": module_options("layer_norm", "zoneout_h", "zoneout_c")}
CASES = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def example(options):
    module = FusedLSTM(I, H, 2, bidirectional=True, dtype=torch.float64, **options).eval()
    return module, random(N, T, B, I, seed=1)


@CASES
@pytest.mark.parametrize("no_grad", [False, True])
def test_vmap(options, no_grad):
    module, x = example(options)
    cell = FusedLSTMCell(I, H, dtype=torch.float64)
    with torch.set_grad_enabled(not no_grad):
        assert_close(vmap(lambda x: module(x)[0])(x), torch.stack([module(one)[0] for one in x]))
        assert_close(vmap(lambda x: cell(x)[1])(x[:, 0]), torch.stack([cell(one)[1] for one in x[:, 0]]))


# Of each argument that may differ from slice to slice, the dimension that the slices get: any.
SLICED = {"input": 2, "h_0": 0, "c_0": 1, "lengths": 1, "reset": 0}
# What is sliced, and the options with which the slices are one call: those that draw no masks.
QUIET = ("layer_norm", "peephole", "initial_state", "lengths", "reset", "reverse", "open_gates", "activation")
VMAP_CASES = {
    "default": ((), ["input"]),
    "states": (("initial_state",), ["h_0", "c_0"]),
    "quiet": (QUIET, list(SLICED)),
    "resets": (("reset", "projection", "carry"), ["reset"]),
    "segments": (("lengths", "reverse", "recompute"), ["input", "lengths"]),
    "eval": ((*EVERYTHING_ELSE, "eval"), ["input", "c_0"]),
    "weights": (("layer_norm",), ["input", "weight_hh"]),
    "everything": (EVERYTHING, ["input", "lengths"]),
    "everything_else": (EVERYTHING_ELSE, ["input", "bias_ln_ih"]),
}


def sliced_case(make, on, names):
    """Arguments of an op with N slices of the named ones, by name the dimension of the slices, the slices alone."""
    tensors, options = make(on, T=5, B=3, I=3, H=6) if make is layer_case else make(on, B=3, I=3, H=6)
    tensors = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in tensors.items()}
    dims, slices = {}, [dict(tensors) for _ in range(N)]
    for name in (name for name in names if name in tensors):
        parts = [layer_case(on, T=5, B=3, I=3, H=6, seed=40 + n)[0][name] for n in range(N)]
        if make is cell_case and name in ("input", "reset"):
            parts = [part[0] for part in parts]
        dims[name] = min(SLICED.get(name, 0), parts[0].dim())
        parts = [part.detach().requires_grad_(part.is_floating_point()) for part in parts]
        tensors[name] = torch.stack(parts, dims[name])
        for one, part in zip(slices, parts, strict=True):
            one[name] = part
    return tensors, options, dims, slices


def gradients(results, inputs):
    loss = sum((r * random(*r.shape, seed=60 + k)).sum() for k, r in enumerate(results))
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("make", [layer_case, cell_case], ids=["layer", "cell"])
@pytest.mark.parametrize(("on", "names"), VMAP_CASES.values(), ids=VMAP_CASES)
def test_vmap_of_the_ops(on, names, make):
    """Results and gradients are those of a loop, with the masks of each slice alone."""
    op = ops.lstm_layer if make is layer_case else ops.lstm_cell
    if make is cell_case:
        on = tuple(name for name in on if name in ("layer_norm", "carry", "reset", "initial_state", "peephole", "eval"))
    tensors, options, dims, slices = sliced_case(make, on, names)
    order = list(tensors)

    def call(*values):
        return op(**dict(zip(order, values, strict=True)), **options)

    got = vmap(call, in_dims=tuple(dims.get(name) for name in order))(*tensors.values())
    want = tuple(torch.stack(results) for results in zip(*(op(**one, **options) for one in slices), strict=True))
    assert_close(got, want)
    leaves = [x for one in slices for x in one.values() if x.requires_grad]
    assert_close(gradients(got, leaves), gradients(want, leaves))


def test_slices_are_one_call():
    """In eval; with masks, which depend on the place in the batch, the op runs once for every slice."""
    module = FusedLSTM(I, H, 2, recurrent_dropout=0.5, dtype=torch.float64)
    cell = FusedLSTMCell(I, H, dtype=torch.float64)
    x = random(N, T, B, I, seed=1)
    with recorded() as calls:
        vmap(lambda x: module.eval()(x))(x)
        vmap(lambda x: cell(x))(x[:, 0])
    assert [name for name, _ in calls] == ["lstm_layer"] * 2 + ["lstm_cell"]
    with recorded() as calls, torch.no_grad():
        vmap(vmap(lambda x: module(x)))(x[None])
        vmap(lambda x: cell(x))(x[:, 0])
    assert [name for name, _ in calls] == ["lstm_layer_inference"] * 2 + ["lstm_cell_plain"]
    with recorded() as calls, torch.no_grad():
        vmap(lambda x: module.train()(x, seed=3))(x)
    assert [name for name, _ in calls] == ["lstm_layer_inference"] * (2 * N)


def test_vmap_of_nothing():
    module, x = example({})
    assert vmap(lambda x: module(x)[0])(x[:0]).shape == (0, T, B, 2 * H)
    assert vmap(lambda x: module(x)[0])(x[:, :, :0]).shape == (N, T, 0, 2 * H)
    module = FusedLSTM(I, H, zoneout=0.5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"vmap must be over at least one slice where .*, got none"):
        vmap(lambda x: module(x, seed=1)[0])(x[:0])


def test_masks_that_differ_from_slice_to_slice():
    """Without a seed torch's own argument of vmap decides; its default is an error of torch's."""
    module = FusedLSTM(I, H, recurrent_dropout=0.5, dtype=torch.float64)
    x = random(1, T, B, I, seed=1).expand(2, -1, -1, -1)
    first, second = vmap(lambda x: module(x)[0], randomness="different")(x)
    assert not torch.equal(first, second)
    assert_same_bits(*([one] for one in vmap(lambda x: module(x)[0], randomness="same")(x)))
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: module(x)[0])(x)
