"""CUDA tensors seen from Python: which road a layer takes, and what a build without CUDA kernels says."""

import pytest
import torch
from testing import assert_close, layer_case, run

from lstm_fused import cuda, ops


def call(*on, **sizes):
    tensors, options = layer_case(on, **sizes)
    names = ops.lstm_layer.__code__.co_varnames[:20]
    return tuple(tensors.get(name) for name in names), options


@pytest.fixture
def cudnn(monkeypatch):
    """As if torch had cuDNN."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.delenv("LSTM_FUSED_CUDNN", raising=False)
    yield
    cuda.use_cudnn(None)


@pytest.mark.parametrize("on", [(), ("initial_state",), ("no_bias",), ("eval",)], ids=str)
def test_plain_layers_go_to_cudnn(on, cudnn, monkeypatch):
    assert cuda.road("cuda", *call(*on)) == "cudnn"
    assert cuda.road("cpu", *call(*on)) == "cpu"
    monkeypatch.setenv("LSTM_FUSED_CUDNN", "0")
    assert cuda.road("cuda", *call(*on)) == "steps"
    cuda.use_cudnn("1")
    assert cuda.road("cuda", *call(*on)) == "cudnn"
    cuda.use_cudnn("0")
    assert cuda.road("cuda", *call(*on)) == "steps"


@pytest.mark.parametrize(
    "on",
    [
        *("layer_norm", "carry", "peephole", "projection", "lengths", "reset", "reverse", "dropout"),
        *("recurrent_dropout", "candidate_dropout", "weight_dropout", "zoneout_h", "zoneout_c", "open_gates"),
        "recompute",
    ],
)
def test_other_layers_do_not(on, cudnn):
    cuda.use_cudnn("1")
    assert cuda.road("cuda", *call(on)) == "steps"


@pytest.mark.parametrize("sizes", [{"T": 0}, {"B": 0}], ids=str)
def test_layers_of_nothing_do_not(sizes, cudnn):
    """torch's own LSTM refuses them."""
    assert cuda.road("cuda", *call(**sizes)) == "steps"


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (0, lambda x: x[0]),
        (1, lambda x: x[:2]),
        (2, lambda x: x.float()),
        (3, lambda x: x[:, :2]),
        (4, lambda x: x.to("meta")),
        (6, lambda x: None),
    ],
)
def test_wrong_tensors_do_not(place, change, cudnn):
    """Our ops say what is wrong with them."""
    tensors, options = call()
    wrong = change(tensors[place])
    assert cuda.road("cuda", (*tensors[:place], wrong, *tensors[place + 1 :]), options) == "steps"


def test_what_ran_can_be_asked(cudnn, monkeypatch):
    monkeypatch.setattr(cuda, "_last_road", None)
    monkeypatch.setattr(cuda, "missing", None)
    assert cuda.last_road() is None
    assert cuda.takes_cudnn(*call())
    assert cuda.last_road() == "cudnn"
    assert not cuda.takes_cudnn(*call("layer_norm"))
    assert cuda.last_road() == "steps"


def test_no_layer_goes_to_cudnn_without_our_kernels(cudnn, monkeypatch):
    monkeypatch.setattr(cuda, "missing", "no module")
    assert not cuda.takes_cudnn(*call())


def test_wrong_modes(monkeypatch):
    with pytest.raises(ValueError, match=r"mode must be 'auto', '0', '1' or None, got 'yes'"):
        cuda.use_cudnn("yes")
    monkeypatch.setenv("LSTM_FUSED_CUDNN", "2")
    with pytest.raises(ValueError, match=r"LSTM_FUSED_CUDNN must be auto, 0 or 1, got '2'"):
        cuda.road("cuda", *call())


@pytest.mark.parametrize("on", [("initial_state",), ("initial_state", "no_bias")], ids=str)
def test_the_road_of_torch_gives_the_same(on):
    """On the CPU, where torch's own LSTM is the same function."""
    tensors, options = layer_case(on)

    def layer(**tensors):
        stream = tensors.pop("stream")
        assert stream == options["stream"]
        names = ops.lstm_layer.__code__.co_varnames[:20]
        return cuda.cudnn_layer(tuple(tensors.get(name) for name in names))

    assert_close(run(layer, tensors, options), run(ops.lstm_layer, tensors, options))


def test_the_road_of_torch_is_not_under_autocast():
    """The ops' own rule has been followed before: whatever dtype that led to stays."""
    tensors, _ = layer_case(dtype=torch.float32)
    names = ops.lstm_layer.__code__.co_varnames[:20]
    with torch.autocast("cpu", torch.bfloat16):
        results = cuda.cudnn_layer(tuple(tensors.get(name) for name in names))
    assert {x.dtype for x in results} == {torch.float32}


@pytest.mark.skipif(cuda.missing is None, reason="this build has CUDA kernels")
def test_a_build_without_cuda_kernels_says_so():
    sentence = cuda.unavailable()
    assert "lstm_fused was built without CUDA kernels" in sentence
    assert "LSTM_FUSED_CUDA=1 pip install" in sentence
    for name in cuda._OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lstm_fused::{name}", "CUDA")
    with pytest.raises(RuntimeError, match="input must be on the CPU, got a CUDA tensor: lstm_fused was built without"):
        cuda._refuse()
