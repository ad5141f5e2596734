"""Optimizers with weight decay on weights only."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn, optim
from torch.nn import Parameter


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
    partition: DecayPartition, name: str, lr: float, weight_decay: float, momentum: float = 0.0
) -> optim.Optimizer:
    """AdamW or SGD over the partition's two groups.

    Args:
        name: ``"adamw"``, whose decay is decoupled from the gradient, or ``"sgd"``.
        lr: learning rate.
        weight_decay: of the decayed group.
        momentum: of SGD.

    Raises:
        ValueError: for another name.
    """
    groups = [
        {"params": list(partition.decayed.values()), "weight_decay": weight_decay},
        {"params": list(partition.spared.values()), "weight_decay": 0.0},
    ]
    if name == "adamw":
        return optim.AdamW(groups, lr=lr)
    if name == "sgd":
        return optim.SGD(groups, lr=lr, momentum=momentum)
    raise ValueError(f"optimizer must be 'adamw' or 'sgd', got {name!r}")


def learning_rate_factor(schedule: str, warmup_steps: int, total_steps: Callable[[], float]) -> Callable[[int], float]:
    """The factor on the learning rate at each step: a linear warm-up, then constant or a half cosine down to 0.

    Args:
        schedule: ``"constant"`` or ``"cosine"``.
        warmup_steps: steps until the full rate is reached.
        total_steps: gives the steps of the whole run; asked when a cosine first needs it, after step 0.

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
            raise ValueError("lr_schedule 'cosine' needs an end of the run: give trainer.max_epochs or max_steps")
        progress = min(1.0, (step - warmup_steps) / max(1, end - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return factor
