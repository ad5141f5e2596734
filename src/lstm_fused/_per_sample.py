"""Opacus, which trains with differential privacy, is told that our modules do not give it what it needs.

It takes the gradient of each sample from hooks on a module that has one tensor as its result. Its validator looks up
the class of every module: one that it does not know passes, and fails in the backward pass. ``torch.func`` gives the
gradient of each sample without it: ``vmap(grad(...))``.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def refuse(kind: type[nn.Module], replacement: str) -> None:
    """Register an error of Opacus's validator for this class, and a fixer for what is an ``nn.LSTM`` in all but name.

    Nothing is done where Opacus is not imported: its validator is asked after a model was made.
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
