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
    ],
)
def test_other_layers_do_not(on, cudnn):
    cuda.use_cudnn("1")
    assert cuda.road("cuda", *call(on)) == "steps"


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


@pytest.mark.skipif(cuda.missing is None, reason="this build has CUDA kernels")
def test_a_build_without_cuda_kernels_says_so():
    sentence = cuda.unavailable()
    assert "lstm_fused was built without CUDA kernels" in sentence
    assert "LSTM_FUSED_CUDA=1 pip install" in sentence
    for name in cuda._OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lstm_fused::{name}", "CUDA")
    with pytest.raises(RuntimeError, match="input must be on the CPU, got a CUDA tensor: lstm_fused was built without"):
        cuda._refuse()
