"""Perplexity and bits per character against direct computations and torchmetrics' own perplexity."""

import math
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F
from torchmetrics.text import Perplexity as TorchmetricsPerplexity

from lightning_modules.data import TextDataModule
from lightning_modules.models.metrics import BitsPerCharacter, Perplexity
from lightning_modules.tasks import LanguageModelTask


def test_batches_count_by_their_tokens() -> None:
    logits = [torch.randn(7, 3, 11), torch.randn(2, 3, 11)]
    targets = [torch.randint(11, (7, 3)), torch.randint(11, (2, 3))]
    ours, bits, theirs = Perplexity(), BitsPerCharacter(), TorchmetricsPerplexity()
    for batch, target in zip(logits, targets, strict=True):
        loss = F.cross_entropy(batch.flatten(0, 1), target.flatten())
        ours.update(loss, weight=target.numel())
        bits.update(loss, weight=target.numel())
        theirs.update(batch, target)
    probabilities = torch.cat([batch.flatten(0, 1) for batch in logits]).double().softmax(-1)
    chosen = probabilities[torch.arange(27), torch.cat([target.flatten() for target in targets])]
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert float(ours.compute()) == pytest.approx(float((1 / chosen).prod() ** (1 / 27)), rel=1e-5)
    assert float(bits.compute()) == pytest.approx(float(-chosen.log2().mean()), rel=1e-5)


@pytest.mark.parametrize("level", ["char", "word"])
def test_validation_figures_are_those_of_one_pass_over_the_text(
    make_data: Callable[..., TextDataModule],
    make_task: Callable[..., LanguageModelTask],
    make_trainer: Callable[..., Trainer],
    level: str,
) -> None:
    data = make_data(level=level, sequence_length=7)
    task = make_task(vocab_size=None, label_smoothing=0.3)  # smoothing has no part in the validation's figures
    [figures] = make_trainer().validate(task, data, verbose=False)
    columns = torch.cat([data.val_dataloader().columns])
    with torch.no_grad():
        logits, _ = task.net.eval()(columns[:-1])  # the whole text at once: the state is carried, or this differs
        loss = float(F.cross_entropy(logits.flatten(0, 1), columns[1:].flatten()))
    assert figures["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert figures["val_ppl"] == pytest.approx(math.exp(loss), rel=1e-5)
    if level == "char":
        assert figures["val_bpc"] == pytest.approx(loss / math.log(2), rel=1e-5)
    else:
        assert "val_bpc" not in figures
