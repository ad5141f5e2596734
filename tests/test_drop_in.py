"""LSTM and LSTMCell are an nn.LSTM and an nn.LSTMCell; FusedLSTM is not: what code that checks the class does to each.

torch.compile does not compile an nn.LSTM, initialization that sets every vector would harm the norms, and a tool that
replaces an nn.LSTM would drop the options. LSTM has no options.
"""

import copy
import pickle
import warnings

import pytest
import torch
from testing import assert_close, assert_same_bits, random
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell, LSTMCell, convert

T, B, I, H = 4, 3, 5, 5  # noqa: E741
X = random(T, B, I, seed=1).float()


class Model(nn.Module):
    def __init__(self, layer, cell, **options):
        super().__init__()
        self.lstm, self.cell, self.head = layer(I, H, **options), cell(H, H), nn.Linear(H, 2)

    def forward(self, x):
        output, (h_n, c_n) = self.lstm(x)
        h, _ = self.cell(output[-1], (h_n[-1], c_n[-1]))
        return self.head(h)


THEIRS, FUSED, DROP_IN = (nn.LSTM, nn.LSTMCell), (FusedLSTM, FusedLSTMCell), (LSTM, LSTMCell)
NEW = pytest.mark.parametrize("kinds", [FUSED, DROP_IN], ids=["fused", "drop_in"])


def by_class(module):
    """The most common code that checks the class: initialization."""
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        for name, parameter in module.named_parameters():
            nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)


def by_class_and_dimension(module):
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        for parameter in module.parameters():
            nn.init.xavier_uniform_(parameter) if parameter.dim() > 1 else nn.init.constant_(parameter, 0.1)


def by_name_of_the_class(module):
    if module.__class__.__name__ == "LSTM":
        for name in module._flat_weights_names:
            nn.init.constant_(module._parameters[name], 0.2)
    elif type(module).__name__.find("LSTMCell") != -1:
        module.reset_parameters()


def test_who_is_what():
    for layer, cell in (THEIRS, DROP_IN):
        assert isinstance(layer(I, H), (nn.LSTM, nn.RNNBase)), layer
        assert isinstance(cell(I, H), (nn.LSTMCell, nn.RNNCellBase)), cell
    assert issubclass(LSTM, FusedLSTM)
    assert issubclass(LSTMCell, FusedLSTMCell)
    assert not isinstance(FusedLSTM(I, H), nn.RNNBase)
    assert not isinstance(FusedLSTMCell(I, H), nn.RNNCellBase)
    assert all(isinstance(module(I, H), nn.Module) and module(I, H).hidden_size == H for module in FUSED)


@pytest.mark.parametrize("init", [by_class, by_class_and_dimension, by_name_of_the_class])
def test_initialization_by_class(init):
    """The same numbers in the drop-in as in torch's modules; nothing in the others, whose norms it would harm."""
    states = []
    for kinds in (THEIRS, DROP_IN):
        torch.manual_seed(1)
        model = Model(*kinds)
        before = copy.deepcopy(model.state_dict())
        states.append(model.apply(init).state_dict())
        assert not torch.equal(states[-1]["lstm.weight_hh_l0"], before["lstm.weight_hh_l0"])
    assert_same_bits(states[1], states[0])

    model = Model(*FUSED, layer_norm=True)
    before = copy.deepcopy(model.lstm.state_dict())
    if init is not by_name_of_the_class:
        assert_same_bits(model.apply(init).lstm.state_dict(), before)


def test_initialization_of_what_nn_lstm_has():
    """The way that README names for every class and option."""

    def init(module):
        for parameter in (parameter for of_layer in module.all_weights for parameter in of_layer):
            nn.init.orthogonal_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    for options in ({}, {"layer_norm": True, "peephole": True}, {"layer_norm": "carry", "proj_size": 2}):
        for kind in (FusedLSTM, LSTM, nn.LSTM) if not options else (FusedLSTM,):
            module = kind(I, H, 2, **options)
            ours = ("weight_ln", "bias_ln_c", "weight_c")  # gains, the cell norm's bias, peepholes
            before = {name: p.clone().detach() for name, p in module.named_parameters() if name.startswith(ours)}
            init(module)
            for name, parameter in module.named_parameters():
                if name in before:
                    assert_same_bits([parameter.detach()], [before[name]])
                elif "bias" in name:
                    assert not parameter.any()
            hh = module.weight_hh_l1.detach()
            assert_close(hh.T @ hh, torch.eye(hh.shape[1]))


def test_initialization_by_name_stops_at_a_vector():
    """It is loud, as it is with an nn.LayerNorm in the model."""

    def init(module):
        for name, parameter in module.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter)

    for module in (FusedLSTM(I, H, layer_norm=True), nn.Sequential(nn.LayerNorm(H))):
        with pytest.raises(ValueError, match="2 or more dimensions"):
            init(module)


