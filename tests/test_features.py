"""Every cell of docs/features.md is tested."""

import inspect

import pytest
from features import FEATURES, MODES, PAGE, attempt, parse, render

from lstm_fused import FusedLSTM

# In these modes a cell takes a second or more: the quick tests try the richest features. ONNX has its own tests.
LONG = ("`compile`", "ONNX", "double backward")
RICH = ("no option", "all of these", "a `PackedSequence`", "`FusedLSTMCell`")
CELLS = [
    pytest.param(name, mode, marks=[pytest.mark.slow] * (mode in LONG and (name not in RICH or mode == "ONNX")))
    for name in FEATURES
    for mode in MODES
]


def test_every_option_has_a_row():
    rows = {argument for feature in FEATURES.values() for argument in feature.options}
    not_options = {"input_size", "hidden_size", "device", "dtype", "eps"}
    assert set(inspect.signature(FusedLSTM).parameters) - not_options <= rows


@pytest.mark.parametrize(("name", "mode"), CELLS)
def test_what_the_page_says(name, mode):
    if "ONNX" in mode:
        pytest.importorskip("onnxscript", reason="ONNX needs the extra onnx")
        pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")
    assert parse(PAGE.read_text())[name][mode] == attempt(name, mode)


def test_the_page_is_as_it_is_written():
    page = PAGE.read_text()
    cells = parse(page)
    assert list(cells) == list(FEATURES)
    assert render(cells) == page
