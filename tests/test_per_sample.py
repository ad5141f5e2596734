"""Opacus, which needs per-sample gradients: its validator refuses our modules, its fixer replaces them."""

import pytest
from testing import assert_close, random
from torch import nn

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell

T, B, I, H = 7, 3, 6, 5  # noqa: E741
X = random(T, B, I, seed=1)


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
