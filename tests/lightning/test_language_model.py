"""The language model and the state that is carried from batch to batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn import functional as F

from lightning_modules.data import TextDataModule
from lightning_modules.models import LanguageModel
from lightning_modules.models.recurrent import LockedDropout, build_recurrent
from lightning_modules.tasks import LanguageModelTask


def make_net(word: str = "fused", *, embedding_size: int = 5, hidden_size: int = 7, **options: Any) -> LanguageModel:
    layer = {name: options.pop(name) for name in ("num_layers", "layer_norm") if name in options}
    return LanguageModel(
        11, lambda size: build_recurrent(word, size, hidden_size=hidden_size, **layer), embedding_size, **options
    )


@pytest.mark.parametrize("word", ["fused", "torch"])
def test_shapes_and_the_carried_state(word: str) -> None:
    net = make_net(word, num_layers=2).eval()
    tokens = torch.randint(11, (9, 3))
    whole, last = net(tokens)
    assert whole.shape == (9, 3, 11)
    assert [part.shape for part in last] == [(2, 3, 7)] * 2
    first, state = net(tokens[:4])
    second, state = net(tokens[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, last)


def test_one_flag_changes_the_cell_and_nothing_else() -> None:
    """The same seed and options give the same weights, and the same figures, where nn.LSTM has all that is asked."""
    nets = []
    for word in ("fused", "torch"):
        torch.manual_seed(3)
        nets.append(make_net(word, num_layers=2, layer_norm=False, dropout=0.0))
    fused, plain = nets
    assert isinstance(plain.lstm, nn.LSTM)
    for (name, ours), (other, theirs) in zip(fused.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other
        assert ours.equal(theirs), name
    tokens = torch.randint(11, (6, 2))
    torch.testing.assert_close(fused(tokens)[0], plain(tokens)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("word", ["fused", "torch"])
def test_the_forget_gates_begin_at_the_bias_given(word: str) -> None:
    lstm = build_recurrent(word, 3, hidden_size=4, num_layers=2, forget_bias=1.0)
    parameters = dict(lstm.named_parameters())
    for layer in (0, 1):
        total = parameters[f"bias_ih_l{layer}"] + parameters[f"bias_hh_l{layer}"]
        assert total[4:8].tolist() == [1.0] * 4
        assert total[:4].abs().max() < 1.0


def test_tied_weights_are_one_parameter() -> None:
    tied = make_net(embedding_size=6, hidden_size=6, tied=True)
    assert tied.decoder.weight is tied.embedding.weight
    free = sum(parameter.numel() for parameter in make_net(embedding_size=6, hidden_size=6).parameters())
    assert free - sum(parameter.numel() for parameter in tied.parameters()) == 11 * 6
    with pytest.raises(ValueError, match="got 5 and 6"):
        make_net(embedding_size=5, hidden_size=6, tied=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"hidden_size": -1}, "hidden_size must be at least 1, got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"recurrent_dropout": 2.0}, "recurrent_dropout"),
        ({"zoneout": float("nan")}, "zoneout"),
    ],
)
def test_bad_arguments_are_told(make_task: Callable[..., LanguageModelTask], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**options)


def test_locked_dropout_drops_the_same_units_at_every_step() -> None:
    dropout = LockedDropout(0.4)
    output = dropout(torch.ones(50, 20, 30))
    assert output.equal(output[:1].expand(50, 20, 30))
    assert output.unique().tolist() == pytest.approx([0, 1 / 0.6])
    kept = (output[0] > 0).double().mean()
    assert abs(kept - 0.6) < 4 * (0.24 / 600) ** 0.5
    assert dropout.eval()(output) is output


def test_label_smoothing_acts_on_the_training_loss_alone(make_task: Callable[..., LanguageModelTask]) -> None:
    task = make_task().eval()
    tokens = torch.randint(30, (6, 2))
    logits = task(tokens)[0].flatten(0, 1)
    plain, _ = task.model_step((tokens, tokens), None)
    smoothed, _ = task.model_step((tokens, tokens), None, label_smoothing=0.2)
    log_probabilities = logits.log_softmax(-1)
    nll = -log_probabilities[torch.arange(12), tokens.flatten()].mean()
    torch.testing.assert_close(plain, nll)
    torch.testing.assert_close(smoothed, 0.8 * nll - 0.2 * log_probabilities.mean())
    torch.testing.assert_close(plain, F.cross_entropy(logits, tokens.flatten()))


class StateSpy(Callback):
    """Notes the state that each batch begins with, by stage."""

    def __init__(self) -> None:
        self.begun: dict[str, list] = {"train": [], "eval": []}
        self.ended: dict[str, list] = {"train": [], "eval": []}

    def watch(self, task: LanguageModelTask) -> "StateSpy":
        original = task.forward

        def forward(tokens, state=None):
            stage = "train" if task.training else "eval"
            self.begun[stage].append(state)
            logits, new = original(tokens, state)
            self.ended[stage].append(new)
            return logits, new

        task.forward = forward
        return self


def test_the_state_is_carried_detached_and_reset_at_epochs(
    make_data: Callable[..., TextDataModule],
    make_task: Callable[..., LanguageModelTask],
    make_trainer: Callable[..., Trainer],
) -> None:
    data, task = make_data(), make_task(vocab_size=None)
    trainer = make_trainer(max_epochs=2, val_check_interval=0.5, gradient_clip_val=1.0)
    spy = StateSpy().watch(task)
    trainer.fit(task, data)
    for stage, loader, runs in (("train", data.train_dataloader(), 2), ("eval", data.val_dataloader(), 4)):
        begun, ended = spy.begun[stage], spy.ended[stage]
        assert len(begun) == runs * len(loader)
        for position, state in enumerate(begun):
            if position % len(loader) == 0:  # an epoch's or a validation's first batch
                assert state is None, (stage, position)
            else:  # the state that the same stage's last batch ended with, validation in between or not
                for now, before in zip(state, ended[position - 1], strict=True):
                    assert now.equal(before), (stage, position)
                    assert not now.requires_grad


def test_what_comes_must_not_be_seen() -> None:
    def both_ways(size: int) -> nn.Module:
        return nn.GRU(size, 7, bidirectional=True)

    with pytest.raises(ValueError, match="recurrent must not be bidirectional in a language model"):
        LanguageModel(11, both_ways)
