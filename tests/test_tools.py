"""Profilers, summaries and pruning report for a FusedLSTM what they report for an nn.LSTM."""

import pytest
import torch
from testing import assert_close, random
from torch import nn
from torch.nn.utils import prune

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell

T, B, I, H = 7, 3, 6, 5  # noqa: E741
X = random(T, B, I, seed=1)


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
