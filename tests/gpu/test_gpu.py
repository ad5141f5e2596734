"""What only a GPU can show: streams, graphs, memory, offsets past 32 bits, the masks of the CPU, cuDNN beside us.

`make test-gpu` runs these, and with device "cuda" the tests of the ops, their derivatives and the modules. Without a
GPU they are skipped; in its dry run those that need no more than the kernels run on emulated ones.
"""

import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lstm_fused_build as backend
import pytest
import test_dropout
import torch
from testing import DTYPES, EVERYTHING, EVERYTHING_ELSE, assert_close, assert_same_bits, label, layer_case, random, run
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_fused import FusedLSTM, build_info, cuda, ops, reference

ROOT = Path(__file__).resolve().parents[2]
EMULATED = "LSTM_FUSED_EMULATED" in os.environ
DEVICE = "cpu" if EMULATED else "cuda"
pytestmark = pytest.mark.skipif(not EMULATED and not torch.cuda.is_available(), reason="there is no GPU")
needs_gpu = pytest.mark.skipif(EMULATED, reason="an emulated GPU has no such thing")
ALL_ON = pytest.mark.parametrize("on", [EVERYTHING, EVERYTHING_ELSE], ids=label)


@pytest.fixture(autouse=True)
def _our_kernels():
    cuda.use_cudnn("0")
    yield
    cuda.use_cudnn(None)


@needs_gpu
def test_this_build_has_cuda_kernels():
    assert build_info()["cuda"]
    assert cuda.missing is None
    assert cuda.unavailable() is None


# Of a result, against float64 on the CPU.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def against_float64(on, dtype, **sizes):
    tensors, options = layer_case(on, dtype=dtype, **sizes)
    exact = {name: x.detach().double() if x.is_floating_point() else x for name, x in tensors.items()}
    exact = {name: x.requires_grad_(tensors[name].requires_grad) for name, x in exact.items()}
    expected = run(reference.lstm_layer, exact, options)
    there = {name: x.detach().to(DEVICE).requires_grad_(x.requires_grad) for name, x in tensors.items()}
    for name, x in run(ops.lstm_layer, there, options).items():
        assert_close(x.cpu().double(), expected[name], CLOSE[dtype], name)


@pytest.mark.parametrize("H", [12, 10, 5])  # rows that are moved by 4 numbers, by 2, by 1
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("on", [(), EVERYTHING, EVERYTHING_ELSE], ids=label)
def test_first_light(on, dtype, H):
    """Every kernel of the steps in every dtype, forward and backward."""
    against_float64(on, dtype, T=4, B=3, I=4, H=H)


@needs_gpu
@pytest.mark.parametrize("H", [650, 1150, 1538, 2047, 2052])  # registers to the last, and rows that do not fit
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_first_light_of_long_rows(dtype, H):
    against_float64(("layer_norm", "initial_state", "zoneout_c"), dtype, T=2, B=3, I=4, H=H)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("use", test_dropout.RECOVER)
