"""Every feature in every mode of PyTorch (compile, export, ...), tested: the table of docs/features.md.

``python tests/features.py`` (``make features``) writes it, test_features.py tries every cell anew.
"""

from __future__ import annotations

import copy
import io
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from testing import assert_close, random
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from lstm_fused import FusedLSTM, FusedLSTMCell, ops, reference

PAGE = Path(__file__).parent.parent / "docs" / "features.md"
T, B, I, H = 3, 3, 2, 6  # noqa: E741
WORKS = "works"


class Traced(nn.Module):
    """``trace`` in the place of ``forward``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.lstm = FusedLSTM(*arguments, **options)

    def forward(self, input: Tensor, seed: Tensor | None = None) -> Any:
        return self.lstm.trace(input, seed=seed)


class Feature(NamedTuple):
    options: dict[str, Any] = {}  # noqa: RUF012
    inputs: tuple[str, ...] = ()  # beside the input itself
    kind: Callable[..., nn.Module] = FusedLSTM


FEATURES = {
    "no option": Feature(),
    "`bias=False`": Feature({"bias": False}),
    "`num_layers=2, dropout=`": Feature({"num_layers": 2, "dropout": 0.3}),
    "`variational=True`": Feature({"num_layers": 2, "dropout": 0.3, "variational": True}),
    "`bidirectional=True`": Feature({"bidirectional": True}),
    "`batch_first=True`": Feature({"batch_first": True}),
    "`proj_size=`": Feature({"proj_size": 2}),
    '`layer_norm="ba2016"`': Feature({"layer_norm": True}),
    '`layer_norm="carry"`': Feature({"layer_norm": "carry"}),
    "`recurrent_dropout=`": Feature({"recurrent_dropout": 0.3}),
    '`recurrent_dropout_on="candidate"`': Feature({"recurrent_dropout": 0.3, "recurrent_dropout_on": "candidate"}),
    "`zoneout=`": Feature({"zoneout": (0.2, 0.3)}),
    "`weight_dropout=`": Feature({"weight_dropout": 0.3}),
    "`peephole=True`": Feature({"peephole": True}),
    "`forget_bias=`": Feature({"forget_bias": 1.0}),
    "`open_gates=`": Feature({"open_gates": "io"}),
    '`activation="relu"`': Feature({"activation": "relu"}),
    '`recurrent_activation="hard_sigmoid"`': Feature({"recurrent_activation": "hard_sigmoid"}),
    "`recompute=True`": Feature({"layer_norm": True, "recompute": True}),
    "`hx` given": Feature({}, ("hx",)),
    "`lengths=`": Feature({}, ("lengths",)),
    "`reset=`": Feature({}, ("reset",)),
    "all of these": Feature(
        {
            "num_layers": 2,
            "dropout": 0.3,
            "variational": True,
            "bidirectional": True,
            "batch_first": True,
            "layer_norm": True,
            "recurrent_dropout": 0.3,
            "zoneout": 0.2,
            "weight_dropout": 0.3,
            "peephole": True,
            "open_gates": "f",
            "activation": "relu",
            "recurrent_activation": "hard_sigmoid",
        },
        ("hx", "lengths", "reset"),
    ),
    "a `PackedSequence`": Feature({"layer_norm": True}, ("packed",)),
    "`trace()`": Feature({"layer_norm": True}, kind=Traced),
    "`FusedLSTMCell`": Feature({"layer_norm": True, "zoneout": 0.2, "peephole": True}, ("reset",), kind=FusedLSTMCell),
}


def make(feature: Feature, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The module with random parameters, those that start as 0 or 1 too."""
    module = feature.kind(I, H, dtype=dtype, **feature.options)
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.add_(random(*parameter.shape, seed=k, scale=0.3))
    return module


