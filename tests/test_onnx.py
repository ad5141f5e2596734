"""torch.onnx.export: onnxruntime gives what the module gives, at sizes that the file was not exported with."""

import pytest
import torch
from testing import assert_close, random

from lstm_fused import FusedLSTM, FusedLSTMCell

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
        ({"dropout": 0.3, "num_layers": 2, "recurrent_dropout": 0.2, "weight_dropout": 0.3}, ()),
    ],
    ids=str,
)
def test_the_lstm_operator(options, inputs, path):
    check(path, ["LSTM"] * options.get("num_layers", 1), options, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "inputs", "dtype"),
    [
        ({"layer_norm": "carry", "peephole": True, "bidirectional": True}, ("hx", "lengths"), torch.float32),
        ({"proj_size": 2}, ("hx",), torch.float32),
        ({"zoneout": (0.1, 0.3)}, (), torch.float32),
        ({"open_gates": "f"}, (), torch.float32),
        ({}, ("reset",), torch.float32),
        ({}, (), torch.float64),  # onnxruntime has no LSTM operator in float64
        ({"layer_norm": True}, (), torch.float64),
    ],
    ids=str,
)
def test_a_scan(options, inputs, dtype, path):
    check(path, ["Scan"] * (2 if options.get("bidirectional") else 1), options, inputs, dtype)


def test_a_model_around_it(path):
    """Batches first, other modules before and after, one tensor out."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(10, I)
            self.lstm = FusedLSTM(I, H, batch_first=True)
            self.head = torch.nn.Linear(H, 10)

        def forward(self, tokens):
            return self.head(self.lstm(self.embedding(tokens))[0])

    model = Model().eval()
    tokens = torch.arange(2 * 7).reshape(2, 7) % 10
    assert export(model, path, {"tokens": tokens}, {"tokens": {0: "B", 1: "T"}}) == ["LSTM"]
    other = (tokens * 3 % 10).T.contiguous()
    assert_close(run(path, {"tokens": other}), [model(other).detach()])


def test_the_cell(path):
    cell = FusedLSTMCell(I, H, layer_norm=True, zoneout=0.1).eval()
    given = {"input": random(B, I, seed=1).float(), "hx": (random(B, H, seed=2).float(), random(B, H, seed=3).float())}
    assert export(cell, path, given, {"input": {0: "B"}, "hx": ({0: "B"}, {0: "B"})}) == []
    assert_close(run(path, given), [x.detach() for x in cell(**given)])


def test_masks_are_not_exported(path):
    module = FusedLSTM(I, H, recurrent_dropout=0.3)
    sentence = (
        r"training must be off \(model.eval\(\)\) for an export to ONNX, which has no masks, got recurrent_dropout=0.3"
    )
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=sentence):
        torch.onnx.export(module, (torch.zeros(T, B, I),), path, verbose=False)


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