def test_masks_are_those_of_the_cpu(use, dtype):
    hits = []
    for device in (DEVICE, "cpu"):
        tensors = test_dropout.simple(1 if use == "hidden" else 3, 19, 70, seed=12345, device=device, dtype=dtype)
        hits.append(test_dropout.RECOVER[use](tensors, 0.3, stream=5).cpu())
    assert hits[0].any()
    assert torch.equal(*hits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ALL_ON
def test_the_same_bits_in_every_run(on, dtype):
    tensors, options = layer_case(on, T=7, B=40, I=9, H=40, dtype=dtype, device=DEVICE)
    first = run(ops.lstm_layer, tensors, options)
    for _ in range(3):
        assert_same_bits(run(ops.lstm_layer, tensors, options), first)


def training_step(on, seed=1):
    """A function that runs forward and backward on tensors that stay where they are, and the seed's tensor."""
    tensors, options = layer_case(on, T=6, B=8, I=5, H=32, dtype=torch.float32, device=DEVICE, seed=seed)
    leaves = [x for x in tensors.values() if x.requires_grad]
    weight = random(6, 8, tensors["h_0"].shape[1], seed=9).float().to(DEVICE)

    def step():
        output, h_n, c_n = ops.lstm_layer(**tensors, **options)
        return [output, h_n, c_n, *torch.autograd.grad((output * weight).sum() + c_n.sum(), leaves)]

    return step, tensors["seed"]


@needs_gpu
@ALL_ON
def test_a_call_can_be_captured_in_a_graph(on):
    """And replayed with another seed: what is drawn is read from the device."""
    step, seed = training_step(on)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # what torch makes ready at the first call
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for value in (5, 6):
        seed.fill_(value)
        graph.replay()
        replayed = [x.detach().clone() for x in captured]
        assert_same_bits(replayed, [x.detach() for x in step()])


@contextlib.contextmanager
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@ALL_ON
def test_nothing_waits_for_the_device(on):
    step, _ = training_step(on)
    step()
    with no_waiting():
        step()


@needs_gpu
def test_a_module_does_not_wait_for_lengths_a_seed_or_a_packed_sequence():
    lstm = FusedLSTM(3, 5, 2, recurrent_dropout=0.2, dropout=0.1, device=DEVICE)
    x, lengths = torch.randn(4, 3, 3, device=DEVICE), [2, 4, 1]
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    calls = {
        "a list": lambda: lstm(x, lengths=lengths, seed=7)[0],
        "a tensor": lambda: lstm(x, lengths=torch.tensor(lengths), seed=7)[0],
        "packed": lambda: lstm(packed, seed=7)[0].data,
    }
    expected = {name: call() for name, call in calls.items()}
    with no_waiting():
        results = {name: call() for name, call in calls.items()}
    assert_same_bits(results, expected)


@needs_gpu
@ALL_ON
def test_a_gpu_that_is_not_the_current_one(on):
    """Kernels and products run where the tensors are."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    results = []
    for device in ("cuda:0", "cuda:1"):
        with torch.cuda.device(0):
            results.append(run(ops.lstm_layer, *layer_case(on, T=5, B=4, I=3, H=12, device=device)))
            assert torch.cuda.current_device() == 0
    assert_same_bits({name: x.cpu() for name, x in results[1].items()}, {k: x.cpu() for k, x in results[0].items()})


@needs_gpu
def test_out_of_memory_is_torchs_own_exception():
    free, _ = torch.cuda.mem_get_info()
    lstm = FusedLSTM(1, 4096, layer_norm=True, device=DEVICE)
    x = torch.zeros(2 * free // (4096 * 4) + 1, 1, 1, device=DEVICE)  # whose output takes twice what there is
    with pytest.raises(torch.OutOfMemoryError, match="torch could not allocate a tensor of shape"):
        lstm(x)
    lstm(x[:3])[0].sum().backward()


@needs_gpu
def test_half_precision_sums_weight_gradients_in_float32():
    """Whatever torch allows cuBLAS to do with the sums of half precision."""
    T, B, I, H = 512, 64, 64, 64  # noqa: E741
    tensors, options = layer_case((), T=T, B=B, I=I, H=H, dtype=torch.bfloat16, device=DEVICE)
    matmul = torch.backends.cuda.matmul
    before, results = matmul.allow_bf16_reduced_precision_reduction, []
    try:
        for allowed in (True, False):
            matmul.allow_bf16_reduced_precision_reduction = allowed
            gradients = run(ops.lstm_layer, tensors, options)
            results.append(gradients["d_weight_ih"])
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before
    assert_close(*results, 2**-8)


@needs_gpu
def test_two_streams_at_once():
    steps = [training_step(EVERYTHING, seed)[0] for seed in (1, 2)]
    expected = [[x.detach().clone() for x in step()] for step in steps]
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in steps], [[], []]
    for _ in range(20):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[k].append([x.detach() for x in steps[k]()])
    torch.cuda.synchronize()
    for k, runs in enumerate(results):
        for result in runs:
            assert_same_bits(result, expected[k])


@needs_gpu
def test_memory_is_flat_over_1000_steps():
    lstm = FusedLSTM(16, 32, 2, layer_norm=True, dropout=0.2, recurrent_dropout=0.2, zoneout=0.1, device=DEVICE)
    x, used = torch.randn(10, 8, 16, device=DEVICE), []
    for k in range(1000):
        lstm.zero_grad()
        lstm(x)[0].square().mean().backward()
        if k in (9, 999):
            torch.cuda.synchronize()
            used.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert used[0] == used[1]


@needs_gpu
def test_offsets_past_32_bits():
    """2.3e9 values of the gates: the same as in two calls of half the steps."""
    T, B, I, H = 1100, 512, 8, 1024  # noqa: E741
    free, _ = torch.cuda.mem_get_info()
    if free < 60 << 30:
        pytest.skip(f"needs 60 GiB of the GPU's memory, {free >> 30} are free")
    assert T * B * 4 * H > 2**31
    lstm = FusedLSTM(I, H, layer_norm=True, recurrent_dropout=0.2, device=DEVICE, dtype=torch.bfloat16)
    x = random(T, B, I, seed=1).to(DEVICE, torch.bfloat16).requires_grad_()

    def results(parts):
        lstm.zero_grad()
        x.grad, state, outputs = None, None, []
        for part in x.split(T // parts):
            output, state = lstm(part, state, seed=3)
            outputs.append(output)
        output = torch.cat(outputs)
        output[-1].float().square().sum().backward()
        return [output.detach(), x.grad, lstm.weight_hh_l0.grad.clone()]

    for got, want in zip(results(1), results(2), strict=True):
        assert_close(got.float(), want.float(), 0.03)


@needs_gpu
def test_a_tensor_elsewhere_is_named():
    tensors, options = layer_case(("initial_state",), device=DEVICE)
    for name in ("h_0", "weight_hh"):
        with pytest.raises(RuntimeError, match=f"{name} must be on the device of the input, got another"):
            ops.lstm_layer(**tensors | {name: tensors[name].detach().cpu()}, **options)
    with pytest.raises(RuntimeError, match="h_0 must be on the device of the input, got another"):
        ops.lstm_layer(**tensors | {"input": tensors["input"].detach().cpu()}, **options)


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "batch_first": True}, {"bias": False}], ids=str)
def test_cudnn_and_our_kernels_agree(options):
    theirs = nn.LSTM(12, 20, **options, device=DEVICE)
    ours = FusedLSTM.from_torch(theirs)
    x = random(9, 6, 12, seed=1).float().to(DEVICE)
    results = []
    for module, mode in ((theirs, None), (ours, "0"), (ours, "1")):
        cuda.use_cudnn(mode)
        module.zero_grad()
        output, state = module(x)
        (output.square().sum() + state[1].sum()).backward()
        results.append([output, state, [p.grad.clone() for p in module.parameters()]])
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def trained(device, precision):
    """The losses of a small character model, step by step, on a text that is there."""
    text = torch.tensor(list((ROOT / "LICENSE").read_bytes()[: 16 * 33 * 8])).view(16, 8, 33)
    torch.manual_seed(0)
    embedding, lstm = nn.Embedding(256, 16), FusedLSTM(16, 32, layer_norm=True, forget_bias=1.0)
    model = nn.ModuleList([embedding, lstm, nn.Linear(32, 256)]).to(device)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
    for tokens in [*text] * 4:
        inputs, targets = tokens[:, :-1].T.to(device), tokens[:, 1:].T.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = model[2](lstm(embedding(inputs))[0])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


PRECISIONS = pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 0.01), ("bf16-mixed", 0.05)])


@PRECISIONS
def test_a_model_trains_to_the_losses_of_the_cpu(precision, tolerance):
    expected, losses = trained("cpu", "32-true"), trained(DEVICE, precision)
    assert expected[-1] < 0.8 * expected[0]
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)


@PRECISIONS
def test_the_language_model_trains_to_the_loss_of_the_cpu(precision, tolerance, tmp_path, monkeypatch):
    """By the command. Without dropout, whose seeds come from each device's own generator."""
    for package in ("lightning", "jsonargparse", "torchmetrics"):
        pytest.importorskip(package)
    from lightning_modules.cli import main

    monkeypatch.chdir(tmp_path)
    small = ["--data.batch_size=4", "--data.sequence_length=32", "--model.hidden_size=16", "--model.embedding_size=8"]
    small += ["--model.dropout=0", "--model.recurrent_dropout=0", "--trainer.max_epochs=3"]
    small += [
        "--trainer.limit_train_batches=20",
        "--trainer.limit_val_batches=5",
        "--trainer.enable_progress_bar=false",
        "--model.warmup_steps=2",
    ]
    losses = []
    for version, (device, kind) in enumerate([("cpu", "32-true"), ("cpu" if EMULATED else "gpu", precision)]):
        arguments = ["fit", "-c", "char_lm", "--data.path", str(ROOT / "LICENSE"), *small]
        assert main([*arguments, f"--trainer.accelerator={device}", f"--trainer.precision={kind}"]) == 0
        with Path("runs", "char_lm", f"version_{version}", "metrics.csv").open() as file:
            losses.append([float(row["val_loss"]) for row in csv.DictReader(file) if row.get("val_loss")][-1])
    assert losses[0] < 3.6  # something was learned: it starts at 4.2, the logarithm of the vocabulary
    assert abs(losses[1] - losses[0]) < tolerance * losses[0]


SANITIZED = """
import torch
from testing import EVERYTHING, EVERYTHING_ELSE, layer_case, run
from lstm_fused import cuda, ops
cuda.use_cudnn("0")
for on in ((), EVERYTHING, EVERYTHING_ELSE):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for H in (5, 72):
            run(ops.lstm_layer, *layer_case(on, T=3, B=3, I=3, H=H, dtype=dtype, device="cuda"))
torch.cuda.synchronize()
"""


@needs_gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool):
    toolkit, _ = backend.cuda_toolkit()
    folders = [os.environ["PATH"], *([str(toolkit / "bin")] if toolkit else [])]
    sanitizer = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if sanitizer is None:
        pytest.skip("there is no compute-sanitizer on PATH or beside nvcc")
    paths = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    result = subprocess.run(
        [
            sanitizer,
            "--tool",
            tool,
            "--error-exitcode",
            "1",
            "--kernel-name",
            "kernel_substring=lstm_fused",
            sys.executable,
            "-c",
            SANITIZED,
        ],
        env=os.environ | {"PYTHONPATH": paths, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert re.search(r"SUMMARY: 0 (errors|hazards)", result.stdout), result.stdout[-5000:]  # it did look
