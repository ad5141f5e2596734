"""torch.onnx.export: onnxruntime gives what the module gives, at sizes that the file was not exported with."""

import warnings

import pytest
import torch
from testing import assert_close, random
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_fused import LSTM, FusedLSTM, FusedLSTMCell

onnx = pytest.importorskip("onnx", reason="ONNX needs the extra onnx: pip install '.[onnx]'")
pytest.importorskip("onnxscript", reason="torch's exporter to ONNX is written in onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="the exported files run in onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

T, B, I, H = 6, 4, 3, 5  # noqa: E741
SIZES = [(T, B), (9, 2), (1, 1)]
DYNAMIC = {
    "input": {0: "T", 1: "B"},
    "lengths": {0: "B"},
    "reset": {0: "T", 1: "B"},
    "hx": ({1: "B"}, {1: "B"}),
}


def make(options, dtype):
    module = FusedLSTM(I, H, dtype=dtype, **options).eval()
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.add_(random(*parameter.shape, seed=k, scale=0.3))
    return module


def arguments(module, inputs, T, B):
    rows, P = module.num_layers * module.num_directions, module.proj_size or H
    everything = {
        "input": random(T, B, I, seed=T).to(module.weight_ih_l0.dtype),
        "hx": tuple(random(rows, B, n, seed=B + n).to(module.weight_ih_l0.dtype) for n in (P, H)),
        "lengths": torch.arange(B) % (T + 1),  # an empty sequence among them
        "reset": random(T, B, seed=3) > 0.6,
    }
    return {name: value for name, value in everything.items() if name in ("input", *inputs)}


def export(module, path, given, dynamic):
    torch.onnx.export(module, (), path, kwargs=given, dynamic_shapes=dynamic, verbose=False)
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type in ("LSTM", "Scan")]


def run(path, given):
    session = onnxruntime.InferenceSession(path)
    tensors = [x for value in given.values() for x in (value if isinstance(value, tuple) else (value,))]
    feed = {input.name: x.numpy() for input, x in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.from_numpy(x) for x in session.run(None, feed)]


def check(path, operators, options, inputs=(), dtype=torch.float32):
    module = make(options, dtype)
    given = arguments(module, inputs, T, B)
    assert export(module, path, given, {name: DYNAMIC[name] for name in given}) == operators
    for sizes in SIZES:
        given = arguments(module, inputs, *sizes)
        output, (h_n, c_n) = module(**given)
        assert_close(run(path, given), [x.detach() for x in (output, h_n, c_n)])


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.onnx")


def test_a_plain_stack_is_the_lstm_operator(path):
    check(path, ["LSTM"] * 4, {"num_layers": 2, "bidirectional": True}, ("hx", "lengths"))


def test_layer_norm_is_a_scan(path):
    check(path, ["Scan"], {"layer_norm": True, "zoneout": 0.2}, ("lengths", "reset"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ({}, ()),
        ({"bias": False}, ("hx",)),
        ({"peephole": True}, ("lengths",)),
        ({"activation": "relu", "peephole": True}, ()),
        ({"recurrent_activation": "hard_sigmoid", "bidirectional": True}, ("hx",)),
        ({"dropout": 0.3, "num_layers": 2, "recurrent_dropout": 0.2, "weight_dropout": 0.3}, ()),
    ],
    ids=str,
)
def test_the_lstm_operator(options, inputs, path):
    operators = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    check(path, ["LSTM"] * operators, options, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "inputs", "dtype"),
    [
        ({"layer_norm": "carry", "peephole": True, "bidirectional": True}, ("hx", "lengths"), torch.float32),
        ({"proj_size": 2}, ("hx",), torch.float32),
        ({"zoneout": (0.1, 0.3)}, (), torch.float32),
        ({"open_gates": "f", "activation": "relu", "recurrent_activation": "hard_sigmoid"}, (), torch.float32),
        ({}, ("reset",), torch.float32),
        ({}, (), torch.float64),  # onnxruntime has no LSTM operator in float64
        ({"layer_norm": True}, (), torch.float64),
    ],
    ids=str,
)
def test_a_scan(options, inputs, dtype, path):
    check(path, ["Scan"] * (2 if options.get("bidirectional") else 1), options, inputs, dtype)


