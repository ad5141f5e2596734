"""An error for Opacus (training with differential privacy), whose per-sample gradients our modules do not support.

Opacus computes per-sample gradients in hooks on modules whose result is one tensor. Its validator accepts modules of
classes that it does not know, and these fail later, in the backward pass. ``torch.func`` computes per-sample gradients
without Opacus: ``vmap(grad(...))``.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def refuse(kind: type[nn.Module], replacement: str) -> None:
    """Register an error for this class with Opacus's validator, and a fixer for layers that ``nn.LSTM`` can compute.

    Does nothing if Opacus has not been imported: its validator runs after a model was made.
    """
    opacus = sys.modules.get("opacus.validators")
    if opacus is None or kind in opacus.ModuleValidator.VALIDATORS:
        return
    from opacus.validators.errors import ShouldReplaceModuleError

    def validate(module: nn.Module) -> list[Exception]:
        return [
            ShouldReplaceModuleError(
                f"model must have modules that give Opacus a gradient for each sample, got {kind.__name__}, in whose "
                f"place opacus.layers.{replacement} does, with the options of nn.{replacement.removeprefix('DP')} alone"
            )
        ]

    opacus.register_module_validator(kind)(validate)

    if replacement == "DPLSTM":

        def fix(module: Any, **arguments: Any) -> Any:
            from .convert import to_torch

            return opacus.ModuleValidator.FIXERS[nn.LSTM](to_torch(module), **arguments)

        opacus.register_module_fixer(kind)(fix)
