"""The specification itself: known random numbers, nn.LSTM, derivatives, and what the equations promise."""

import pytest
import torch
from testing import (
    EVERYTHING,
    EVERYTHING_ELSE,
    OPTIONS,
    assert_close,
    assert_same_bits,
    cell_case,
    label,
    layer_case,
    positional,
    run,
)
from torch import nn

from lstm_fused import reference

ALL_ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known-answer vectors published with Random123 (kat_vectors: philox4x32, 10 rounds)
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ALL_ONES] * 4, [ALL_ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_vectors(counter, key, expected, device):
    words = reference.philox4x32(
        tuple(torch.tensor(c, device=device) for c in counter), tuple(torch.tensor(k, device=device) for k in key)
    )
    assert [w.item() for w in words] == expected


def test_random_bits_are_philox_at_the_position(device):
    """The first vector is the one of counter 0, key 0: seed 0, output of stream 0, t = b = 0, h = 0..3."""
    bits = reference.random_bits(torch.tensor(0, device=device), "output", 0, 1, 4)
    assert bits.tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]
    seed = -0x123456789ABCDEF0
    bits = reference.random_bits(torch.tensor(seed, device=device), "zoneout_c", 11, 3, 10, stream=5)
    for b, h in [(0, 0), (1, 3), (2, 4), (2, 9)]:
        counter = tuple(torch.tensor(c) for c in (h // 4, b, 11, 8 * 5 + 4))
        key = tuple(torch.tensor(k) for k in (seed & ALL_ONES, (seed >> 32) & ALL_ONES))
        assert bits[b, h].item() == reference.philox4x32(counter, key)[h % 4].item()


def test_every_use_has_its_own_stream():
    assert sorted(reference.USES.values()) == list(range(len(reference.USES)))
    assert len(reference.USES) <= 8


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_nn_lstm(reverse, device):
    lstm = nn.LSTM(3, 5, bidirectional=True, dtype=torch.float64, device=device)
    tensors, _ = layer_case(["initial_state"], device=device)
    suffix = "_reverse" if reverse else ""
    tensors |= {n: getattr(lstm, f"{n}_l0{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    h_0, c_0 = (tensors[n].expand(2, -1, -1) for n in ("h_0", "c_0"))
    output, (h_n, c_n) = lstm(tensors["input"], (h_0, c_0))
    actual = reference.lstm_layer(**tensors, reverse=reverse)
    k = int(reverse)
    assert_close(actual, (output[..., 5 * k : 5 * k + 5], h_n[k], c_n[k]))


def test_layer_norm_by_hand():
    """T = B = I = 1, H = 2, numbers worked out with the equations alone."""
    tensors, _ = layer_case(["layer_norm", "initial_state"], T=1, B=1, I=1, H=2)
    t = {name: x.detach() for name, x in tensors.items()}

    def norm(x, gain):
        mean = x.sum() / x.numel()
        variance = ((x - mean) ** 2).sum() / x.numel()
        return (x - mean) / (variance + 1e-3) ** 0.5 * gain

    z = norm(t["weight_ih"] @ t["input"][0, 0], t["weight_ln_ih"]) + norm(
        t["weight_hh"] @ t["h_0"][0], t["weight_ln_hh"]
    )
    z = z + t["bias_ih"] + t["bias_hh"]
    i, f, g, o = z[0:2], z[2:4], z[4:6], z[6:8]
    c = 1 / (1 + (-f).exp()) * t["c_0"][0] + 1 / (1 + (-i).exp()) * g.tanh()
    h = 1 / (1 + (-o).exp()) * (norm(c, t["weight_ln_c"]) + t["bias_ln_c"]).tanh()
    assert_close(reference.lstm_layer(**t, eps=1e-3), (h[None, None], h[None], c[None]))


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def hard_sigmoid(x):
    return torch.minimum(torch.maximum(0.2 * x + 0.5, torch.tensor(0.0)), torch.tensor(1.0))


def by_hand(on, open_gates=0, sigmoid=sigmoid, tanh=torch.tanh, **choices):
    """One step of one sequence from the equations alone: (h, c), to be compared with the reference's."""
    tensors, options = layer_case([*on, "initial_state"], T=1, B=1, I=2, H=4)
    t = {name: x.detach() for name, x in tensors.items()}
    x, h, c = t["input"][0, 0], t["h_0"][0], t["c_0"][0]

    def norm(x, gain, bias):
        if gain not in t:
            return x
        centered = x - x.mean()
        return centered / (centered.square().mean() + 1e-5).sqrt() * t[gain] + t.get(bias, 0)

    z = norm(t["weight_ih"] @ x, "weight_ln_ih", "bias_ln_ih") + norm(t["weight_hh"] @ h, "weight_ln_hh", "bias_ln_hh")
    z = z + t.get("bias_ih", 0) + t.get("bias_hh", 0)
    p = {gate: t.get(f"weight_c{gate}", 0) for gate in "ifo"}
    i = sigmoid(z[0:4] + p["i"] * c) if not open_gates & 1 else 1
    f = sigmoid(z[4:8] + p["f"] * c) if not open_gates & 2 else 1
    new = f * c + i * tanh(z[8:12])
    o = sigmoid(z[12:16] + p["o"] * new) if not open_gates & 4 else 1
    n = norm(new, "weight_ln_c", "bias_ln_c")
    h = o * tanh(n)
    expected = t["weight_hr"] @ h if "weight_hr" in t else h, n if "bias_ln_ih" in t else new
    options |= {"open_gates": open_gates, **choices}
    return reference.lstm_layer(**t, **options)[1:], tuple(x[None] for x in expected)


@pytest.mark.parametrize("norm", [(), ("layer_norm",), ("carry",)], ids=label)
@pytest.mark.parametrize("others", [(), ("peephole",), ("projection",), ("peephole", "projection")], ids=label)
def test_a_step_by_hand(norm, others):
    assert_close(*by_hand((*norm, *others)))


@pytest.mark.parametrize("open_gates", range(8))
def test_open_gates_by_hand(open_gates):
    for on in (["peephole"], ["layer_norm"], ["peephole", "carry"]):
        assert_close(*by_hand(on, open_gates))


@pytest.mark.parametrize("on", [("peephole",), ("layer_norm",), ("carry", "projection")], ids=label)
def test_activations_by_hand(on):
    assert_close(*by_hand(on, tanh=torch.relu, activation=1))
    assert_close(*by_hand(on, sigmoid=hard_sigmoid, recurrent_activation=1))


def test_the_ends_of_the_hard_sigmoid():
    """At and past -2.5 and 2.5 it is constant, and so has no gradient."""
    x = torch.tensor([-9.0, -2.5, -2.4, 0.0, 2.4, 2.5, 9.0], dtype=torch.float64, requires_grad=True)
    y = reference._activate_gate(x, reference.RECURRENT_ACTIVATIONS["hard_sigmoid"])
    assert_close(y.detach(), torch.tensor([0, 0, 0.02, 0.5, 0.98, 1, 1], dtype=torch.float64))
    (d_x,) = torch.autograd.grad(y.sum(), x)
    assert d_x.tolist() == [0, 0, 0.2, 0.2, 0.2, 0, 0]


@pytest.mark.parametrize("name", ["weight", "candidate"])
def test_new_dropouts_by_hand(name):
    """Of the weight: as if it had been multiplied by the mask. Of the candidate: c' = i * g * mask from c = 0."""
    tensors, _ = layer_case(T=1)
    seed, rate = tensors["seed"], 0.4
    actual = reference.lstm_layer(**tensors, **{f"{name}_dropout": rate}, stream=2)
    if name == "weight":
        mask = (~reference.hits(seed, "weight", rate, 0, tensors["weight_hh"], stream=2)).double() / (1 - rate)
        expected = reference.lstm_layer(**tensors | {"weight_hh": tensors["weight_hh"] * mask})
        assert_close(actual, expected)
    else:
        mask = (~reference.hits(seed, "candidate", rate, 0, tensors["c_0"], stream=2)).double() / (1 - rate)
        assert_close(actual[2], reference.lstm_layer(**tensors)[2] * mask)


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_nn_lstm_with_a_projection(reverse, device):
    lstm = nn.LSTM(3, 5, bidirectional=True, proj_size=3, dtype=torch.float64, device=device)
    tensors, _ = layer_case(["initial_state", "projection"], device=device)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    tensors |= {n: getattr(lstm, f"{n}_l0{'_reverse' if reverse else ''}") for n in names}
    h_0, c_0 = (tensors[n].expand(2, -1, -1) for n in ("h_0", "c_0"))
    output, (h_n, c_n) = lstm(tensors["input"], (h_0, c_0))
    actual = reference.lstm_layer(**tensors, reverse=reverse)
    k = int(reverse)
    assert_close(actual, (output[..., 3 * k : 3 * k + 3], h_n[k], c_n[k]))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_starts_a_new_sequence(reverse):
    """A row is its pieces between the resets, run one by one, all but the first from zeros."""
    T = 6
    tensors, options = layer_case(["initial_state", "layer_norm", "reset"], T=T, B=2)
    for first in (False, True):
        tensors["reset"] = torch.zeros(T, 2, dtype=torch.bool)
        tensors["reset"][[2, 3], 1] = True
        tensors["reset"][-1 if reverse else 0, 1] = first
        output, h_n, c_n = reference.lstm_layer(**tensors, **options, reverse=reverse)
        row = {n: x[1:] if n in ("h_0", "c_0") else x for n, x in tensors.items()} | {"reset": None}
        h, c = row["h_0"] * (not first), row["c_0"] * (not first)
        pieces = [(4, 6), (3, 4), (0, 3)] if reverse else [(0, 2), (2, 3), (3, 6)]
        for k, (begin, end) in enumerate(pieces):
            if k > 0:
                h, c = torch.zeros_like(h), torch.zeros_like(c)
            piece = {"input": tensors["input"][begin:end, 1:], "h_0": h, "c_0": c}
            y, h, c = reference.lstm_layer(**row | piece, **options, reverse=reverse)
            assert_close(output[begin:end, 1:], y)
        assert_close((h_n[1:], c_n[1:]), (h, c))


def test_lengths_equal_shorter_sequences():
    """Every row of a batch with lengths is that sequence alone, cut to its length; the rest is zeros."""
    on = ["initial_state", "lengths", "layer_norm"]
    for reverse in (False, True):
        tensors, options = layer_case(on, T=5, B=4)
        output, h_n, c_n = reference.lstm_layer(**tensors, **options, reverse=reverse)
        for b, length in enumerate(tensors["lengths"].tolist()):
            alone = {n: x[b : b + 1] if n in ("h_0", "c_0") else x for n, x in tensors.items()} | {"lengths": None}
            alone["input"] = tensors["input"][:length, b : b + 1]
            y, h, c = reference.lstm_layer(**alone, **options, reverse=reverse)
            assert_close((output[:length, b : b + 1], h_n[b : b + 1], c_n[b : b + 1]), (y, h, c))
            assert not output[length:, b].any()


def test_padding_does_not_matter():
    """NaN past the lengths reaches no result and no gradient."""
    tensors, options = layer_case(["lengths", "initial_state"])
    expected = run(reference.lstm_layer, tensors, options)
    past = torch.arange(4).unsqueeze(1) >= tensors["lengths"]
    tensors["input"] = tensors["input"].detach().masked_fill(past.unsqueeze(-1), torch.nan).requires_grad_()
    assert_same_bits(run(reference.lstm_layer, tensors, options), expected)


def test_zoneout_in_eval_is_the_expected_value():
    """Of one step: the mean of what training does over 20 seeds and, for each, 100 copies of the batch."""
    tensors, options = cell_case(["zoneout_h", "zoneout_c", "initial_state"])
    B = len(tensors["input"])
    copies = tensors | {name: tensors[name].repeat(100, 1) for name in ("input", "h_0", "c_0")}
    h, c = (torch.cat(x).unflatten(0, (-1, B)) for x in zip(*(
        reference.lstm_cell(**copies | {"seed": torch.tensor(seed)}, **options) for seed in range(20)
    ), strict=True))  # fmt: skip
    expected = reference.lstm_cell(**tensors, **options, training=False)
    for sampled, mean in zip((h, c), expected, strict=True):
        error = (sampled.mean(0) - mean).abs() / (sampled.std(0) / 2000**0.5)
        assert error.max() < 4.5


def test_dropout_keeps_the_expected_value():
    tensors, options = layer_case(["dropout"], T=2, B=64, H=64)
    clean = reference.lstm_layer(**tensors)[0].detach()
    dropped = reference.lstm_layer(**tensors, **options)[0].detach()
    kept = dropped != 0
    assert_close(dropped[kept], clean[kept] / (1 - options["dropout"]))
    assert abs(kept.double().mean().item() - 0.7) < 4 * (0.3 * 0.7 / kept.numel()) ** 0.5


def test_a_projection_excludes_zoneout_of_h():
    tensors, options = layer_case(["projection"])
    with pytest.raises(RuntimeError, match="zoneout_h must be 0 with a projection"):
        reference.lstm_layer(**tensors, **options, zoneout_h=0.1)


def test_a_missing_seed_is_an_error():
    tensors, options = layer_case(["dropout"])
    with pytest.raises(RuntimeError, match="seed must be given"):
        reference.lstm_layer(**tensors | {"seed": None}, **options)


@pytest.mark.parametrize("on", [(), *((name,) for name in OPTIONS), EVERYTHING, EVERYTHING_ELSE], ids=label)
def test_gradcheck(on):
    function, values = positional(reference.lstm_layer, *layer_case(on, T=2, B=2, I=2, H=2))
    assert torch.autograd.gradcheck(function, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)
