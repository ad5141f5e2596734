"""Tools that count, profile, summarize and prune see in a FusedLSTM what they see in an nn.LSTM."""

import pytest
import torch
from testing import assert_close, random
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell

T, B, I, H, P = 7, 3, 6, 5, 3  # noqa: E741
X = random(T, B, I, seed=1)  # float64, in which nn.LSTM runs in torch's own operators, which are counted


def flops(module, *given, backward=True):
    """Of a forward pass, and of its backward pass."""
    with FlopCounterMode(display=False) as forward, torch.set_grad_enabled(backward):
        output = module(*given)[0]
    with FlopCounterMode(display=False) as back:
        if backward:
            (output.data if isinstance(output, PackedSequence) else output).sum().backward()
    return forward.get_total_flops(), back.get_total_flops()


OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "layers": {"num_layers": 2, "dropout": 0.5},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch_first": {"batch_first": True},
    "projection": {"proj_size": P},
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", [FusedLSTM, LSTM])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_flops_are_those_of_nn_lstm(options, kind):
    theirs = nn.LSTM(I, H, dtype=torch.float64, **options)
    ours = kind.from_torch(theirs)
    rows = theirs.num_layers * (2 if theirs.bidirectional else 1)
    batch = T if theirs.batch_first else B
    state = tuple(random(rows, batch, n, seed=n) for n in (theirs.proj_size or H, H))
    for given in ((X,), (X.clone().requires_grad_(),), (X, state), (X, tuple(x.requires_grad_() for x in state))):
        assert flops(ours, *given) == flops(theirs, *given)
    assert flops(ours, X, backward=False) == flops(theirs, X, backward=False)
    for module in (theirs, ours):
        module.requires_grad_(False)
    assert flops(ours, X.clone().requires_grad_()) == flops(theirs, X.clone().requires_grad_())


def test_flops_of_sequences_that_end():
    """Steps that are not computed are not counted."""
    theirs = nn.LSTM(I, H, 2, dtype=torch.float64)
    ours = FusedLSTM.from_torch(theirs)
    packed = pack_padded_sequence(X, [7, 3, 2])
    assert flops(ours, packed) == flops(theirs, packed)
    assert flops(ours, X, None, [7, 3, 2]) == flops(theirs, packed)


def test_flops_of_the_cell():
    theirs, ours = nn.LSTMCell(I, H, dtype=torch.float64), FusedLSTMCell(I, H, dtype=torch.float64)
    state = tuple(random(B, H, seed=k) for k in (1, 2))
    for given in ((X[0],), (X[0], state), (X[0], tuple(x.requires_grad_() for x in state))):
        assert flops(ours, *given) == flops(theirs, *given)
    state = tuple(x.detach() for x in state)
    assert flops(ours, X[0], state, backward=False) == flops(theirs, X[0], state, backward=False)


def test_flops_by_hand():
    """In every dtype, with options, which add no product; recomputation adds the forward pass to the backward."""
    forward = 2 * T * B * 4 * H * (I + H)
    backward = 2 * forward - 2 * T * B * 4 * H * I - 2 * B * 4 * H * H  # but for the input's and the first state's
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for options in ({}, {"layer_norm": True, "zoneout": 0.2, "recurrent_dropout": 0.3, "peephole": True}):
            module, x = FusedLSTM(I, H, dtype=dtype, **options), X.to(dtype)
            with FlopCounterMode(display=False) as counter:
                module(x)
            assert counter.get_total_flops() == forward
            output, _ = module(x)
            with FlopCounterMode(display=False) as counter:
                output.sum().backward()
            assert counter.get_total_flops() == backward
    output, _ = FusedLSTM(I, H, recompute=True)(X.float())
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == backward + forward


