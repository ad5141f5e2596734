"""lstm.trace() against the reference, step by step, and against forward."""

import sys

import pytest
import torch
from testing import TOLERANCE, assert_close, assert_same_bits, module_options, random
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_fused import FusedLSTM, Trace, reference

T, B, I, H = 6, 4, 3, 5  # noqa: E741
LENGTHS = [6, 2, 0, 5]
OPTIONS = {
    "default": {},
    "no_bias": module_options("no_bias"),
    "layer_norm": module_options("layer_norm") | {"eps": 1e-3},
    "all": module_options("layer_norm", "dropout", "recurrent_dropout", "zoneout_h", "zoneout_c"),
}


def step_by_step(module, x, lengths, seed):
    """Gates, cells, hidden states by the reference's cell, one step and one layer at a time."""
    gates, cells, hidden = [], [], []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(2):
            stream = 2 * layer + direction
            names = (
                "weight_ih",
                "weight_hh",
                "bias_ih",
                "bias_hh",
                *(f"weight_ln_{n}" for n in ("ih", "hh", "c")),
                "bias_ln_c",
            )
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            weights = {name: getattr(module, name + suffix) for name in names}
            options = {
                "recurrent_dropout": module.recurrent_dropout, "zoneout_h": module.zoneout[0],
                "zoneout_c": module.zoneout[1], "training": module.training, "eps": module.eps, "stream": stream,
            }  # fmt: skip
            h = c = x.new_zeros(B, H)
            all_gates, all_cells, all_hidden = x.new_zeros(T, B, 4, H), x.new_zeros(T, B, H), x.new_zeros(T, B, H)
            for t in reversed(range(T)) if direction else range(T):
                mask = 1.0
                if module.training and module.recurrent_dropout > 0:
                    hit = reference.hits(seed, "hidden", module.recurrent_dropout, 0, h, stream=stream)
                    mask = (~hit).to(h.dtype) / (1 - module.recurrent_dropout)
                z_x, z_h = x[t] @ weights["weight_ih"].T, (h * mask) @ weights["weight_hh"].T
                if module.layer_norm:
                    z_x = torch.layer_norm(z_x, (4 * H,), weights["weight_ln_ih"], None, module.eps)
                    z_h = torch.layer_norm(z_h, (4 * H,), weights["weight_ln_hh"], None, module.eps)
                z = z_x + z_h + (weights["bias_ih"] + weights["bias_hh"] if module.bias else 0)
                i, f, g, o = z.unflatten(1, (4, H)).unbind(1)
                h_t, c_t = reference.lstm_cell(x[t], h, c, **weights, seed=seed, step=t, **options)
                for b in range(B):
                    if t < lengths[b]:
                        all_gates[t, b] = torch.stack((i[b].sigmoid(), f[b].sigmoid(), g[b].tanh(), o[b].sigmoid()))
                        all_cells[t, b], all_hidden[t, b] = c_t[b], h_t[b]
                real = torch.tensor([t < length for length in lengths]).unsqueeze(1)
                h, c = torch.where(real, h_t, h), torch.where(real, c_t, c)
            gates.append(all_gates)
            cells.append(all_cells)
            hidden.append(all_hidden)
            y = all_hidden
            if module.training and module.dropout > 0 and layer < module.num_layers - 1:
                y = torch.stack([
                    v * (~reference.hits(seed, "output", module.dropout, t, v, stream=stream)) / (1 - module.dropout)
                    for t, v in enumerate(y)
                ])  # fmt: skip
            outputs.append(y)
        x = torch.cat(outputs, -1)
    return gates, cells, hidden


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lengths", [[T] * B, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_reference(options, lengths, training):
    module = FusedLSTM(I, H, 2, bidirectional=True, dtype=torch.float64, **options).train(training)
    x, seed = random(T, B, I, seed=1), torch.tensor(9)
    trace = module.trace(x, lengths=lengths, seed=seed)
    with torch.no_grad():
        assert_same_bits([trace.output, *trace.state], [(r := module(x, lengths=lengths, seed=seed))[0], *r[1]])
        expected = step_by_step(module, x, lengths, seed)
    assert_close((list(trace.gates), list(trace.cells), list(trace.hidden)), tuple(expected))


@pytest.mark.parametrize(
    "options",
    [
        module_options("peephole"),
        module_options("projection"),
        module_options("open_gates"),
        module_options("recurrent_activation", "peephole"),
        module_options("carry", "peephole"),
        module_options("weight_dropout", "peephole"),
    ],
    ids=str,
)
def test_the_gates_make_the_states(options):
    """c_t and h_t follow from the gates of the step and the state before it; with resets, in both directions."""
    module = FusedLSTM(I, H, bidirectional=True, dtype=torch.float64, **options)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3, 1] = reset[0, 2] = reset[5, 0] = True
    trace = module.trace(random(T, B, I, seed=1), reset=reset, seed=4)
    for direction in range(2):
        suffix = "_l0" + ("_reverse" if direction else "")
        order = list(range(T))[:: -1 if direction else 1]
        c = torch.zeros(B, H, dtype=torch.float64)
        for t in order:
            i, f, g, o = trace.gates[direction][t].unbind(1)
            c = f * c.masked_fill(reset[t].unsqueeze(1), 0) + i * g
            if options.get("layer_norm"):
                gain, bias = (getattr(module, f"{name}_ln_c{suffix}").detach() for name in ("weight", "bias"))
                c = torch.layer_norm(c, (H,), gain, bias, module.eps)
            h = o * c.tanh()
            if options.get("proj_size"):
                h = h @ getattr(module, "weight_hr" + suffix).detach().T
            assert_close((trace.cells[direction][t], trace.hidden[direction][t]), (c, h))


