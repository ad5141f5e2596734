"""The kernels' random masks, recovered from their results: those of the specification, bit for bit, at the right rate.

Every cell here has weights of zero, or the identity, so that a unit's result shows whether it was hit.
"""

from itertools import pairwise

import pytest
import torch
from testing import DTYPES, OPTIONS, RANDOM_OPTIONS, assert_same_bits, layer_case, module_options, random, run

from lstm_fused import FusedLSTM, ops, reference

SEEDS = (0, 1, -1, 0x123456789ABCDEF, -(2**63), 2**63 - 1)


def simple(T, B, H, *, seed, device="cpu", dtype=torch.float64):
    """A layer with independent units: c and h change from the biases alone."""
    zeros = torch.zeros(4 * H, H, dtype=dtype, device=device)
    bias = torch.linspace(0.5, 1.5, 4 * H, dtype=dtype, device=device)
    state = torch.full((B, H), 0.25, dtype=dtype, device=device)
    return {
        "input": torch.zeros(T, B, H, dtype=dtype, device=device),
        "h_0": state,
        "c_0": state,
        "weight_ih": zeros,
        "weight_hh": zeros,
        "bias_ih": bias,
        "bias_hh": bias,
        "seed": torch.tensor(seed, device=device),
    }


def output_hits(tensors, rate, **options):
    return ops.lstm_layer(**tensors, dropout=rate, **options)[0] == 0


def zoneout_h_hits(tensors, rate, **options):
    output = ops.lstm_layer(**tensors, zoneout_h=rate, **options)[0]
    return output == torch.cat([tensors["h_0"].unsqueeze(0), output[:-1]])


def zoneout_c_hits(tensors, rate, **options):
    """c is seen at the end only: of the sequences that are t and t + 1 steps long."""
    T = tensors["input"].shape[0]
    cells = [tensors["c_0"]]
    for t in range(1, T + 1):
        cells.append(ops.lstm_layer(**tensors | {"input": tensors["input"][:t]}, zoneout_c=rate, **options)[2])
    return torch.stack([now == before for before, now in pairwise(cells)])


def hidden_hits(tensors, rate, **options):
    """With weight_hh the identity for every gate: a unit that is dropped does as if its h had been zero."""
    H = tensors["h_0"].shape[1]
    tensors = tensors | {"weight_hh": torch.eye(H).repeat(4, 1).to(tensors["h_0"]), "input": tensors["input"][:1]}
    dropped = ops.lstm_layer(**tensors | {"h_0": torch.zeros_like(tensors["h_0"])}, **options)[0]
    return ops.lstm_layer(**tensors, recurrent_dropout=rate, **options)[0] == dropped


