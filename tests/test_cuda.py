"""CUDA tensors seen from Python: which backend a layer runs on, and what a build without CUDA kernels says."""

from types import SimpleNamespace

import pytest
import torch
from testing import OPTIONS, assert_close, label, layer_case, op_arguments, run
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from lstm_fused import FusedLSTM, _checks, cuda, ops

H100 = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
A40 = SimpleNamespace(major=8, minor=6, multi_processor_count=84)


def call(*on, **sizes):
    tensors, options = layer_case(on, **sizes)
    return op_arguments("lstm_layer", tensors)[0], options


@pytest.fixture
def cudnn(monkeypatch):
    """As if torch had cuDNN, on an H100."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H100)
    monkeypatch.delenv("LSTM_FUSED_CUDNN", raising=False)
    yield
    cuda.use_cudnn(None)


OF_CUDNN = [(), ("initial_state",), ("no_bias",), ("eval",)]


@pytest.mark.parametrize("on", OF_CUDNN, ids=label)
def test_layers_of_nn_lstm_go_to_cudnn(on, cudnn, monkeypatch):
    assert cuda.backend("cuda", *call(*on)) == "cudnn"  # float64, for which it has no persistent kernel
    assert cuda.backend("cpu", *call(*on)) == "cpu"
    monkeypatch.setenv("LSTM_FUSED_CUDNN", "0")
    assert cuda.backend("cuda", *call(*on)) == "steps"
    cuda.use_cudnn("1")
    assert cuda.backend("cuda", *call(*on)) == "cudnn"
    cuda.use_cudnn("0")
    assert cuda.backend("cuda", *call(*on)) == "steps"


@pytest.mark.parametrize("on", [name for name in OPTIONS if (name,) not in OF_CUDNN])
def test_other_layers_do_not(on, cudnn):
    cuda.use_cudnn("1")
    assert cuda.backend("cuda", *call(on)) == "steps"


PERSISTENT = {"T": 1, "B": 8, "I": 128, "H": 256, "dtype": torch.float16}


@pytest.mark.parametrize(
    ("change", "gpu", "where"),
    [
        ({}, H100, "cudnn-persistent"),
        ({"dtype": torch.bfloat16}, H100, "cudnn"),
        ({"dtype": torch.float32}, H100, "cudnn"),
        ({"B": 12}, H100, "cudnn"),
        ({"B": 136}, H100, "cudnn"),
        ({"H": 250}, H100, "cudnn"),
        ({"I": 64}, H100, "cudnn"),
        ({"H": 1152}, H100, "cudnn"),
        ({}, A40, "cudnn"),
        ({"H": 128, "dtype": torch.bfloat16}, A40, "cudnn-persistent"),
        ({"H": 130, "dtype": torch.bfloat16}, A40, "cudnn"),
        ({"H": 128, "dtype": torch.float64}, H100, "cudnn"),
    ],
)
def test_where_cudnn_keeps_the_weights_on_the_chip(change, gpu, where, cudnn, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    sizes = PERSISTENT | change
    T, B, I, H, dtype = sizes.values()  # noqa: E741
    shapes = ((T, B, I), (B, H), (B, H), (4 * H, I), (4 * H, H), (4 * H,), (4 * H,))
    tensors = tuple(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    assert cuda.backend("cuda", (*tensors, *[None] * 13), {}) == where


def test_bfloat16_goes_to_a_cudnn_that_has_it(cudnn, monkeypatch):
    """With another torch's own LSTM runs one cell after the other."""
    for version, where in ((91300, "cudnn-persistent"), (91200, "steps"), (None, "steps")):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        for mode in ("auto", "1"):
            cuda.use_cudnn(mode)
            assert cuda.backend("cuda", *call(dtype=torch.bfloat16)) == where
            assert cuda.backend("cuda", *call(dtype=torch.float32)) == "cudnn-persistent"


class OnGpu(torch.Tensor):
    is_cuda = True


@pytest.mark.parametrize(
    "reason", ["torch could not allocate a tensor of shape [3]: CUDA out of memory.", "torch could not allocate a copy"]
)
def test_want_of_memory_is_torchs_own_exception(reason):
    def op(*tensors, **options):
        raise RuntimeError(reason)

    with pytest.raises(torch.OutOfMemoryError, match=reason[:24]):
        cuda.out_of_memory_as_torch(op)(OnGpu(), None, training=True)
    with pytest.raises(RuntimeError) as error:
        cuda.out_of_memory_as_torch(op)(torch.ones(1))
    assert type(error.value) is RuntimeError


def test_other_errors_on_a_gpu_are_left_alone():
    def op(*tensors, **options):
        raise RuntimeError("h_0 must be on the device of the input, got another")

    with pytest.raises(RuntimeError, match="h_0 must be") as error:
        cuda.out_of_memory_as_torch(op)(OnGpu())
    assert type(error.value) is RuntimeError


