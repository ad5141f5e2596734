"""Contiguous batches: each continues the one before, column by column."""

import math

import pytest
import torch

from lightning_modules.data.contiguous import ContiguousLoader, entropy


@pytest.mark.parametrize(("length", "batch", "steps"), [(103, 4, 7), (40, 1, 10), (41, 2, 50), (9, 3, 1)])
def test_the_columns_are_the_text_in_order(length: int, batch: int, steps: int) -> None:
    tokens = torch.arange(length)
    loader = ContiguousLoader(tokens, batch, steps)
    batches = list(loader)
    assert len(batches) == len(loader)
    inputs = torch.cat([x for x, _ in batches])
    targets = torch.cat([y for _, y in batches])
    stretch = length // batch
    for column in range(batch):
        expected = tokens[column * stretch : (column + 1) * stretch]
        assert inputs[:, column].equal(expected[:-1])
        assert targets[:, column].equal(expected[1:])
    assert all(len(x) == steps for x, _ in batches[:-1])
    assert loader.num_tokens == inputs.numel()


def test_the_ranks_together_read_what_one_process_reads() -> None:
    tokens = torch.arange(103)
    alone = list(ContiguousLoader(tokens, 6, 5))
    ranks = [list(ContiguousLoader(tokens, 6, 5, rank=rank, world_size=3)) for rank in range(3)]
    for position, (x, y) in enumerate(alone):
        assert torch.cat([rank[position][0] for rank in ranks], dim=1).equal(x)
        assert torch.cat([rank[position][1] for rank in ranks], dim=1).equal(y)
    with pytest.raises(ValueError, match="multiple of the 4 processes, got 6"):
        ContiguousLoader(tokens, 6, 5, world_size=4)


@pytest.mark.parametrize("taken", [0, 1, 3, 6])
def test_a_loader_goes_on_where_another_stopped(taken: int) -> None:
    def loader() -> ContiguousLoader:
        return ContiguousLoader(torch.arange(50), 2, 4)

    expected = [x.tolist() for x, _ in loader()]
    assert len(expected) == 6
    first = loader()
    iterator = iter(first)
    for _ in range(taken):
        next(iterator)
    second = loader()
    second.load_state_dict(first.state_dict())
    rest = [x.tolist() for x, _ in second]
    assert rest == (expected[taken:] if taken < 6 else expected)  # after a whole epoch comes a whole epoch
    assert [x.tolist() for x, _ in second] == expected


@pytest.mark.parametrize("argument", ["batch_size", "sequence_length"])
def test_sizes_below_one_are_told(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        ContiguousLoader(torch.arange(50), **{"batch_size": 2, "sequence_length": 4} | {argument: 0})


def test_entropy_of_known_frequencies() -> None:
    assert entropy(torch.tensor([0, 0, 3, 3, 3, 3, 5, 5])) == pytest.approx(1.5 * math.log(2))
    assert entropy(torch.zeros(5, dtype=torch.int64)) == 0
