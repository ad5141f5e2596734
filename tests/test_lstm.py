"""FusedLSTM against nn.LSTM, and against a stack of reference layers where nn.LSTM has no such option."""

import copy
import itertools
import warnings

import pytest
import torch
from testing import MODULE_OPTIONS, MODULE_SETS, OPTIONS, assert_close, assert_same_bits, module_options, random
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import lstm_fused.lstm
from lstm_fused import FusedLSTM, FusedLSTMCell, reference
from lstm_fused._schema import LAYER_TENSORS, WEIGHTS

T, B, I, H = 6, 4, 3, 5  # noqa: E741
LENGTHS = {"sorted": [6, 5, 2, 1], "unsorted": [2, 6, 2, 5]}
LAYOUTS = ("seq_first", "batch_first", "unbatched", "packed_sorted", "packed_unsorted")
# What ours has and nn.LSTM has not, alone and together.
NEW_OPTIONS = {name: module_options(name) for name in MODULE_OPTIONS if name not in ("no_bias", "projection")}
NEW_OPTIONS["forget_bias"] = {"forget_bias": 1.5}
NEW_OPTIONS["all"] = MODULE_SETS["ba2016"] | {"variational": True, "forget_bias": 1.0, "eps": 1e-3}


def arguments(layout, module, with_state=True, device="cpu"):
    """An input in this layout, an initial state, and the leaves to differentiate."""
    batch = () if layout == "unbatched" else (B,)
    n = module.num_layers * (2 if module.bidirectional else 1)
    shape = (B, T, I) if layout == "batch_first" else (T, *batch, I)
    x = random(*shape, seed=1).to(device).requires_grad_()
    leaves = [x]
    if layout.startswith("packed"):
        kind = layout.removeprefix("packed_")
        x = pack_padded_sequence(x, LENGTHS[kind], enforce_sorted=kind == "sorted")
    hx = None
    if with_state:
        hx = tuple(random(n, *batch, H, seed=2 + k).to(device).requires_grad_() for k in range(2))
        leaves += hx
    return x, hx, leaves