@pytest.mark.parametrize("sizes", [{"T": 0}, {"B": 0}], ids=str)
def test_layers_of_nothing_do_not(sizes, cudnn):
    """torch's own LSTM refuses them."""
    assert cuda.backend("cuda", *call(**sizes)) == "steps"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("input", lambda x: x[0]),
        ("h_0", lambda x: x[:2]),
        ("c_0", lambda x: x.float()),
        ("weight_ih", lambda x: x[:, :2]),
        ("weight_hh", lambda x: x.to("meta")),
        ("bias_hh", lambda x: None),
    ],
)
def test_wrong_tensors_do_not(name, change, cudnn):
    """Our ops say what is wrong with them."""
    tensors, options = layer_case()
    wrong = op_arguments("lstm_layer", tensors | {name: change(tensors[name])})[0]
    assert cuda.backend("cuda", wrong, options) == "steps"


def test_what_ran_can_be_asked(cudnn, monkeypatch):
    monkeypatch.setattr(cuda, "_last_backend", None)
    monkeypatch.setattr(cuda, "missing", None)
    assert cuda.last_backend() is None
    monkeypatch.setattr(cuda, "backend", lambda device, *call, own=cuda.backend: own("cuda", *call))
    assert cuda.takes_cudnn(*call())
    assert cuda.last_backend() == "cudnn"
    assert cuda.takes_cudnn(*call(dtype=torch.float32))
    assert cuda.last_backend() == "cudnn-persistent"
    assert not cuda.takes_cudnn(*call("layer_norm"))
    assert cuda.last_backend() == "steps"


def test_no_layer_goes_to_cudnn_without_our_kernels(cudnn, monkeypatch):
    monkeypatch.setattr(cuda, "missing", "no module")
    assert not cuda.takes_cudnn(*call())


def test_wrong_modes(monkeypatch):
    with pytest.raises(ValueError, match=r"mode must be 'auto', '0', '1' or None, got 'yes'"):
        cuda.use_cudnn("yes")
    monkeypatch.setenv("LSTM_FUSED_CUDNN", "2")
    with pytest.raises(ValueError, match=r"LSTM_FUSED_CUDNN must be auto, 0 or 1, got '2'"):
        cuda.backend("cuda", *call())


@pytest.mark.parametrize("on", [("initial_state",), ("initial_state", "no_bias")], ids=str)
def test_torchs_lstm_gives_the_same(on):
    """On the CPU, where torch's own LSTM is the same function."""
    tensors, options = layer_case(on)

    def layer(**tensors):
        stream = tensors.pop("stream")
        assert stream == options["stream"]
        return cuda.cudnn_layer(op_arguments("lstm_layer", tensors)[0])

    assert_close(run(layer, tensors, options), run(ops.lstm_layer, tensors, options))


def test_torchs_lstm_is_not_under_autocast():
    """The ops' autocast rule has already been applied; its dtype stays."""
    tensors, _ = layer_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        results = cuda.cudnn_layer(op_arguments("lstm_layer", tensors)[0])
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


class NothingWaits(TorchDispatchMode):
    """The device "meta" in place of a GPU: its data cannot be read, and copies to it must not block."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._opname == "_to_copy" and torch.device(kwargs.get("device", "cpu")).type == "meta" and args[0].is_cpu:
            assert kwargs.get("non_blocking"), "the host waits for a copy"
        return func(*args, **kwargs)


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_the_host_does_not_wait_for_the_sizes_of_a_packed_sequence(enforce_sorted):
    lstm = FusedLSTM(3, 5, dropout=0.2, num_layers=2, device="meta")
    lengths = [4, 2, 1] if enforce_sorted else [2, 4, 1]
    packed = pack_padded_sequence(torch.ones(4, 3, 3), torch.tensor(lengths), enforce_sorted=enforce_sorted)
    packed = PackedSequence(
        packed.data.to("meta"),
        packed.batch_sizes,
        *(None if x is None else x.to("meta") for x in (packed.sorted_indices, packed.unsorted_indices)),
    )
    with NothingWaits():
        output, (h_n, _) = lstm(packed, seed=7)
    assert output.data.shape == (7, 5)
    assert h_n.shape == (2, 3, 5)
    assert output.batch_sizes.tolist() == packed.batch_sizes.tolist()


@pytest.mark.parametrize("lengths", [[2, 4, 1], torch.tensor([2, 4, 1]), torch.tensor([2, 4, 1], dtype=torch.int32)])
def test_the_host_does_not_wait_for_lengths_and_seed(lengths):
    lstm = FusedLSTM(3, 5, recurrent_dropout=0.2, device="meta")
    with NothingWaits():
        output, _ = lstm(torch.ones(4, 3, 3, device="meta"), lengths=lengths, seed=2**62 + 1)
    assert output.shape == (4, 3, 5)
    assert _checks.seed_tensor(2**62 + 1, torch.device("cpu")).item() == 2**62 + 1


def test_a_packed_sequence_with_too_few_indices_is_refused_unread():
    packed = pack_padded_sequence(torch.ones(4, 3, 3), torch.tensor([2, 4, 1]), enforce_sorted=False)
    packed = packed._replace(sorted_indices=torch.empty(2, dtype=torch.int64, device="meta"))
    with pytest.raises(RuntimeError, match="PackedSequence whose sorted_indices order its 3 sequences"):
        _checks.packed(packed)
