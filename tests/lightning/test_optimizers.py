"""Weight decay acts on weights alone: the partition is exact, and so is what the optimizer does with it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_modules.models.optimizers import (
    build_optimizer,
    describe_partition,
    learning_rate_factor,
    partition_parameters,
)
from lightning_modules.tasks import LanguageModelTask

WEIGHTS = {f"net.lstm.weight_{part}_l{layer}" for part in ("ih", "hh") for layer in (0, 1)}
NORMS = {f"net.lstm.{p}_l{k}" for p in ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c") for k in (0, 1)}
BIASES = {f"net.lstm.bias_{part}_l{layer}" for part in ("ih", "hh") for layer in (0, 1)} | {"net.decoder.bias"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("decay_embeddings", [False, True])
def test_every_parameter_is_in_exactly_one_part(
    make_task: Callable[..., LanguageModelTask], tied: bool, decay_embeddings: bool
) -> None:
    task = make_task(tied=tied, embedding_size=12, decay_embeddings=decay_embeddings)
    partition = task.decay_partition()
    embedding = {"net.embedding.weight"}
    decoder = set() if tied else {"net.decoder.weight"}  # tied, it is the embedding, and counted as that
    assert set(partition.decayed) == WEIGHTS | decoder | (embedding if decay_embeddings else set())
    assert set(partition.spared) == NORMS | BIASES | (set() if decay_embeddings else embedding)

    groups = task_optimizer(task).param_groups
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(parameter) for parameter in task.parameters())
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]


def task_optimizer(task: LanguageModelTask) -> torch.optim.Optimizer:
    return build_optimizer(task.decay_partition(), "adamw", lr=0.1, weight_decay=1e-4)


def test_frozen_parameters_are_in_neither_part() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    model[0].weight.requires_grad_(False)
    partition = partition_parameters(model)
    assert (set(partition.decayed), set(partition.spared)) == (set(), {"0.bias", "1.weight", "1.bias"})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_without_a_gradient_only_the_decayed_shrink(make_task: Callable[..., LanguageModelTask], name: str) -> None:
    task = make_task()
    partition = task.decay_partition()
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    optimizer = build_optimizer(partition, name, lr=0.5, weight_decay=0.1)
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter_name, parameter in task.named_parameters():
        factor = 0.95 if parameter_name in partition.decayed else 1.0
        torch.testing.assert_close(parameter.detach(), before[parameter_name] * factor)


def test_the_description_names_every_parameter(make_task: Callable[..., LanguageModelTask]) -> None:
    task = make_task()
    text = describe_partition(task.decay_partition(), 1e-4)
    assert all(name in text for name, _ in task.named_parameters())
    sizes = [int(line.split(": ")[1].split(" parameters")[0].replace(",", "")) for line in text.splitlines()]
    assert sum(sizes) == sum(parameter.numel() for parameter in task.parameters())


def test_bad_optimizer_arguments_are_told(make_task: Callable[..., LanguageModelTask]) -> None:
    with pytest.raises(ValueError, match=r"optimizer must be .* got 'adamm'; did you mean 'Adam"):
        build_optimizer(partition_parameters(nn.Linear(2, 2)), "adamm", lr=0.1, weight_decay=0.0)
    with pytest.raises(ValueError, match=r"momentum must be 0 with torch\.optim\.AdamW, which has none, got 0.9"):
        build_optimizer(partition_parameters(nn.Linear(2, 2)), "adamw", lr=0.1, weight_decay=0.0, momentum=0.9)
    with pytest.raises(ValueError, match=r"weight_decay must be 0 with torch\.optim\.Rprop, which has none, got 0.1"):
        build_optimizer(partition_parameters(nn.Linear(2, 2)), "Rprop", lr=0.1, weight_decay=0.1)
    for name, value in (("lr", -1.0), ("weight_decay", -0.1), ("momentum", float("nan")), ("warmup_steps", -1)):
        with pytest.raises(ValueError, match=f"{name} must be at least 0 and finite, got {value}"):
            make_task(**{name: value})
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
        make_task(label_smoothing=1.0)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    factor = learning_rate_factor("cosine", 4, lambda: 24)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(14) == pytest.approx(0.5)
    assert factor(24) == factor(30) == pytest.approx(0.0)
    constant = learning_rate_factor("constant", 0, lambda: float("inf"))
    assert {constant(step) for step in (0, 10, 10**6)} == {1.0}
    with pytest.raises(ValueError, match="needs an end"):
        learning_rate_factor("cosine", 0, lambda: float("inf"))(1)
    with pytest.raises(ValueError, match="lr_schedule must be"):
        learning_rate_factor("linear", 0, lambda: 10)