def test_layouts():
    """Time comes first inside for every layout of the input; the output is that of forward."""
    module = FusedLSTM(I, H, dtype=torch.float64)
    x = random(T, B, I, seed=1)
    trace = module.trace(x)
    assert isinstance(trace, Trace)
    assert trace.gates[0].shape == (T, B, 4, H)
    alone = module.trace(x[:, 1])
    assert alone.output.shape == (T, H)
    assert_close(alone.gates[0][:, 0], trace.gates[0][:, 1])
    module.batch_first = True
    first = module.trace(x.transpose(0, 1))
    assert first.output.shape == (B, T, H)
    assert_close(first.cells, trace.cells)
    module.batch_first = False
    packed = module.trace(pack_padded_sequence(x, [2, 6, 3, 1], enforce_sorted=False))
    assert_close(packed.hidden, module.trace(x, lengths=[2, 6, 3, 1]).hidden)
    assert module.trace(x[:0]).gates[0].shape == (0, B, 4, H)


def test_starts_from_the_initial_state():
    module = FusedLSTM(I, H, bidirectional=True, dtype=torch.float64)
    x, hx = random(T, B, I, seed=1), (random(2, B, H, seed=2), random(2, B, H, seed=3))
    trace = module.trace(x, hx, lengths=LENGTHS)
    for k, (suffix, first) in enumerate((("", [0] * B), ("_reverse", [n - 1 for n in LENGTHS]))):
        w = {n: getattr(module, f"{n}_l0{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        for b in (0, 1, 3):
            z = w["weight_ih"] @ x[first[b], b] + w["weight_hh"] @ hx[0][k, b] + w["bias_ih"] + w["bias_hh"]
            assert_close(trace.gates[k][first[b], b, 1], z[H : 2 * H].sigmoid().detach())


def test_leaves_no_trace():
    """No gradients, no change of what training computes next."""
    module = FusedLSTM(I, H, zoneout=0.2, dtype=torch.float64)
    x = random(T, B, I, seed=1).requires_grad_()
    torch.manual_seed(3)
    before = module(x)[0]
    assert not any(tensor.requires_grad for tensor in (*module.trace(x).gates, module.trace(x).output))
    torch.manual_seed(3)
    after = module(x)[0]
    assert_same_bits([after], [before])
    assert after.requires_grad


def test_autocast():
    """As forward: that of the same layer in bfloat16."""
    module = FusedLSTM(I, H, 2, layer_norm=True)
    x = random(T, B, I, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        trace = module.trace(x)
        assert_same_bits([trace.output], [module(x)[0]])
    half = module.bfloat16().trace(x.bfloat16())
    for got, want in ((trace.gates, half.gates), (trace.cells, half.cells), (trace.hidden, half.hidden)):
        assert_same_bits(got, want)


@pytest.mark.parametrize(
    "options", [{}, {"layer_norm": True, "peephole": True, "recurrent_dropout": 0.3}, {"num_layers": 2, "dropout": 0.3}]
)
def test_half_precision(options):
    """Gates and cells are those of the same weights in float32, but for the rounding of the hidden states."""
    module = FusedLSTM(I, H, **options).bfloat16()
    x = random(T, B, I, seed=1).bfloat16()
    half, exact = module.trace(x, seed=2), module.float().trace(x.float(), seed=2)
    assert {y.dtype for y in (half.output, *half.hidden)} == {torch.bfloat16}
    for got, want in ((half.gates[0], exact.gates[0]), (half.cells[0], exact.cells[0])):
        assert got.dtype == torch.float32
        assert_close(got, want, TOLERANCE[torch.bfloat16])


def test_plot(tmp_path):
    """Six pictures, each with its data, of the given sequence and layer."""
    trace = FusedLSTM(I, H, 2, bidirectional=True, proj_size=2).bfloat16().trace(random(T, B, I, seed=1).bfloat16())
    figure = trace.plot(sequence=2, layer=3)
    figure.savefig(tmp_path / "trace.png")
    shown = {axes.get_title(): axes.images[0].get_array().data for axes in figure.axes if axes.images}
    gates, cells, hidden = (values[3][:, 2].float() for values in (trace.gates, trace.cells, trace.hidden))
    wanted = dict(zip(("input gate i", "forget gate f", "candidate g", "output gate o"), gates.unbind(1), strict=True))
    wanted |= {"cell c": cells, "hidden state h": hidden}
    assert shown.keys() == wanted.keys()
    for title, values in wanted.items():  # units over steps
        assert_same_bits([torch.tensor(shown[title])], [values.T.contiguous()])


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"^trace\.plot\(\) needs matplotlib: pip install matplotlib$"):
        FusedLSTM(I, H).trace(random(T, B, I, seed=1).float()).plot()


def test_arrays():
    """numpy takes everything as it is."""
    trace = FusedLSTM(I, H, 2).trace(random(T, B, I, seed=1).float())
    for values in (trace.output, *trace.state, *trace.gates, *trace.cells, *trace.hidden):
        assert values.numpy().shape == values.shape
