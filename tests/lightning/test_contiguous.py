"""Contiguous batches: each continues the one before, column by column."""

import math
import statistics

import pytest
import torch

from lightning_modules.data.contiguous import ContiguousLoader, entropy, random_lengths


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


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 100])
@pytest.mark.parametrize("taken", [1, 2, 5])
def test_another_sequence_length_goes_on_at_the_same_token(taken: int, length: int) -> None:
    tokens = torch.arange(51)
    first, second = ContiguousLoader(tokens, 2, 4), ContiguousLoader(tokens, 2, length)
    expected = torch.cat([x for x, _ in first])
    iterator = iter(first)
    for _ in range(taken):
        next(iterator)
    second.load_state_dict(first.state_dict())
    assert second.next_batch == taken * 4 // length
    assert second.changed == ("" if length == 4 else f"--data.sequence_length was 4 and is {length}")
    rest = [x for x, _ in second]
    assert torch.cat(rest).equal(expected[taken * 4 :])
    assert len(rest) == len(second) - taken * 4 // length  # as many as the trainer expects
    assert torch.cat([x for x, _ in second]).equal(expected)


def test_other_columns_or_tokens_begin_the_epoch_anew() -> None:
    tokens = torch.arange(60)
    first = ContiguousLoader(tokens, 2, 4)
    next(iter(first))
    for other, changed in (
        (ContiguousLoader(tokens, 4, 4), "--data.batch_size was 2 and is 4"),
        (ContiguousLoader(tokens, 1, 8), "--data.batch_size was 2 and is 1, --data.sequence_length was 4 and is 8"),
        (ContiguousLoader(tokens.flip(0), 2, 4), "its tokens are others"),
        (ContiguousLoader(tokens[:59], 2, 4), "its tokens are others"),
    ):
        other.load_state_dict(first.state_dict())
        assert (other.next_batch, other.begins_anew, other.changed) == (0, True, changed)
        assert len(list(other)) == len(other)
    again = ContiguousLoader(tokens, 2, 4)
    again.load_state_dict(first.state_dict())
    assert (again.next_batch, again.begins_anew, again.changed) == (1, False, "")
    again.restart()
    assert len(list(again)) == len(again)


def test_random_lengths_are_drawn_as_in_the_paper_and_are_as_many_in_every_epoch() -> None:
    drawn = [random_lengths(20_000, 70, seed) for seed in range(20)]
    assert {len(lengths) for lengths in drawn} == {293}  # 20,000 / (0.975 * 70)
    assert {sum(lengths) for lengths in drawn} == {20_000}
    assert drawn[0] == random_lengths(20_000, 70, 0) != drawn[1]
    lengths = [length for of_seed in drawn for length in of_seed]
    short = [length for length in lengths if length < 52.5]
    assert abs(len(short) / len(lengths) - 0.05) < 4 * (0.05 * 0.95 / len(lengths)) ** 0.5 + 0.001
    assert statistics.mean(short) == pytest.approx(35, abs=1.5)
    long = [length for length in lengths if length > 52.5]
    assert statistics.mean(long) == pytest.approx(70, abs=1)
    assert statistics.stdev(long) == pytest.approx(5, abs=0.5)
    assert random_lengths(3, 70, 0) == [3]
    for steps in range(1, 200):
        lengths = random_lengths(steps, 10, steps)
        assert sum(lengths) == steps
        assert len(lengths) == 1 or min(lengths) >= 5


def test_batches_of_random_lengths_are_the_text_and_differ_by_epoch() -> None:
    lengths: list[list[int]] = []

    def loader(rank: int = 0, world_size: int = 1, seed: int = 5) -> ContiguousLoader:
        return ContiguousLoader(
            torch.arange(400),
            2,
            20,
            random_length=True,
            seed=seed,
            epoch=lambda: len(lengths),
            rank=rank,
            world_size=world_size,
        )

    for _ in range(3):
        batches = list(loader())
        assert len(batches) == len(loader())
        whole = torch.cat([x for x, _ in batches])
        assert whole[:, 0].equal(torch.arange(199))
        assert whole[:, 1].equal(torch.arange(200, 399))
        assert torch.cat([y for _, y in batches]).equal(whole + 1)
        assert [len(x) for rank in (0, 1) for x, _ in loader(rank, 2)] == 2 * [len(x) for x, _ in batches]
        lengths.append([len(x) for x, _ in batches])
    assert lengths[0] != lengths[1] != lengths[2]
    assert [len(x) for x, _ in loader(seed=6)] != [len(x) for x, _ in loader()]
    with pytest.raises(ValueError, match="sequence_length must be at least 10 with random_length, got 9"):
        ContiguousLoader(torch.arange(50), 2, 9, random_length=True)


@pytest.mark.parametrize("random_length", [True, False])
def test_batches_of_random_lengths_go_on_where_they_stopped(random_length: bool) -> None:
    def loader(random_length: bool = True) -> ContiguousLoader:
        return ContiguousLoader(torch.arange(400), 2, 20, random_length=random_length, seed=5, epoch=lambda: 3)

    expected = list(loader())
    for taken in range(1, len(expected)):
        first, second = loader(), loader(random_length)
        iterator = iter(first)
        for _ in range(taken):
            next(iterator)
        second.load_state_dict(first.state_dict())
        rest = torch.cat([x for x, _ in expected[taken:]])
        if random_length:
            assert (second.next_batch, second.changed) == (taken, "")
        else:
            assert second.changed == "--data.random_length was True and is False"
        batches = [x for x, _ in second]
        assert torch.cat(batches).equal(rest)
        assert len(batches) == len(expected) - taken or not random_length


def test_the_place_of_an_iterator_that_has_not_begun_is_not_lost() -> None:
    """Lightning makes the iterator first and may save before it reads a batch."""
    loader = ContiguousLoader(torch.arange(60), 2, 4)
    loader.load_state_dict({"batches": 3})  # as former versions saved it
    iterator = iter(loader)
    assert loader.state_dict()["position"] == 12
    assert next(iterator)[0][0].tolist() == [12, 42]
    assert loader.state_dict()["position"] == 16


@pytest.mark.parametrize("argument", ["batch_size", "sequence_length"])
def test_sizes_below_one_are_told(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        ContiguousLoader(torch.arange(50), **{"batch_size": 2, "sequence_length": 4} | {argument: 0})


def test_entropy_of_known_frequencies() -> None:
    assert entropy(torch.tensor([0, 0, 3, 3, 3, 3, 5, 5])) == pytest.approx(1.5 * math.log(2))
    assert entropy(torch.zeros(5, dtype=torch.int64)) == 0
