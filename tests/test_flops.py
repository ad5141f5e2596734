"""The FLOP formulas of our ops: torch's FlopCounterMode counts a FusedLSTM as it counts an nn.LSTM."""

import pytest
import torch
from testing import NN_LSTM_OPTIONS, random
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell

T, B, I, H = 7, 3, 6, 5  # noqa: E741
X = random(T, B, I, seed=1)  # float64, in which nn.LSTM runs in torch's own operators, which are counted


def flops(module, *given, backward=True):
    """Of a forward pass, and of its backward pass."""
    with FlopCounterMode(display=False) as forward, torch.set_grad_enabled(backward):
        output = module(*given)[0]
    with FlopCounterMode(display=False) as back:
        if backward:
            (output.data if isinstance(output, PackedSequence) else output).sum().backward()
    return forward.get_total_flops(), back.get_total_flops()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("kind", [FusedLSTM, LSTM])
@pytest.mark.parametrize("options", NN_LSTM_OPTIONS.values(), ids=NN_LSTM_OPTIONS)
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