def arguments(
    feature: Feature, dtype: torch.dtype = torch.float64, seed: int = 1, T: int = T, B: int = B
) -> dict[str, Any]:
    """Of a call of the module, all tensors, by name."""
    options, cell = feature.options, feature.kind is FusedLSTMCell
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    input, reset = random(T, B, I, seed=seed), random(T, B, seed=seed + 1) > 0.7
    if options.get("batch_first"):
        input, reset = input.transpose(0, 1), reset.T
    inputs = {
        "input": (input[0] if cell else input).to(dtype),
        "seed": torch.tensor(5),
        "hx": (random(rows, B, H, seed=seed + 2).to(dtype), random(rows, B, H, seed=seed + 3).to(dtype)),
        "lengths": torch.arange(B) % T + 1,
        "reset": reset[0] if cell else reset,
    }
    if "packed" in feature.inputs:
        inputs["input"] = pack_padded_sequence(inputs["input"], inputs["lengths"].flip(0), enforce_sorted=False)
    return {name: value for name, value in inputs.items() if name in ("input", "seed", *feature.inputs)}


def data(given: dict[str, Any]) -> Tensor:
    """The tensor in which the input's numbers are."""
    input = given["input"]
    return input.data if isinstance(input, PackedSequence) else input


def with_data(given: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """The same arguments with other numbers in the input."""
    input = given["input"]
    return given | {"input": input._replace(data=x) if isinstance(input, PackedSequence) else x}


def tensors(results: Any) -> list[Tensor]:
    """All that a call gives."""
    leaves = tree_leaves(results, is_leaf=lambda x: isinstance(x, PackedSequence))
    return [x.data if isinstance(x, PackedSequence) else x for x in leaves]


def loss(results: list[Tensor]) -> Tensor:
    return sum((r * random(*r.shape, seed=70 + k).to(r.dtype)).sum() for k, r in enumerate(results))


def with_gradients(call: Callable[..., Any], module: nn.Module, given: dict[str, Any]) -> list[Tensor]:
    """What a call gives, and the gradients of the input and of all parameters where there are any."""
    leaves = [data(given).detach().requires_grad_(), *module.parameters()]
    results = tensors(call(**with_data(given, leaves[0])))
    if not any(r.requires_grad for r in results):
        return results
    return results + list(torch.autograd.grad(loss(results), leaves, allow_unused=True, materialize_grads=True))


def by_the_reference(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call with the specification in the place of the kernels."""

    def patched(**given: Any) -> Any:
        with (
            mock.patch.object(ops, "lstm_layer", reference.lstm_layer),
            mock.patch.object(ops, "lstm_cell", reference.lstm_cell),
        ):
            return call(**given)

    return patched


# Each mode takes a feature, and raises an error if the feature does not work in it.


def eager(feature: Feature) -> None:
    """A training step, and one in eval, against the specification."""
    module, given = make(feature), arguments(feature)
    for training in (True, False):
        module.train(training)
        plain = module.lstm if feature.kind is Traced else module  # a trace begins with what forward gives
        expected = with_gradients(by_the_reference(plain), module, given)
        if feature.kind is Traced:
            expected = [x.detach() for x in expected[:3]]
        assert_close(with_gradients(module, module, given)[: len(expected)], expected)


def compiled(feature: Feature) -> None:
    """A training step as one graph, against eager."""
    torch.compiler.reset()
    module, given = make(feature), arguments(feature)
    call = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(with_gradients(call, module, given), with_gradients(module, module, given))


def dynamic_sizes(feature: Feature, given: dict[str, Any]) -> dict[str, Any] | None:
    """Of every argument, which dimensions are T and B."""
    if "packed" in feature.inputs:
        return None
    steps, rows = torch.export.Dim("T", min=2, max=1000), torch.export.Dim("B", min=2, max=1000)
    both = {0: rows, 1: steps} if feature.options.get("batch_first") else {0: steps, 1: rows}
    if feature.kind is FusedLSTMCell:
        both = {0: rows}
    sizes = {"input": both, "reset": both, "lengths": {0: rows}, "hx": ({1: rows}, {1: rows}), "seed": None}
    return {name: sizes[name] for name in given}


OTHER_SIZES = {"seed": 30, "T": 7, "B": 4}


def exported(feature: Feature) -> None:
    """With dynamic T and B, in eval, run at other sizes than it was exported with."""
    module, given = make(feature).eval(), arguments(feature)
    program = torch.export.export(module, (), given, dynamic_shapes=dynamic_sizes(feature, given)).module()
    other = arguments(feature, **OTHER_SIZES)
    assert_close(tensors(program(**other)), tensors(module(**other)))


def to_onnx(feature: Feature) -> None:
    """The same, through `torch.onnx.export`, in float32 and onnxruntime."""
    import onnxruntime

    module = make(feature, torch.float32).eval()
    given, other = (arguments(feature, torch.float32, **sizes) for sizes in ({}, OTHER_SIZES))
    del given["seed"], other["seed"]  # of masks, which eval has not
    sizes = dynamic_sizes(feature, given)
    program = torch.onnx.export(module, (), kwargs=given, dynamic_shapes=sizes, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feed = {at.name: x.numpy() for at, x in zip(session.get_inputs(), tensors(other), strict=True)}
    got = [torch.from_numpy(x) for x in session.run(None, feed)]
    assert_close(got, [x.detach() for x in tensors(module(**other))])


class FromTensors(nn.Module):
    """The call with nothing but tensors, by position; a sequence is packed, and its output padded, inside."""

    def __init__(self, feature: Feature) -> None:
        super().__init__()
        self.module, self.packed = make(feature, torch.float32), "packed" in feature.inputs
        self.names = ("input", "lengths") if self.packed else ("input", *feature.inputs)

    def given(self, feature: Feature, **sizes: int) -> dict[str, Tensor]:
        """Each tensor by its name."""
        names = ("input", *feature.inputs, *(["lengths"] if self.packed else []))
        padded = feature._replace(inputs=tuple(name for name in names if name != "packed"))
        named = {name: value for name, value in arguments(padded, torch.float32, **sizes).items() if name in names}
        h_and_c = dict(zip(("h_0", "c_0"), named.pop("hx", ()), strict=False))
        return named | h_and_c

    def forward(self, *tensors: Tensor) -> Any:
        left = iter(tensors)
        names = [name for name in ("input", "lengths", "reset") if name in self.names]
        named: dict[str, Any] = {name: next(left) for name in names}
        if "hx" in self.names:
            named["hx"] = (next(left), next(left))
        if not self.packed:
            return self.module(**named)
        output, state = self.module(pack_padded_sequence(*named.values(), enforce_sorted=False))
        return pad_packed_sequence(output)[0], state


def to_onnx_by_torchscript(feature: Feature) -> None:
    """The same, through `torch.onnx.export(dynamo=False)`."""
    import onnxruntime

    model, file = FromTensors(feature).eval(), io.BytesIO()
    given, other = model.given(feature), model.given(feature, **OTHER_SIZES)
    both = {0: "B", 1: "T"} if feature.options.get("batch_first") else {0: "T", 1: "B"}
    both = {0: "B"} if feature.kind is FusedLSTMCell else both
    axes = {"input": both, "reset": both, "lengths": {0: "B"}, "h_0": {1: "B"}, "c_0": {1: "B"}}
    torch.onnx.export(
        model, tuple(given.values()), file, dynamo=False, input_names=list(given),
        dynamic_axes={name: axes[name] for name in given},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file.getvalue())
    got = session.run(None, {at.name: other[at.name].numpy() for at in session.get_inputs()})
    assert_close([torch.from_numpy(x) for x in got], [x.detach() for x in tensors(model(*other.values()))])


def autocast(feature: Feature) -> None:
    """A training step of float32 weights and inputs, against one of all of them in bfloat16; of a cell, in float32."""
    module, given = make(feature, torch.float32), arguments(feature, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradients(module, module, given)
    if not isinstance(module, FusedLSTMCell):
        module, given = copy.deepcopy(module).bfloat16(), arguments(feature, torch.bfloat16)
    expected = with_gradients(module, module, given)
    for g, e in zip(got, expected, strict=True):  # what two layers or directions give a tensor is rounded, then added
        assert_close(g, e.to(g.dtype), None if e.dtype == torch.float32 else 2**-7)


def twice(feature: Feature) -> None:
    """A gradient penalty: the squared gradient of the input, differentiated by the parameters."""
    module, given = make(feature), arguments(feature)
    leaves = [data(given).detach().requires_grad_(), *module.parameters()]
    given = with_data(given, leaves[0])

    def penalty(call: Callable[..., Any]) -> list[Tensor]:
        results = tensors(call(**given))
        (slope,) = torch.autograd.grad(loss(results), leaves[0], create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), leaves, allow_unused=True, materialize_grads=True))

    assert_close(penalty(module), penalty(by_the_reference(module)))


def vmapped(feature: Feature) -> None:
    """Two batches at once, against one after the other."""
    module, given = make(feature), arguments(feature)
    inputs = torch.stack([data(arguments(feature, seed=seed)) for seed in (1, 9)])

    def call(x: Tensor) -> list[Tensor]:
        return tensors(module(**with_data(given, x)))

    expected = [torch.stack(results) for results in zip(*(call(x) for x in inputs), strict=True)]
    assert_close(list(torch.vmap(call)(inputs)), expected)


MODES: dict[str, Callable[[Feature], None]] = {
    "eager": eager,
    "`compile`": compiled,
    "`export`": exported,
    "ONNX": to_onnx,
    "ONNX, `dynamo=False`": to_onnx_by_torchscript,
    "autocast": autocast,
    "double backward": twice,
    "`vmap`": vmapped,
}


def sentence(error: Exception) -> str:
    """The first line of what the user reads; where torch reports another error that stopped it, that one's."""
    inner = re.search(r"raised exception \w+\('(.*?)'\)|<class '\w+'>: (.*)", str(error))
    return (inner[1] or inner[2]) if inner else str(error).strip().splitlines()[0]


def attempt(name: str, mode: str) -> str:
    """ "works", or the sentence that the user gets."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            MODES[mode](FEATURES[name])
    except AssertionError:
        raise
    except Exception as error:
        return sentence(error)
    return WORKS


HEAD = """# What works where

Written by `make features`, which tries every cell; the tests try them again. Each is a comparison, not only a call:

| mode | what is compared |
|---|---|
"""
FOOT = """
`trace()` gives no gradients, by design. Without `seed=`, options that draw masks need
`torch.vmap(..., randomness="different")` or `"same"`, as torch's own dropout.
"""


def render(cells: dict[str, dict[str, str]]) -> str:
    """The page: ``cells[name][mode]``."""
    sentences = list(dict.fromkeys(cell for row in cells.values() for cell in row.values() if cell != WORKS))
    page = HEAD + "".join(f"| {mode} | {function.__doc__} |\n" for mode, function in MODES.items())
    page += "\n| | " + " | ".join(MODES) + " |\n|---|" + "---|" * len(MODES) + "\n"
    for name, row in cells.items():
        shown = (cell if cell == WORKS else f"({sentences.index(cell) + 1})" for cell in row.values())
        page += f"| {name} | " + " | ".join(shown) + " |\n"
    page += "\nWhere it does not work, the sentence that you get:\n\n" if sentences else ""
    return page + "".join(f"{k}. {text}\n" for k, text in enumerate(sentences, 1)) + FOOT


def parse(page: str) -> dict[str, dict[str, str]]:
    """What :func:`render` rendered."""
    sentences = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    lines = page.split("\n| | ")[1].splitlines()[2:]
    cells = {}
    for line in lines[: lines.index("")]:
        name, *row = (cell.strip() for cell in line.strip("|").split(" | "))
        row = [sentences.get(cell.strip("()"), cell) for cell in row]
        cells[name] = dict(zip(MODES, row, strict=True))
    return cells


if __name__ == "__main__":
    torch.manual_seed(0)
    text = render({name: {mode: attempt(name, mode) for mode in MODES} for name in FEATURES})
    PAGE.write_text(text)
    sys.stdout.write(text)
