"""DistributedDataParallel over two processes: each gets half of the batch, both the gradients of the whole."""

import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from testing import assert_close, random
from torch.nn.parallel import DistributedDataParallel

from lstm_fused import FusedLSTM

T, B, I, H = 5, 6, 3, 4  # noqa: E741
CALLS = {"whole": {}, "lengths": {"lengths": torch.tensor([5, 2, 0, 4, 1, 5])}}


def module():
    torch.manual_seed(0)
    return FusedLSTM(I, H, 2, bidirectional=True, layer_norm=True, peephole=True, dtype=torch.float64)


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = slice(rank * B // 2, (rank + 1) * B // 2)
    model, x = DistributedDataParallel(module()), random(T, B, I, seed=1)[:, half]
    found = {}
    for name, arguments in CALLS.items():
        model.zero_grad()
        output, _ = model(x, **{key: value[half] for key, value in arguments.items()})
        output.square().sum().backward()
        found[name] = {key: p.grad for key, p in model.module.named_parameters()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="this torch has no gloo")
def test_two_processes(tmp_path):
    mp.spawn(process, (tmp_path,), nprocs=2)
    for name, arguments in CALLS.items():
        alone = module()
        alone(random(T, B, I, seed=1), **arguments)[0].square().sum().backward()
        expected = {key: p.grad / 2 for key, p in alone.named_parameters()}  # the mean over the processes
        for rank in range(2):
            assert_close(torch.load(tmp_path / f"{rank}.pt")[name], expected)
