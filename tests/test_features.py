"""docs/features.md says what is so: every cell is tried."""

import pytest
from features import FEATURES, PAGE, ROADS, attempt, parse, render

# On these roads a cell takes a second and more: the quick tests try the features that have most in them. ONNX has tests
# of its own.
LONG = ("`compile`", "ONNX", "double backward")
RICH = ("no option", "all of these", "a `PackedSequence`", "`FusedLSTMCell`")
CELLS = [
    pytest.param(name, road, marks=[pytest.mark.slow] * (road in LONG and (name not in RICH or road == "ONNX")))
    for name in FEATURES
    for road in ROADS
]


@pytest.mark.parametrize(("name", "road"), CELLS)
def test_what_the_page_says(name, road):
    if "ONNX" in road:
        pytest.importorskip("onnxscript", reason="ONNX needs the extra onnx")
        pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")
    assert parse(PAGE.read_text())[name][road] == attempt(name, road)


def test_the_page_is_as_it_is_written():
    page = PAGE.read_text()
    cells = parse(page)
    assert list(cells) == list(FEATURES)
    assert render(cells) == page
