"""The installed package on the installed torch: against nn.LSTM, and opcheck. Needs no pytest.

python smoke.py [--cuda]    --cuda: the CUDA module has to be there too, and to import on a torch built for CUDA
"""

import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lstm_fused


def close(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda text: f"{name}: {text}")


def equals_nn_lstm() -> None:
    expected = torch.nn.LSTM(5, 7, num_layers=2, bidirectional=True, dtype=torch.float64)
    actual = lstm_fused.FusedLSTM(5, 7, num_layers=2, bidirectional=True, dtype=torch.float64)
    actual.load_state_dict(expected.state_dict())
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    results = []
    for module in (actual, expected):
        leaf = x.clone().requires_grad_()
        output, (h, c) = module(leaf)
        (output.sin().sum() + h.sum() + c.cos().sum()).backward()
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        results.append({"output": output, "h": h, "c": c, "d_input": leaf.grad, **gradients})
    for name, value in results[1].items():
        close(name, results[0][name], value)


def equals_the_reference() -> None:
    """With every option on, the op and its specification in plain PyTorch draw the same masks."""
    module = lstm_fused.FusedLSTM(
        5, 7, dropout=0.2, layer_norm=True, recurrent_dropout=0.3, zoneout=0.1, num_layers=2, dtype=torch.float64
    )
    x, lengths = torch.randn(6, 3, 5, dtype=torch.float64), torch.tensor([6, 2, 4])
    actual, _ = module(x, lengths=lengths, seed=3)
    fused, lstm_fused.lstm.ops.lstm_layer = lstm_fused.lstm.ops.lstm_layer, lstm_fused.reference.lstm_layer
    expected, _ = module(x, lengths=lengths, seed=3)
    lstm_fused.lstm.ops.lstm_layer = fused
    close("output with every option", actual, expected)


def passes_opcheck() -> None:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    tensors = (random(4, 2, 3), random(2, 5), random(2, 5), random(20, 3), random(20, 5), random(20), random(20))
    torch.library.opcheck(torch.ops.lstm_fused.lstm_layer.default, tensors)


def has_cuda_kernels() -> str:
    """They were registered; what there is to compute shows without a GPU; returns what torch says of the GPU."""
    assert lstm_fused.build_info()["cuda"]
    assert lstm_fused.cuda.unavailable() is None, lstm_fused.cuda.unavailable()
    for name in lstm_fused.cuda._OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lstm_fused::{name}", "CUDA"), name
    if torch.version.cuda is None:
        return "this torch has none"
    assert lstm_fused.cuda.last_backend() is None
    with FakeTensorMode():
        module = lstm_fused.FusedLSTM(5, 7, layer_norm=True, recurrent_dropout=0.3, device="cuda")
        output, _ = module(torch.empty(6, 3, 5, device="cuda"))
    assert output.is_cuda
    assert lstm_fused.cuda.last_backend() == "steps"
    try:
        lstm_fused.FusedLSTM(5, 7, layer_norm=True, device="cuda")(torch.zeros(6, 3, 5, device="cuda"))
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "used"


def main() -> None:
    torch.manual_seed(0)
    info = lstm_fused.build_info()
    if "--cuda" in sys.argv:
        gpu = has_cuda_kernels()
        print(f"CUDA kernels of {info['cuda_reason']} on a torch for CUDA {torch.version.cuda}; the GPU: {gpu}")
    equals_nn_lstm()
    equals_the_reference()
    passes_opcheck()
    print(f"smoke test passed on torch {torch.__version__}; built against torch {info['torch']}, runs {info['isa']}")


if __name__ == "__main__":
    main()
