"""Optimizers with weight decay on weights only."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn, optim
from torch.nn import Parameter

from lightning_modules.injection import (
    OPTIMIZER,
    Spec,
    build,
    class_path,
    has_argument,
    import_class,
    parameters_of,
    to_spec,
)

COSINE_NEEDS_AN_END = "lr_schedule 'cosine' needs an end of the run: give trainer.max_epochs or max_steps"


class DecayPartition(NamedTuple):
    """A model's trainable parameters by name, each in exactly one of the two."""

    decayed: dict[str, Parameter]
    spared: dict[str, Parameter]


def partition_parameters(module: nn.Module, decay_embeddings: bool = False) -> DecayPartition:
    """Splits the trainable parameters into those that weight decay acts on and those it spares.

    Weights are decayed. Biases and the gains and biases of norms - every parameter with fewer than two dimensions -
    are spared, and so are embeddings unless ``decay_embeddings``. A weight that two modules share counts once, and
    is an embedding if either of them is.
    """
    embeddings = {id(child.weight) for child in module.modules() if isinstance(child, (nn.Embedding, nn.EmbeddingBag))}
    partition = DecayPartition({}, {})
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            spare = parameter.ndim < 2 or (id(parameter) in embeddings and not decay_embeddings)
            (partition.spared if spare else partition.decayed)[name] = parameter
    return partition


def describe_partition(partition: DecayPartition, weight_decay: float) -> str:
    """Two lines that name every parameter and say what weight decay does to it."""

    def line(title: str, parameters: dict[str, Parameter]) -> str:
        size = sum(parameter.numel() for parameter in parameters.values())
        return f"{title}: {size:,} parameters in {len(parameters)} tensors: {', '.join(parameters) or 'none'}"

    return "\n".join(
        (line(f"weight decay {weight_decay:g}", partition.decayed), line("no weight decay", partition.spared))
    )


def build_optimizer(
    partition: DecayPartition, spec: Spec | str, *, lr: float, weight_decay: float, momentum: float | None = None
) -> optim.Optimizer:
    """The optimizer of a spec over the partition's two groups.

    Args:
        spec: see :mod:`lightning_modules.injection`.
        lr: learning rate.
        weight_decay: of the decayed group, as the class does it: AdamW decouples it from the gradient, others add it
            there.
        momentum: where the class has it.

    Raises:
        ValueError: the class lacks a requested argument, or refuses one.
    """
    spec = to_spec(OPTIMIZER, spec)
    cls = import_class(OPTIMIZER, spec["class_path"])
    name = class_path(cls)
    arguments: dict[str, Any] = {"lr": lr}
    if momentum is not None and (momentum or has_argument(cls, "momentum")):
        if not has_argument(cls, "momentum"):
            raise ValueError(f"momentum must be 0 with {name}, which has none, got {momentum}")
        arguments["momentum"] = momentum
    arguments |= _eps_above_zero(cls, spec, [*partition.decayed.values(), *partition.spared.values()])
    groups: list[Any] = [{"params": list(partition.decayed.values())}, {"params": list(partition.spared.values())}]
    if has_argument(cls, "weight_decay"):
        groups[0]["weight_decay"], groups[1]["weight_decay"] = weight_decay, 0.0
    elif weight_decay:
        raise ValueError(f"weight_decay must be 0 with {name}, which has none, got {weight_decay}; l2 is another way")
    groups = [group for group in groups if group["params"]]
    if issubclass(cls, optim.LBFGS):  # knows one group alone
        groups = [parameter for group in groups for parameter in group["params"]]
    optimizer: optim.Optimizer = build(OPTIMIZER, spec, groups, **arguments)
    return optimizer


def _eps_above_zero(cls: type, spec: Spec, parameters: list[Parameter]) -> dict[str, float]:
    """An ``eps`` in place of one that is 0 in the parameters' precision, as Adam's 1e-8 is in float16.

    Without it the first step divides zero by zero wherever the square of a gradient is 0 in that precision too.
    """
    eps = spec["init_args"].get("eps", parameters_of(cls)["eps"].default) if has_argument(cls, "eps") else None
    if not isinstance(eps, float) or not any(torch.tensor(eps, dtype=p.dtype) == 0 for p in parameters):
        return {}
    if "eps" in spec["init_args"] and eps > 0:
        raise ValueError(f"optimizer.eps must be above 0 in {parameters[0].dtype}, got {eps}: 1e-4 is")
    return {} if eps <= 0 else {"eps": 1e-4}


def learning_rate_factor(schedule: str, warmup_steps: int, total_steps: Callable[[], float]) -> Callable[[int], float]:
    """The factor on the learning rate at each step: a linear warm-up, then constant or a half cosine down to 0.

    Args:
        schedule: ``"constant"`` or ``"cosine"``.
        warmup_steps: steps until the full rate is reached.
        total_steps: gives the steps of the whole run; called when a cosine first needs it, after step 0.

    Raises:
        ValueError: for another schedule, or a cosine in a run without an end.
    """
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"lr_schedule must be 'constant' or 'cosine', got {schedule!r}")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant" or step == 0:
            return 1.0
        end = total_steps()
        if math.isinf(end):
            raise ValueError(COSINE_NEEDS_AN_END)
        progress = min(1.0, (step - warmup_steps) / max(1, end - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor
