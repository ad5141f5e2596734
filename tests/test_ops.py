"""The kernels against the specification: results and all gradients, every pair of options, odd sizes, odd tensors."""

import pytest
import torch
from testing import (
    DTYPES,
    EVERYTHING,
    assert_close,
    assert_same_bits,
    cell_case,
    label,
    layer_case,
    option_sets,
    run,
    strided,
)

from lstm_fused import ops, reference

PLAIN = ("initial_state",)
SIZES = [  # T, B, I, H
    (1, 1, 1, 1),
    (7, 1, 5, 3),
    (3, 2, 1, 17),
    (2, 33, 16, 16),
    (5, 4, 31, 33),
    (2, 9, 64, 65),
    (2, 3, 200, 130),
    (41, 27, 3, 5),  # more rows and steps than the kernels take at a time
    (2, 300, 2, 7),
]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("on", option_sets(), ids=label)
def test_layer_options(on, dtype, device):
    tensors, options = layer_case(on, T=5, B=4, I=3, H=7, dtype=dtype, device=device)
    assert_close(run(ops.lstm_layer, tensors, options), run(reference.lstm_layer, tensors, options))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("on", [PLAIN, EVERYTHING], ids=label)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_layer_sizes(sizes, on, dtype, device):
    tensors, options = layer_case(on, **dict(zip("TBIH", sizes, strict=True)), dtype=dtype, device=device)
    assert_close(run(ops.lstm_layer, tensors, options), run(reference.lstm_layer, tensors, options))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("on", option_sets(of_a_cell=True), ids=label)
def test_cell_options(on, dtype, device):
    tensors, options = cell_case(on, B=4, I=3, H=7, dtype=dtype, device=device)
    assert_close(run(ops.lstm_cell, tensors, options), run(reference.lstm_cell, tensors, options))


@pytest.mark.parametrize("on", [PLAIN, EVERYTHING], ids=label)
@pytest.mark.parametrize(("T", "B"), [(0, 2), (2, 0), (0, 0)])
def test_layer_of_nothing(T, B, on, device):
    """No steps: the initial state comes out, and its gradient goes back. No sequences: everything is empty."""
    tensors, options = layer_case(on, T=T, B=B, device=device)
    results = run(ops.lstm_layer, tensors, options)
    assert_close(results, run(reference.lstm_layer, tensors, options))
    assert not results["d_weight_hh"].any()
    if T == 0:
        assert_same_bits((results["h_n"], results["c_n"]), (tensors["h_0"].detach(), tensors["c_0"].detach()))


def test_cell_of_nothing(device):
    tensors, options = cell_case(["initial_state", "zoneout_h", "layer_norm"], B=0, device=device)
    assert_close(run(ops.lstm_cell, tensors, options), run(reference.lstm_cell, tensors, options))


@pytest.mark.parametrize("on", [PLAIN, EVERYTHING], ids=label)
def test_inference_gives_the_same_bits(on, device):
    """Without gradients another op runs."""
    tensors, options = layer_case(on, device=device, dtype=torch.float32)
    expected = ops.lstm_layer(**tensors, **options)
    with torch.no_grad():
        assert_same_bits(ops.lstm_layer(**tensors, **options), expected)
    detached = {name: x.detach() for name, x in tensors.items()}
    results = ops.lstm_layer(**detached, **options)
    assert_same_bits(results, expected)
    assert not any(x.requires_grad for x in results)


@pytest.mark.parametrize("on", [PLAIN, EVERYTHING], ids=label)
def test_tensors_need_not_be_contiguous(on, device):
    tensors, options = layer_case(on, device=device, T=4, B=3, I=3, H=5)
    leaves = {name: strided(x.detach()).requires_grad_(x.requires_grad) for name, x in tensors.items()}
    assert not any(x.is_contiguous() for x in leaves.values() if x.dim())
    assert_close(run(ops.lstm_layer, leaves, options), run(ops.lstm_layer, tensors, options))
    leaves, options = cell_case(["layer_norm", "initial_state"], device=device)
    views = {name: strided(x.detach()).requires_grad_(x.requires_grad) for name, x in leaves.items()}
    assert_close(run(ops.lstm_cell, views, options), run(ops.lstm_cell, leaves, options))


def test_tensors_may_be_expanded(device):
    """One sequence seen as a batch, one row of state as all rows: strides of zero."""
    tensors, options = layer_case(PLAIN, B=1, device=device)
    for name, x in tensors.items():
        if name in ("input", "h_0", "c_0"):
            tensors[name] = x.detach().expand(*x.shape[:-2], 3, -1)
    results = run(ops.lstm_layer, tensors, options)
    assert_close(results, run(reference.lstm_layer, tensors, options))


def test_gradients_may_be_strided_or_absent(device):
    """What arrives at the backward op: expanded (from a sum), transposed, or nothing for a result that is not used."""
    tensors, options = layer_case(EVERYTHING, device=device)
    names = [name for name, x in tensors.items() if x.requires_grad]
    losses = {
        "sum": lambda y, h, c: y.sum() + h.sum() + c.sum(),
        "transposed": lambda y, h, c: (y.permute(2, 1, 0).contiguous() ** 2).sum() + (h.T.contiguous() ** 3).sum(),
        "output": lambda y, h, c: y[..., 1:3].sum(),
        "h_n": lambda y, h, c: (h**2).sum(),
        "c_n": lambda y, h, c: c[1].sum(),
    }
    for name, loss in losses.items():
        actual, expected = (
            torch.autograd.grad(
                loss(*layer(**tensors, **options)),
                [tensors[n] for n in names],
                allow_unused=True,
                materialize_grads=True,
            )
            for layer in (ops.lstm_layer, reference.lstm_layer)
        )
        assert_close(dict(zip(names, actual, strict=True)), dict(zip(names, expected, strict=True)), name=name)