def test_the_drop_in_takes_what_nn_lstm_takes_and_no_more():
    for option in ({"layer_norm": True}, {"zoneout": 0.1}, {"recompute": True}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            LSTM(I, H, **option)
    module = LSTM(I, H, 2, dropout=0.5, bidirectional=True)
    assert repr(module) == repr(nn.LSTM(I, H, 2, dropout=0.5, bidirectional=True))
    output, _ = module(X, lengths=[4, 1, 2], reset=torch.zeros(T, B, dtype=torch.bool), seed=3)
    assert not output[1:, 1].any()
    assert repr(LSTMCell(I, H, bias=False)) == repr(nn.LSTMCell(I, H, bias=False))
    assert type(convert.to_torch(module)) is nn.LSTM
    assert type(LSTM.from_torch(nn.LSTM(I, H))) is LSTM
    assert type(FusedLSTM.from_torch(module, layer_norm=True)) is FusedLSTM


def test_what_nn_lstm_has_beside():
    """Undocumented methods that some code calls."""
    theirs, ours = nn.LSTM(I, H, 2, bidirectional=True, proj_size=2), LSTM(I, H, 2, bidirectional=True, proj_size=2)
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.flatten_parameters()
        assert module.get_expected_hidden_size(X, None) == (4, B, 2)
        assert module.get_expected_cell_size(X, None) == (4, B, H)
        module.check_input(X, None)
        with pytest.raises(RuntimeError, match="Expected hidden"):
            module.check_hidden_size(X, (1, 2, 3), "Expected hidden size {}, got {}")
    assert [p.shape for p in ours._flat_weights] == [p.shape for p in theirs._flat_weights]
    assert ours.__constants__ == theirs.__constants__
    ours.some_attribute = 1
    ours.weight_hh_l0 = nn.Parameter(2 * theirs.weight_hh_l0.detach())
    theirs.weight_hh_l0 = nn.Parameter(2 * theirs.weight_hh_l0.detach())
    assert_close(ours(X), theirs(X))


@NEW
def test_quantize_dynamic_leaves_it_as_it_is(kinds):
    """torch's tools that convert look up the very class of a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated
        model = Model(*kinds)
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.LSTMCell})
    assert (type(quantized.lstm), type(quantized.cell)) == kinds
    assert_same_bits([quantized(X)], [model(X)])


@NEW
def test_torch_fx_makes_one_node_of_it(kinds):
    """As of torch's own modules: with nothing to say about leaves."""
    theirs, model = Model(*THEIRS), Model(*kinds)
    graphs = [torch.fx.symbolic_trace(each) for each in (theirs, model)]
    nodes = [[(node.op, node.name) for node in graph.graph.nodes] for graph in graphs]
    assert nodes[1] == nodes[0]
    assert_same_bits([graphs[1](X)], [model(X)])
    again = pickle.loads(pickle.dumps(graphs[1]))
    assert_same_bits([again(X)], [model(X)])


def test_torch_fx_keeps_arguments():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.cell = FusedLSTM(I, H, zoneout=0.2), FusedLSTMCell(I, H, zoneout=0.2)

        def forward(self, x, hx, lengths):
            output, state = self.lstm(x, hx, lengths=lengths, seed=3)
            return output, state, self.cell(x[0], seed=4, step=2)

    model = Masked()
    hx = random(1, B, H, seed=2).float(), random(1, B, H, seed=3).float()
    graph = torch.fx.symbolic_trace(model)
    given = X, hx, torch.tensor([4, 1, 2])
    assert_same_bits(tree_leaves(graph(*given)), tree_leaves(model(*given)))
    with pytest.raises(TypeError, match="root must be a model with this module in it"):
        torch.fx.symbolic_trace(FusedLSTM(I, H))


@NEW
def test_torch_jit(kinds):
    """Traced; to script it is refused, by the drop-in too."""
    model = Model(*kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        assert_close(torch.jit.trace(model, X)(X[:2]), model(X[:2]))
        with pytest.raises(RuntimeError, match=r"module must be traced .* got torch\.jit\.script"):
            torch.jit.script(model)


def test_torch_compile_and_export():
    """Why FusedLSTM is not an nn.LSTM: torch.compile refuses one unless allow_rnn is set; torch.export accepts all."""
    with torch.no_grad():
        for kinds in (FUSED, DROP_IN):
            model = Model(*kinds)
            assert_close(torch.export.export(model, (X,)).module()(X), model(X))
            torch.compiler.reset()
            compiled = torch.compile(model, fullgraph=True, backend="eager")
            if kinds == DROP_IN and not torch._dynamo.config.allow_rnn:
                with pytest.raises(Exception, match="RNN, GRU, or LSTM"):
                    compiled(X)
                torch.compiler.reset()
                with torch._dynamo.config.patch(allow_rnn=True):
                    assert_close(compiled(X), model(X))
            else:
                assert_close(compiled(X), model(X))


@NEW
def test_packed_sequences_and_states_go_on(kinds):
    """The state is a pair, which code that checks the class expects."""
    packed = pack_sequence([X[:, 0], X[:2, 1]])
    layer = kinds[0](I, H)
    output, state = layer(packed)
    output, state = layer(packed, state)
    assert isinstance(state, tuple)
    assert output.data.shape == (T + 2, H)
