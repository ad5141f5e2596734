"""torch.export on the modules: dynamic sizes, training, saved programs, AOTInductor."""

import io

import pytest
import torch
from testing import MODULE_SETS, assert_close, random, small_lstm

pytestmark = pytest.mark.usefixtures("nothing_compiled")


@pytest.mark.parametrize("options", MODULE_SETS.values(), ids=MODULE_SETS)
def test_export_with_dynamic_sizes(options, device):
    module, x = small_lstm(device, **options)
    module.eval()
    T, B = torch.export.Dim("T", min=2, max=1000), torch.export.Dim("B", min=2, max=1000)
    program = torch.export.export(module, (x,), dynamic_shapes={"input": {0: T, 1: B}})
    longer = random(9, 2, 3, seed=2).float().to(device)
    assert_close(program.module()(longer), module(longer))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_is_saved_and_trained(strict, device):
    """In training, too: the program draws masks, and its gradients are those of the module."""
    module, x = small_lstm(device, **MODULE_SETS["ba2016"], batch_first=True)
    sizes = {"input": {0: torch.export.Dim("B", max=1000), 1: torch.export.Dim("T", max=1000)}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=sizes, strict=strict), file)
    file.seek(0)
    program = torch.export.load(file).module()
    for B, T in ((9, 2), (1, 1)):
        other, results = random(B, T, 3, seed=2).float().to(device), []
        for call in (program, module):
            torch.manual_seed(3)
            output, (h_n, _) = call(other)
            gradients = torch.autograd.grad(output.square().sum(), list(call.parameters()), materialize_grads=True)
            results.append([output, h_n, *gradients])
        assert_close(*results)


@pytest.mark.slow
def test_ahead_of_time_compilation(tmp_path):
    """AOTInductor: a package that calls the op, at any sizes."""
    module, x = small_lstm("cpu", **MODULE_SETS["ba2016"])
    sizes = {"input": {0: torch.export.Dim("T", min=1, max=1000), 1: torch.export.Dim("B", min=1, max=1000)}}
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=sizes)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    other = random(9, 2, 3, seed=2).float()
    with torch.no_grad():
        assert_close(torch._inductor.aoti_load_package(path)(other), module(other))