RECOVER = {
    "output": output_hits,
    "hidden": hidden_hits,
    "zoneout_h": zoneout_h_hits,
    "zoneout_c": zoneout_c_hits,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("use", RECOVER)
def test_masks_are_those_of_the_reference(use, seed, dtype, device):
    T, B, H = (1 if use == "hidden" else 3), 19, 70
    tensors = simple(T, B, H, seed=seed, device=device, dtype=dtype)
    for rate, stream, reverse in [(0.3, 0, False), (0.5, 5, use == "output"), (1e-3, 2**20, False), (0.999, 1, False)]:
        actual = RECOVER[use](tensors, rate, stream=stream, reverse=reverse)
        expected = [reference.hits(tensors["seed"], use, rate, t, tensors["h_0"], stream=stream) for t in range(T)]
        assert torch.equal(actual, torch.stack(expected))


def test_variational_mask_is_that_of_step_0(device):
    tensors = simple(4, 3, 10, seed=5, device=device)
    expected = reference.hits(tensors["seed"], "output", 0.4, 0, tensors["h_0"], stream=2)
    for reverse in (False, True):
        actual = output_hits(tensors, 0.4, variational=True, stream=2, reverse=reverse)
        assert torch.equal(actual, expected.expand(4, -1, -1))


def test_cell_masks_are_those_of_its_step(device):
    tensors = simple(1, 5, 9, seed=5, device=device)
    tensors["input"] = tensors["input"][0]
    for step in (0, 3, 2**31 + 5):
        h, c = ops.lstm_cell(**tensors, zoneout_h=0.5, zoneout_c=0.5, step=step, stream=4)
        for value, use in ((h, "zoneout_h"), (c, "zoneout_c")):
            hits = reference.hits(tensors["seed"], use, 0.5, step, tensors["h_0"], stream=4)
            assert torch.equal(value == tensors["h_0"], hits)


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("use", RECOVER)
def test_share_of_hits(use, rate, device):
    """Within 4 sigma of the rate."""
    tensors = simple(1 if use == "hidden" else 4, 100, 250, seed=9, device=device)
    hits = RECOVER[use](tensors, rate)
    sigma = (rate * (1 - rate) / hits.numel()) ** 0.5
    assert abs(hits.double().mean().item() - rate) < 4 * sigma


def test_masks_are_independent(device):
    """Masks that differ in seed, use, stream or step hit the same unit as often as by chance, within 5 sigma."""
    positions = [
        (seed, use, stream, t)
        for seed in (0, 1, 1 << 32)
        for use in ("output", "hidden", "zoneout_h")
        for stream in (0, 1)
        for t in (0, 1)
    ]
    like, rate = torch.empty(100, 250, device=device), 0.3
    masks = torch.stack(
        [
            reference.hits(torch.tensor(s, device=device), u, rate, t, like, stream=k).double().flatten()
            for s, u, k, t in positions
        ]
    )
    together = masks @ masks.T / like.numel()
    together.fill_diagonal_(rate**2)
    sigma = (rate**2 * (1 - rate**2) / like.numel()) ** 0.5
    assert (together - rate**2).abs().max() < 5 * sigma


@pytest.mark.parametrize("name", RANDOM_OPTIONS)
def test_rate_zero_is_the_identity(name, device):
    """Bit for bit, and no seed is needed."""
    tensors, options = layer_case(["initial_state", "layer_norm", "lengths"], device=device)
    rate = next(n for n in OPTIONS[name] if n != "variational")
    expected = run(ops.lstm_layer, tensors | {"seed": None}, options)
    actual = run(ops.lstm_layer, tensors | {"seed": None}, options | OPTIONS[name] | {rate: 0.0})
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("name", [name for name in RANDOM_OPTIONS if "zoneout" not in name])
def test_dropout_in_eval_is_the_identity(name, device):
    tensors, options = layer_case(["initial_state", "layer_norm", "lengths"], device=device)
    expected = run(ops.lstm_layer, tensors, options | {"training": False})
    assert_same_bits(
        run(ops.lstm_layer, tensors | {"seed": None}, options | OPTIONS[name] | {"training": False}), expected
    )


@pytest.mark.parametrize("name", RANDOM_OPTIONS)
def test_module_seeds(name, device):
    lstm = FusedLSTM(3, 8, num_layers=2, **module_options(name), device=device)
    x = random(6, 4, 3, seed=1).float().to(device)
    torch.manual_seed(3)
    first, second = lstm(x)[0], lstm(x)[0]
    torch.manual_seed(3)
    assert_same_bits([lstm(x)[0]], [first])
    assert not torch.equal(first, second)
    one = lstm(x, seed=41)[0]
    assert_same_bits([lstm(x, seed=41)[0]], [one])
    assert_same_bits([lstm(x, seed=torch.tensor(41, device=device))[0]], [one])
    assert not torch.equal(lstm(x, seed=42)[0], one)
    assert not torch.equal(lstm(x, seed=41 + (1 << 32))[0], one)


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"dropout": 0.4}], ids=str)
def test_no_seed_is_drawn_when_nothing_is_random(options, device):
    lstm = FusedLSTM(3, 8, **options, device=device)
    before = torch.get_rng_state()
    lstm(torch.ones(2, 1, 3, device=device))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", RANDOM_OPTIONS)
def test_no_seed_is_drawn_in_eval(name, device):
    lstm = FusedLSTM(3, 8, num_layers=2, **module_options(name), device=device).eval()
    before = torch.get_rng_state()
    first = lstm(torch.ones(2, 1, 3, device=device))[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_bits([lstm(torch.ones(2, 1, 3, device=device), seed=5)[0]], [first])


def test_masks_belong_to_the_sequence_of_the_batch(device):
    """Two equal sequences get different masks; the first ones of a larger batch get the same as in a smaller one."""
    tensors = simple(3, 6, 32, seed=2, device=device)
    masks = output_hits(tensors, 0.5)
    assert not torch.equal(masks[:, 0], masks[:, 1])
    smaller = simple(3, 2, 32, seed=2, device=device)
    assert torch.equal(output_hits(smaller, 0.5), masks[:, :2])