def run(module, x, hx, leaves, **options):
    """Results and all gradients, by name."""
    output, (h_n, c_n) = module(x, hx, **options)
    packed = isinstance(output, PackedSequence)
    out = {"output": output.data if packed else output, "h_n": h_n, "c_n": c_n}
    if packed:
        padded, lengths = pad_packed_sequence(output)
        out |= {"padded": padded, "lengths": lengths, "batch_sizes": output.batch_sizes}
        if output.sorted_indices is not None:
            out |= {"sorted_indices": output.sorted_indices, "unsorted_indices": output.unsorted_indices}
    loss = sum((out[n] * random(*out[n].shape, seed=9).to(out[n])).sum() for n in ("output", "h_n", "c_n"))
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, [*leaves, *parameters.values()], retain_graph=True)
    names = [*("input", "h_0", "c_0")[: len(leaves)], *parameters]
    return {n: r.detach() for n, r in out.items()} | {f"d_{n}": g for n, g in zip(names, gradients, strict=True)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_nn_lstm(layout, num_layers, bidirectional, bias, device):
    theirs = nn.LSTM(
        I, H, num_layers, bias, layout == "batch_first", 0.0, bidirectional, dtype=torch.float64, device=device
    )
    ours = FusedLSTM.from_torch(theirs)
    for with_state in (True, False):
        x, hx, leaves = arguments(layout, ours, with_state, device)
        assert_close(run(ours, x, hx, leaves), run(theirs, x, hx, leaves))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", NEW_OPTIONS.values(), ids=NEW_OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_options_equal_the_reference(layout, options, bidirectional, device, monkeypatch):
    """The same module with the kernel's layer replaced by the specification's."""
    module = FusedLSTM(
        I,
        H,
        2,
        batch_first=layout == "batch_first",
        bidirectional=bidirectional,
        dtype=torch.float64,
        device=device,
        **options,
    )
    x, hx, leaves = arguments(layout, module, device=device)
    for training in (True, False):
        module.train(training)
        actual = run(module, x, hx, leaves, seed=77)
        with monkeypatch.context() as patch:
            patch.setattr(lstm_fused.lstm.ops, "lstm_layer", reference.lstm_layer)
            assert_close(actual, run(module, x, hx, leaves, seed=77))


@pytest.mark.parametrize("variational", [False, True])
def test_what_each_layer_gets(variational, device):
    """The stack by hand: which direction runs backwards, what is dropped (not the last output), every option."""
    module = FusedLSTM(
        I, H, 2, bidirectional=True, dtype=torch.float64, device=device,
        **NEW_OPTIONS["all"] | {"dropout": 0.4, "variational": variational},
    )  # fmt: skip
    x, (h_0, c_0), _ = arguments("seq_first", module, device=device)
    options = {name: OPTIONS[name][name] for name in ("recurrent_dropout", "zoneout_h", "zoneout_c")}
    seed = torch.tensor(12, device=device)
    y, h_n, c_n = x, [], []
    for layer in range(2):
        outputs = []
        for k, (suffix, reverse) in enumerate([("", False), ("_reverse", True)]):
            stream = 2 * layer + k
            weights = {n: getattr(module, f"{n}_l{layer}{suffix}", None) for n in LAYER_TENSORS[WEIGHTS]}
            output, h, c = reference.lstm_layer(
                y, h_0[stream], c_0[stream], **weights, seed=seed, reverse=reverse, dropout=0.4 if layer == 0 else 0.0,
                variational=variational, eps=1e-3, stream=stream, **options,
            )  # fmt: skip
            outputs.append(output)
            h_n.append(h)
            c_n.append(c)
        y = torch.cat(outputs, -1)
    output, state = module(x, (h_0, c_0), seed=seed)
    assert_close((output, state), (y, (torch.stack(h_n), torch.stack(c_n))))


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_equal_packing(batch_first, device):
    """And a length of zero, which a PackedSequence cannot have, leaves the initial state."""
    lengths = LENGTHS["unsorted"]
    theirs = nn.LSTM(I, H, 2, batch_first=batch_first, bidirectional=True, dtype=torch.float64, device=device)
    ours = FusedLSTM.from_torch(theirs)
    x, hx, _ = arguments("batch_first" if batch_first else "seq_first", ours, device=device)
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    output, state = theirs(packed, hx)
    expected = pad_packed_sequence(output, batch_first=batch_first, total_length=T)[0], state
    for given in (lengths, torch.tensor(lengths), torch.tensor(lengths, dtype=torch.int32), tuple(lengths)):
        assert_close(ours(x, hx, lengths=given), expected)
    output, (h_n, c_n) = ours(x, hx, lengths=[0, 6, 0, 5])
    empty = output[[0, 2]] if batch_first else output[:, [0, 2]]
    assert not empty.any()
    assert_same_bits([h_n[:, [0, 2]], c_n[:, [0, 2]]], [x[:, [0, 2]] for x in hx])


def test_no_steps_and_no_sequences(device):
    module = FusedLSTM(I, H, 2, bidirectional=True, layer_norm=True, dropout=0.1, device=device)
    output, (h_n, c_n) = module(torch.empty(0, 2, I, device=device))
    assert output.shape == (0, 2, 2 * H)
    assert h_n.shape == c_n.shape == (4, 2, H)
    assert not h_n.any()
    output, (h_n, c_n) = module(torch.empty(3, 0, I, device=device))
    assert output.shape == (3, 0, 2 * H)
    assert h_n.shape == c_n.shape == (4, 0, H)
    module(torch.empty(3, 0, I, device=device), lengths=[])


@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias"), list(itertools.product((1, 3), (False, True), (False, True)))
)
def test_initial_weights_and_state_dict_are_those_of_nn_lstm(num_layers, bidirectional, bias, device):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias, "device": device}
    torch.manual_seed(5)
    theirs = nn.LSTM(I, H, **options)
    torch.manual_seed(5)
    ours = FusedLSTM(I, H, **options)
    assert_same_bits(ours.state_dict(), theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [[p.shape for p in ps] for ps in ours.all_weights] == [[p.shape for p in ps] for ps in theirs.all_weights]

    torch.manual_seed(6)
    theirs.load_state_dict(FusedLSTM(I, H, **options).state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert_same_bits(ours.state_dict(), theirs.state_dict())
    ours.flatten_parameters()
    ours.reset_parameters()
    assert not torch.equal(ours.weight_ih_l0, theirs.weight_ih_l0)


def test_new_parameters(device):
    """Their names, shapes and first values; the shared ones are still drawn as nn.LSTM draws them."""
    torch.manual_seed(5)
    plain = FusedLSTM(I, H, 2, bidirectional=True, device=device)
    torch.manual_seed(5)
    module = FusedLSTM(I, H, 2, bidirectional=True, layer_norm=True, device=device)
    state = module.state_dict()
    assert_same_bits({name: state[name] for name in plain.state_dict()}, plain.state_dict())
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        for name, shape, value in [
            ("weight_ln_ih", (4 * H,), 1),
            ("weight_ln_hh", (4 * H,), 1),
            ("weight_ln_c", (H,), 1),
            ("bias_ln_c", (H,), 0),
        ]:
            assert torch.equal(state.pop(name + suffix), torch.full(shape, float(value), device=device))
    assert state.keys() == plain.state_dict().keys()


def test_forget_bias(device):
    torch.manual_seed(5)
    plain = FusedLSTM(I, H, 2, device=device)
    torch.manual_seed(5)
    module = FusedLSTM(I, H, 2, forget_bias=1.25, device=device)
    for layer in range(2):
        ih, hh = (getattr(module, f"bias_{n}_l{layer}") for n in ("ih", "hh"))
        assert torch.equal((ih + hh)[H : 2 * H], torch.full((H,), 1.25, device=device))
        others = torch.arange(4 * H, device=device) // H != 1
        assert torch.equal(ih[others], getattr(plain, f"bias_ih_l{layer}")[others])
        assert torch.equal(hh[others], getattr(plain, f"bias_hh_l{layer}")[others])
    assert all(p.requires_grad and p.is_leaf for p in module.parameters())


def test_from_torch(device):
    theirs = nn.LSTM(
        I, H, 2, batch_first=True, bidirectional=True, dropout=0.25, dtype=torch.float64, device=device
    ).eval()
    ours = FusedLSTM.from_torch(theirs, layer_norm=True, zoneout=0.1)
    assert (ours.batch_first, ours.bidirectional, ours.dropout, ours.training) == (True, True, 0.25, False)
    assert (ours.layer_norm, ours.zoneout) == ("ba2016", (0.1, 0.1))
    assert_same_bits({name: ours.state_dict()[name] for name in theirs.state_dict()}, theirs.state_dict())
    ours.weight_ih_l0.data.zero_()
    assert theirs.weight_ih_l0.all()


def test_from_torch_with_the_norms_that_have_biases():
    theirs = nn.LSTM(I, H, 2, bidirectional=True)
    theirs.bias_hh_l1_reverse.requires_grad_(False)
    ours = FusedLSTM.from_torch(theirs, layer_norm="carry")
    for name, parameter in theirs.named_parameters():
        copied = ours.get_parameter(name.replace("bias_", "bias_ln_"))
        assert_same_bits([copied.detach()], [parameter.detach()])
        assert copied.requires_grad == parameter.requires_grad


def test_positional_arguments_are_those_of_nn_lstm(device):
    arguments = (I, H, 2, False, True, 0.5, True, 0, device, torch.float64)
    ours, theirs = FusedLSTM(*arguments), nn.LSTM(*arguments)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.weight_ih_l0.dtype == torch.float64
    for name in nn.LSTM.__constants__:
        assert getattr(ours, name) == getattr(theirs, name)


def test_repr():
    module = FusedLSTM(3, 5, 2, bias=False, dropout=0.5, layer_norm=True, zoneout=0.1, eps=1e-4)
    assert repr(module) == (
        "FusedLSTM(3, 5, num_layers=2, bias=False, dropout=0.5, layer_norm='ba2016', zoneout=(0.1, 0.1), eps=0.0001)"
    )
    assert repr(FusedLSTM(3, 5)) == "FusedLSTM(3, 5)"


def test_dropout_of_a_single_layer_warns():
    with pytest.warns(UserWarning, match="expects num_layers greater than 1, but got dropout=0.5 and num_layers=1"):
        FusedLSTM(I, H, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FusedLSTM(I, H, 2, dropout=0.5)


def test_moves_copies_and_functional_calls(device):
    module = FusedLSTM(I, H, 2, layer_norm=True, device=device)
    x = random(T, B, I, seed=1).to(device)
    twice = copy.deepcopy(module).double()
    assert_close(twice(x)[0].float(), module(x.float())[0])
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert not torch.func.functional_call(module, zeros, (x.float(),))[0].any()
    with torch.device("meta"):
        assert FusedLSTM(I, H, 2, layer_norm=True, forget_bias=1.0).weight_hh_l1.is_meta


def test_training_learns(device):
    """A few steps of Adam on a sum over the sequence: the whole stack with every option, used as in training."""
    module = FusedLSTM(1, 16, 2, **NEW_OPTIONS["all"] | {"dropout": 0.05, "recurrent_dropout": 0.05}, device=device)
    head = nn.Linear(16, 1, device=device)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=0.02)
    x = random(8, 64, 1, seed=1).float().to(device)
    losses = []
    for _ in range(60):
        loss = (head(module(x)[0][-1]) - x.sum(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def change_in_place(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.neg_()


def change_through_data(module):
    for parameter in module.parameters():
        parameter.data = -parameter.data


def change_by_loading(module):
    module.load_state_dict({name: -value for name, value in module.state_dict().items()})


def change_by_assigning(module):
    module.load_state_dict({name: -value for name, value in module.state_dict().items()}, assign=True)


def change_by_moving(module):
    module.double()
    change_in_place(module)
    module.float()


def change_by_an_optimizer(module):
    for parameter in module.parameters():
        parameter.grad = 2 * parameter.detach()
    torch.optim.SGD(module.parameters(), lr=1.0).step()


@pytest.mark.parametrize("sizes", [(1, 1), (12, 3)], ids=["one_step", "sequence"])
@pytest.mark.parametrize("kind", [FusedLSTM, FusedLSTMCell])
@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_through_data,
        change_by_loading,
        change_by_assigning,
        change_by_moving,
        change_by_an_optimizer,
    ],
)
def test_no_weight_is_remembered(change, kind, sizes, device):
    """Weights that changed between two calls of inference, whichever way, are the second call's."""
    x = random(*sizes, I, seed=1).float().to(device)
    x = x[0] if kind is FusedLSTMCell else x
    module, fresh = kind(I, H, device=device), kind(I, H, device=device)
    fresh.load_state_dict({name: -value for name, value in module.state_dict().items()})
    with torch.inference_mode():
        before = tree_leaves(module(x))
    change(module)
    with torch.inference_mode():
        after = tree_leaves(module(x))
        assert_same_bits(after, tree_leaves(fresh(x)))
    assert not torch.equal(after[0], before[0])


def test_parametrized_weight():
    """A parametrization replaces a parameter by a property; the layer must use what the property gives."""
    lstm = FusedLSTM(3, 4, dtype=torch.float64)
    plain = FusedLSTM(3, 4, dtype=torch.float64)
    plain.load_state_dict(lstm.state_dict())
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    lstm.parametrizations.weight_hh_l0.original0.data.mul_(2)  # the norms of the rows
    plain.weight_hh_l0.data.mul_(2)
    x = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lstm(x)[0], plain(x)[0])
    lstm(x)[0].sum().backward()
    assert lstm.parametrizations.weight_hh_l0.original1.grad is not None


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"layer_norm": True}, {"layer_norm": "carry"}, {"peephole": True}], ids=str
)
@pytest.mark.parametrize("state", [True, False], ids=["state", "zeros"])
def test_a_single_layer_goes_the_short_way_to_the_same_bits(options, state, monkeypatch):
    lstm, x = FusedLSTM(I, H, **options), random(T, B, I, seed=1).float()
    hx = (random(1, B, H, seed=2).float(), random(1, B, H, seed=3).float()) if state else None
    with torch.no_grad():
        long_way = tree_leaves(lstm(x, hx, lengths=[T] * B))
        monkeypatch.setattr(lstm, "_forward", None)
        assert_same_bits(tree_leaves(lstm(x, hx)), long_way)