def test_flops_are_counted_where_they_are():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = FusedLSTM(I, H, 2), nn.Linear(H, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    with FlopCounterMode(display=False) as counter:
        Model()(X.float())
    counts = {place: sum(of_one.values()) for place, of_one in counter.get_flop_counts().items()}
    layers = 2 * T * B * 4 * H * (I + H + H + H)
    assert counts["Model.lstm"] == layers
    assert counts["Model"] == counts["Global"] == layers + 2 * T * B * H * 2


def test_flops_of_fake_tensors():
    """As a tool counts that has no memory for the model."""
    with torch.device("meta"):
        module, x = FusedLSTM(I, H), torch.empty(T, B, I)
    with FlopCounterMode(display=False) as counter:
        module(x, lengths=torch.ones(B, dtype=torch.int64, device="meta"))[0].sum().backward()
    forward = 2 * T * B * 4 * H * (I + H)
    with torch._subclasses.FakeTensorMode(), FlopCounterMode(display=False) as fake:
        FusedLSTM(I, H)(torch.empty(T, B, I), lengths=torch.ones(B, dtype=torch.int64))[0].sum().backward()
    assert counter.get_total_flops() == fake.get_total_flops() > 2 * forward


def test_the_profiler_names_what_runs():
    module, cell = FusedLSTM(I, H), FusedLSTMCell(I, H)
    with torch.profiler.profile() as profile:
        module(X.float())[0].sum().backward()
        cell(X[0].float())[0].sum().backward()
        with torch.no_grad():
            module(X.float())
    names = {event.key for event in profile.key_averages()}
    ours = {f"lstm_fused::lstm_{kind}" for kind in ("layer", "layer_backward", "layer_inference", "cell")}
    assert names >= ours | {"FusedLSTM", "FusedLSTMBackward"}


def test_lightning_summarizes_it():
    lightning = pytest.importorskip("lightning", reason="the extra train")
    from lightning.pytorch.utilities.model_summary import ModelSummary

    class Model(lightning.LightningModule):
        def __init__(self, kind):
            super().__init__()
            self.lstm, self.head = kind(I, H, 2, dtype=torch.float64), nn.Linear(H, 2, dtype=torch.float64)
            self.example_input_array = X

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    theirs, *ours = (ModelSummary(Model(kind)) for kind in (nn.LSTM, FusedLSTM, LSTM))
    for summary in ours:
        for value in ("param_nums", "total_flops", "in_sizes", "out_sizes", "total_parameters"):
            assert getattr(summary, value) == getattr(theirs, value), value
    assert ours[0].total_flops > 0
    assert str(ours[1]) == str(theirs)
    assert "FusedLSTM" in str(ours[0])


def test_torchinfo_summarizes_it():
    torchinfo = pytest.importorskip("torchinfo", reason="a development dependency")
    columns = ("input_size", "output_size", "num_params", "mult_adds", "trainable")
    theirs, *ours = (
        torchinfo.summary(
            nn.Sequential(kind(I, H, 2, bidirectional=True)), input_size=(T, B, I), col_names=columns, verbose=0
        )
        for kind in (nn.LSTM, FusedLSTM, LSTM)
    )
    assert str(ours[1]) == str(theirs)
    assert (ours[0].total_mult_adds, ours[0].total_params) == (theirs.total_mult_adds, theirs.total_params)


def test_pruning_by_name():
    """What is pruned is the same share of the same parameters, and counted as such."""
    masks = []
    theirs = nn.LSTM(I, H, 2)
    for module in (theirs, FusedLSTM.from_torch(theirs, layer_norm=True)):
        for name in [name for name, _ in module.named_parameters() if name.startswith(("weight_ih", "weight_hh"))]:
            prune.l1_unstructured(module, name=name, amount=0.4)
        assert prune.is_pruned(module)
        masks.append(dict(module.named_buffers()))
        module(X.float())[0].sum().backward()
        assert not module.weight_hh_l0_orig.grad[module.weight_hh_l0_mask == 0].any()
    assert masks[0].keys() == masks[1].keys()
    assert_close(masks[1], masks[0])


class Extended(FusedLSTM):
    pass


class Outputs(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(I, H, **options)

    def forward(self, x):
        return self.rnn(x)[0]


def test_opacus_is_refused():
    """Its validator, in a sentence; its fixer makes its own LSTM of a layer without options, and of no other."""
    opacus = pytest.importorskip("opacus", reason="a development dependency")
    from opacus.validators import ModuleValidator

    for kind in (FusedLSTM, LSTM, Extended, FusedLSTMCell):
        model = Outputs(kind)
        sentence = f"model must have modules that give Opacus a gradient for each sample, got {kind.__name__}"
        (error,) = ModuleValidator.validate(model)
        assert str(error).startswith(sentence)
        with pytest.raises(opacus.validators.errors.UnsupportedModuleError, match=sentence):
            ModuleValidator.validate(model, strict=True)
        fixed = ModuleValidator.fix(model)
        if kind is FusedLSTMCell:
            assert type(fixed.rnn) is FusedLSTMCell
        else:
            assert isinstance(fixed.rnn, opacus.layers.DPLSTM)
            assert ModuleValidator.is_valid(fixed)
            assert_close(fixed(X.float()), model(X.float()))
    with pytest.raises(ValueError, match=r"lstm must have no option that nn.LSTM lacks to become one, got layer_norm"):
        ModuleValidator.fix(Outputs(FusedLSTM, layer_norm=True))