@pytest.mark.parametrize("on", [PLAIN, EVERYTHING], ids=label)
def test_only_the_gradients_asked_for(on, device):
    """Each input alone differentiable: the same gradient as all together."""
    tensors, options = layer_case(on, device=device)
    everything = run(ops.lstm_layer, tensors, options)
    for name, x in tensors.items():
        if x.requires_grad:
            alone = {n: t.detach().requires_grad_(n == name) for n, t in tensors.items() if t.is_floating_point()}
            results = run(ops.lstm_layer, tensors | alone, options)
            assert_close(results, {n: everything[n] for n in ("output", "h_n", "c_n", f"d_{name}")})


@pytest.mark.parametrize("on", [PLAIN, EVERYTHING, (*EVERYTHING, "eval")], ids=label)
def test_an_earlier_call_leaves_nothing(on, device):
    """Scratch memory may be kept: a call that filled it with NaN changes no bit of the next."""
    case = layer_case(on, T=5, B=9, I=3, H=7, device=device)
    expected = run(ops.lstm_layer, *case)
    tensors, options = layer_case(on, T=7, B=20, I=30, H=40, device=device)
    tensors = {name: x * torch.nan if x.is_floating_point() else x for name, x in tensors.items()}
    tensors = {name: x.detach().requires_grad_(x.requires_grad) for name, x in tensors.items()}
    assert all(x.isnan().any() for x in run(ops.lstm_layer, tensors, options).values())
    assert_same_bits(run(ops.lstm_layer, *case), expected)


def test_inputs_are_not_written(device):
    tensors, options = layer_case(EVERYTHING, device=device)
    before = {name: x.detach().clone() for name, x in tensors.items()}
    run(ops.lstm_layer, tensors, options)
    assert_same_bits({name: x.detach() for name, x in tensors.items()}, before)


def test_padding_does_not_matter(device):
    """NaN past the lengths reaches no result and no gradient."""
    tensors, options = layer_case(EVERYTHING, T=6, B=5, device=device)
    expected = run(ops.lstm_layer, tensors, options)
    past = torch.arange(6, device=device).unsqueeze(1) >= tensors["lengths"]
    tensors["input"] = tensors["input"].detach().masked_fill(past.unsqueeze(-1), torch.nan).requires_grad_()
    assert_same_bits(run(ops.lstm_layer, tensors, options), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("on", [PLAIN, ("layer_norm", "zoneout_h", "dropout")], ids=label)
def test_nan_spreads_like_the_reference(on, dtype, device):
    """A NaN at (t, b) makes row b NaN from t on, and nothing else: exactly where the reference has it."""
    tensors, options = layer_case(on, T=5, B=4, H=17, dtype=dtype, device=device)
    tensors["input"] = tensors["input"].detach().clone()
    tensors["input"][2, 1, 0] = torch.nan
    options = options | {"training": False}
    output, h_n, c_n = results = ops.lstm_layer(**tensors, **options)
    for got, want in zip(results, reference.lstm_layer(**tensors, **options), strict=True):
        assert torch.equal(got.isnan(), want.isnan())
    assert output[2:, 1].isnan().all()
    assert h_n[1].isnan().all()
    assert c_n[1].isnan().all()
    assert output[:2].isfinite().all()
    assert output[:, [0, 2, 3]].isfinite().all()
    assert h_n[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_values_saturate(dtype, device):
    """The activations at their limits: no NaN, no infinity, sigmoid in [0, 1], tanh in [-1, 1]."""
    for scale in (30.0, 100.0, 1e4, 1e30):
        tensors, options = layer_case(PLAIN, H=17, dtype=dtype, device=device)
        tensors["input"] = (tensors["input"].detach() * scale).requires_grad_()
        results = run(ops.lstm_layer, tensors, options)
        assert all(x.isfinite().all() for x in results.values())
        assert_close(
            {n: results[n] for n in ("output", "h_n", "c_n")},
            dict(zip(("output", "h_n", "c_n"), reference.lstm_layer(**tensors), strict=True)),
        )


def test_infinite_input_saturates_like_the_reference(device):
    tensors, _ = layer_case(PLAIN, I=1, dtype=torch.float32, device=device)
    with torch.no_grad():
        tensors["input"][1, 0, 0] = torch.inf
        assert_close(ops.lstm_layer(**tensors), reference.lstm_layer(**tensors))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("on", [("initial_state",), EVERYTHING], ids=label)
@pytest.mark.parametrize(
    "sizes",
    [(12, 37, 5, 9), (40, 31, 3, 17), (3, 300, 2, 5), (20, 3, 40, 70), (2, 1, 3, 4), (11, 1, 30, 200), (6, 5, 20, 200)],
    ids=str,
)
def test_threads_do_not_change_a_bit(sizes, on, dtype):
    """The last two: so few rows and so many units that threads share those of a step."""
    tensors, options = layer_case(on, **dict(zip("TBIH", sizes, strict=True)), dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.get_num_threads() == threads
            results.append(run(ops.lstm_layer, tensors, options))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_renamed_functions_warn():
    with pytest.warns(DeprecationWarning, match=r"lstm_fused\.ops\.plain_step is internal"):
        assert callable(ops.plain_step)
    with pytest.raises(AttributeError, match="has no attribute 'plain'"):
        _ = ops.plain