def test_a_model_around_it(path):
    """Batches first, other modules before and after, a cell with options among them: several tensors out."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(10, I)
            self.lstm = FusedLSTM(I, H, batch_first=True, activation="relu", recurrent_activation="hard_sigmoid")
            self.head = torch.nn.Linear(H, 10)
            self.cell = FusedLSTMCell(10, H, layer_norm=True, zoneout=0.1)

        def forward(self, tokens, hx):
            logits = self.head(self.lstm(self.embedding(tokens))[0])
            return logits, *self.cell(logits[:, -1], hx)

    model = Model().eval()
    for k, parameter in enumerate(model.cell.parameters()):
        parameter.data += random(*parameter.shape, seed=k, scale=0.3)

    def given(B, T):
        tokens = torch.arange(B * T).reshape(B, T) * 3 % 10
        return {"tokens": tokens, "hx": (random(B, H, seed=2).float(), random(B, H, seed=3).float())}

    dynamic = {"tokens": {0: "B", 1: "T"}, "hx": ({0: "B"}, {0: "B"})}
    assert export(model, path, given(2, 7), dynamic) == ["LSTM"]  # and the step in elementary operators
    assert_close(run(path, given(5, 3)), [x.detach() for x in model(**given(5, 3))])


def test_masks_are_not_exported(path):
    module = FusedLSTM(I, H, recurrent_dropout=0.3)
    sentence = (
        r"training must be off \(model.eval\(\)\) for an export to ONNX, which has no masks, got recurrent_dropout=0.3"
    )
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=sentence):
        torch.onnx.export(module, (torch.zeros(T, B, I),), path, verbose=False)


# --- torch.onnx.export(dynamo=False), through TorchScript

SCRIPTED = {
    "plain": ({}, ()),
    "stack": ({"num_layers": 2, "bidirectional": True, "dropout": 0.3}, ("hx",)),
    "no bias": ({"bias": False}, ()),
    "peephole": ({"peephole": True, "bidirectional": True}, ("hx", "lengths")),
    "activations": ({"activation": "relu", "recurrent_activation": "hard_sigmoid"}, ()),
    "lengths": ({"num_layers": 2}, ("lengths",)),
    "what acts in training": ({"recurrent_dropout": 0.2, "weight_dropout": 0.3, "recompute": True}, ()),
}


class Named(torch.nn.Module):
    """Takes by position what torch's exporter of old gives so."""

    def __init__(self, module, names):
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *given):
        return self.module(**dict(zip(self.names, given, strict=True)))


def export_scripted(module, path, given, dynamic, **options):
    """``dynamic``: of each tensor in ``given``, which dimensions may vary."""
    names = [f"input_{k}" for k in range(len(dynamic))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and that our checks look at sizes
        torch.onnx.export(
            module, given, path, dynamo=False, input_names=names,
            dynamic_axes=dict(zip(names, dynamic, strict=True)), **options,
        )  # fmt: skip
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type in ("LSTM", "Scan", "Loop")]


@pytest.mark.parametrize(("options", "inputs"), SCRIPTED.values(), ids=SCRIPTED)
def test_torchscript(options, inputs, path):
    """One LSTM a layer and direction, as from nn.LSTM; a module in training is exported as it is in eval, as there."""
    module = make(options, torch.float32).train()
    given = arguments(module, inputs, T, B)
    dynamic = [DYNAMIC[name] if name != "hx" else DYNAMIC[name][0] for name in given for _ in range(1 + (name == "hx"))]
    operators = export_scripted(Named(module, list(given)), path, tuple(given.values()), dynamic)
    assert operators == ["LSTM"] * module.num_layers * module.num_directions
    for sizes in SIZES:
        given = arguments(module, inputs, *sizes)
        output, (h_n, c_n) = module.eval()(**given)
        assert_close(run(path, given), [x.detach() for x in (output, h_n, c_n)])


@pytest.mark.parametrize("opset", [9, 12, 13, 18])
def test_torchscript_operators_of_any_time(opset, path):
    module = make({"peephole": True}, torch.float32)
    given = arguments(module, ("lengths",), T, B)
    dynamic = [DYNAMIC["input"], DYNAMIC["lengths"]]
    export_scripted(Named(module, list(given)), path, tuple(given.values()), dynamic, opset_version=opset)
    assert onnx.load(path).opset_import[0].version == opset
    given = arguments(module, ("lengths",), 9, 2)
    output, (h_n, c_n) = module(**given)
    assert_close(run(path, given), [x.detach() for x in (output, h_n, c_n)])


def traced(module, *given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, given)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, FusedLSTM, LSTM])
def test_torchscript_exports_the_module_itself(kind, path):
    """Without a model around it, and what torch.jit.trace has traced; one sequence; batches first."""
    x, longer = (random(t, 2, I, seed=t).float() for t in (T, 9))
    for module, given, other in (
        (kind(I, H), x, longer),
        (kind(I, H), x[:, 0], longer[:, 0]),
        (kind(I, H, batch_first=True), x, longer),
        (traced(kind(I, H).eval(), x), x, longer),
    ):
        assert export_scripted(module.eval(), path, (given,), [{0: "T"}]) == ["LSTM"]
        assert_close(run(path, {"input": other})[0], module(other)[0].detach())


class Packs(torch.nn.Module):
    def __init__(self, kind, sorted, batch_first, **options):
        super().__init__()
        self.lstm = kind(I, H, batch_first=batch_first, **options)
        self.sorted, self.batch_first = sorted, batch_first

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=self.batch_first, enforce_sorted=self.sorted)
        output, state = self.lstm(packed)
        return pad_packed_sequence(output, batch_first=self.batch_first)[0], state


