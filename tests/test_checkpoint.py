"""Activation checkpointing (torch.utils.checkpoint) around the modules."""

from functools import partial

import pytest
import torch
from testing import MODULE_SETS, assert_same_bits, recorded, small_lstm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


@pytest.mark.parametrize("options", MODULE_SETS.values(), ids=MODULE_SETS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_recomputes_the_same_masks(use_reentrant, options, device):
    module, x = small_lstm(device, **options)
    x.requires_grad_()
    torch.manual_seed(4)
    output = checkpoint(lambda x: module(x)[0], x, use_reentrant=use_reentrant)
    actual = torch.autograd.grad(output.square().sum(), x) if not use_reentrant else None
    if use_reentrant:  # which works with backward() only
        output.square().sum().backward()
        actual = (x.grad,)
    torch.manual_seed(4)
    assert_same_bits(actual, torch.autograd.grad(module(x)[0].square().sum(), x))


def test_selective_checkpointing():
    """What a policy keeps of the ops is not computed again."""
    module, x = small_lstm("cpu", **MODULE_SETS["ba2016"])

    def policy(context, op, *arguments, **options):
        ours = op.namespace == "lstm_fused"
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    results = []
    with recorded() as calls:
        for call in (module, lambda x: checkpoint(module, x, use_reentrant=False, context_fn=contexts)):
            torch.manual_seed(4)
            output, _ = call(x)
            results.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))
    assert_same_bits(*results)
    assert [name for name, _ in calls].count("lstm_layer") == 2 * 4