@pytest.mark.parametrize(
    "options",
    [
        {"zoneout": 0.2},  # of which the expected value counts
        {"open_gates": ["f"]},
        {"eps": 1e-3, "layer_norm": True},
        {"proj_size": 2},
        {"batch_first": True},
        {"bidirectional": True},
        {"num_layers": 2},
    ],
    ids=str,
)
def test_the_short_way_is_for_what_it_can_do(options):
    lstm, x = FusedLSTM(I, H, **options), random(T, B, I, seed=1).float()
    lengths = [B] * T if lstm.batch_first else [T] * B
    with torch.no_grad():
        assert_same_bits(tree_leaves(lstm.eval()(x)), tree_leaves(lstm(x, lengths=lengths)))


@pytest.mark.parametrize(
    ("h_0", "c_0"),
    [((B, H), (B, H)), ((2, B, H), (1, B, H)), ((1, B, H), (1, B + 1, H)), ((1, 1, B, H), (1, B, H))],
)
def test_the_short_way_refuses_what_the_long_one_does(h_0, c_0):
    lstm, peer, x, hx = FusedLSTM(I, H), nn.LSTM(I, H), torch.zeros(T, B, I), (torch.zeros(h_0), torch.zeros(c_0))
    for module in (lstm, peer):
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"hx|hidden"):
            module(x, hx)