@pytest.mark.parametrize("kind", [torch.nn.LSTM, FusedLSTM])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("sorted", [False, True])
def test_torchscript_of_packed_sequences(sorted, batch_first, kind, path):
    """Packing and padding go, and what is left is an LSTM with lengths: as from nn.LSTM."""
    model = Packs(kind, sorted, batch_first, num_layers=2, bidirectional=True).eval()
    (x, lengths), (other, others) = (
        (random(*((b, t) if batch_first else (t, b)), I, seed=t).float(), torch.tensor(of[: b if sorted else None]))
        for t, b, of in ((6, 4, [6, 5, 3, 1]), (9, 2, [9, 4]))
    )
    if not sorted:
        lengths, others = lengths.flip(0), others.flip(0)
    dynamic = [{0: "B", 1: "T"} if batch_first else {0: "T", 1: "B"}, {0: "B"}]
    operators = export_scripted(model, path, (x, lengths), dynamic)
    assert operators == ["LSTM"] * (2 if kind is torch.nn.LSTM else 4)  # ONNX's has both directions in one
    output, (h_n, c_n) = model(other, others)
    assert_close(run(path, {"x": other, "lengths": others}), [x.detach() for x in (output, h_n, c_n)])


@pytest.mark.parametrize(
    "options", [{}, {"layer_norm": True, "zoneout": 0.2}, {"layer_norm": "carry", "peephole": True}]
)
def test_torchscript_of_the_cell(options, path):
    """With every option: it has no loop."""
    cell = FusedLSTMCell(I, H, **options).eval()
    given = random(B, I, seed=1).float(), (random(B, H, seed=2).float(), random(B, H, seed=3).float())
    assert export_scripted(cell, path, given, [{0: "B"}] * 3) == []
    other = {"input": random(2, I, seed=4).float(), "hx": (random(2, H, seed=5).float(), random(2, H, seed=6).float())}
    assert_close(run(path, other), [x.detach() for x in cell(**other)])


NOT_SCRIPTED = {
    "layer_norm": ({"layer_norm": True}, {}, "a layer with a norm"),
    "more": ({"layer_norm": True, "proj_size": 2, "open_gates": "f"}, {}, "with a norm, a projection, open_gates"),
    "zoneout": ({"zoneout": (0.1, 0.0)}, {}, "a layer with zoneout_h"),
    "reset": ({}, {"reset": torch.zeros(T, B, dtype=torch.bool)}, "a layer with reset"),
    "float64": ({"dtype": torch.float64}, {}, "a layer with torch.float64"),
}


@pytest.mark.parametrize("by_trace", [False, True])
@pytest.mark.parametrize(("options", "given", "what"), NOT_SCRIPTED.values(), ids=NOT_SCRIPTED)
def test_what_needs_dynamo(options, given, what, by_trace, path):
    """One sentence that says so, also for what torch.jit.trace has traced."""
    module = FusedLSTM(I, H, **options).eval()
    given = {"input": torch.zeros(T, B, I, dtype=module.weight_ih_l0.dtype)} | given
    model, values = Named(module, list(given)), tuple(given.values())
    model = traced(model, *values) if by_trace else model
    with pytest.raises(RuntimeError, match=f"dynamo must be True in torch.onnx.export for .*{what}, got False"):
        export_scripted(model, path, values, [{0: "T"}] * len(values))


def test_torchscript_has_no_masks_and_no_traces(path):
    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = FusedLSTM(I, H)

        def forward(self, x):
            return self.lstm.trace(x).gates[0]

    x = torch.zeros(T, B, I)
    training = {"training": torch.onnx.TrainingMode.TRAINING}
    with pytest.raises(RuntimeError, match=r"training must be off \(model.eval\(\)\) .* got recurrent_dropout=0.3"):
        export_scripted(FusedLSTM(I, H, recurrent_dropout=0.3), path, (x,), [{0: "T"}], **training)
    with pytest.raises(RuntimeError, match=r"must be a module that .* does not call trace\(\)"):
        export_scripted(Traced(), path, (x,), [{0: "T"}])


@pytest.mark.slow
def test_what_cannot_be_exported(path):
    """An op that was traced by other means, or by trace(), says what to do."""

    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = FusedLSTM(I, H).eval()

        def forward(self, x):
            return self.lstm.trace(x).gates[0]

    x = torch.zeros(T, B, I)
    program = torch.export.export(FusedLSTM(I, H).eval(), (x,))
    for model in (Traced(), program):
        with pytest.raises(
            torch.onnx.errors.OnnxExporterError, match=r"model must be a module that can be exported with"
        ):
            torch.onnx.export(model, (x,), path, verbose=False)
