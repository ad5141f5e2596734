"""The AWD-LSTM recipe: words without embedding, penalties on the outputs, weights averaged once validation stalls."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact_resume import check_exact_resume
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import Result

from lightning_modules.callbacks import RNGState
from lightning_modules.callbacks.averaging import NonMonotonicAveraging
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.data import TextDataModule
from lightning_modules.tasks import LanguageModelTask
from lightning_modules.tasks.language_model import token_loss


def test_a_word_loses_its_embedding_everywhere_or_nowhere(make_task: Callable[..., LanguageModelTask]) -> None:
    net = make_task(embedding_dropout=0.4).net
    tokens = torch.arange(30).repeat(8, 5)
    embedded = net.embed(tokens)
    kept = (embedded != 0).any(-1)
    assert kept.equal(kept[0, :30].repeat(8, 5))
    assert 0 < kept[0, :30].sum() < 30
    torch.testing.assert_close(embedded[kept], (net.embedding(tokens) / 0.6)[kept])
    assert net.eval().embed(tokens).equal(net.embedding(tokens))


def test_the_penalties_are_of_the_training_loss_alone(make_task: Callable[..., LanguageModelTask]) -> None:
    tokens = torch.randint(30, (6, 2))
    task = make_task(activation_penalty=2.0, change_penalty=3.0)
    torch.manual_seed(5)
    loss, count = task.batch_loss((tokens, tokens), 0)
    torch.manual_seed(5)
    output, dropped, _ = task.net.hidden(tokens)
    expected = token_loss(task.net.decoder(dropped), tokens)
    expected = expected + 2 * dropped.square().mean() + 3 * (output[1:] - output[:-1]).square().mean()
    torch.testing.assert_close(loss, expected)
    assert count == 12
    for name in ("activation_penalty", "change_penalty"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            make_task(**{name: -1.0})
    with pytest.raises(ValueError, match="average_after must be at least 1"):
        make_task(average_after=0)


def test_averaging_begins_when_validation_is_no_better_than_long_before() -> None:
    callback = NonMonotonicAveraging(patience=2)
    trainer = SimpleNamespace(sanity_checking=False, global_step=7, print=lambda *_: None, callback_metrics={})
    begun = []
    for loss in (5.0, 4.0, 4.5, 4.4, 3.9, 4.1, 4.2, 3.0):
        trainer.callback_metrics = {"val_loss": torch.tensor(loss)}
        callback.on_validation_end(trainer, None)
        begun.append(callback.averaged > 0)
    # 4.4 is better than the 5.0 before the last two; 3.9 too; 4.1 is not better than the 4.0.
    assert begun == [False] * 5 + [True] * 3


def test_the_average_is_that_of_all_steps_since_and_a_resumed_run_keeps_it(
    make_data: Callable[..., TextDataModule], make_task: Callable[..., LanguageModelTask],
    make_trainer: Callable[..., Trainer], tmp_path: Path,
) -> None:  # fmt: skip
    class Weights(NonMonotonicAveraging):
        def on_train_batch_end(self, trainer, pl_module, *arguments) -> None:
            super().on_train_batch_end(trainer, pl_module, *arguments)
            if self.averaged > 1 or trainer.global_step == begin:
                seen.append(pl_module.net.decoder.weight.detach().clone())

        def on_validation_end(self, trainer, pl_module) -> None:
            if trainer.global_step == begin:
                self.averaged = 1

    def fit(resume: Path | None = None, seed: int = 0) -> LanguageModelTask:
        task = make_task(seed, vocab_size=None, optimizer="SGD", lr=0.5)
        saver = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [RNGState(), Weights(), *([saver] if resume is None else [])]
        trainer = make_trainer(max_epochs=3, callbacks=callbacks)
        trainer.fit(task, data, ckpt_path=resume, weights_only=True)
        return task

    data = make_data(sequence_length=100)
    data.setup("fit")
    begin, seen = len(data.train_dataloader()), []
    task = fit()
    torch.testing.assert_close(task.net.decoder.weight.detach(), torch.stack(seen).mean(0))
    assert len(seen) == 2 * begin + 1
    again = fit(tmp_path / "saved" / f"step={begin + 2}.ckpt", seed=3)
    for name, value in task.state_dict().items():
        assert value.equal(again.state_dict()[name]), name


def test_a_step_of_a_batch_of_random_length_goes_with_its_length(
    make_data: Callable[..., TextDataModule], make_task: Callable[..., LanguageModelTask],
    make_trainer: Callable[..., Trainer],
) -> None:  # fmt: skip
    class Steps(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            lengths.append(len(batch[0]))
            before.append([group["lr"] for group in trainer.optimizers[0].param_groups])

        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            during.append([group["lr"] for group in optimizer.param_groups])

    lengths, before, during = [], [], []
    data, task = make_data(random_length=True), make_task(vocab_size=None, lr_schedule="cosine")
    trainer = make_trainer(max_epochs=2, callbacks=[Steps()])
    trainer.fit(task, data)
    count = len(data.train_dataloader())
    assert len(lengths) == 2 * count
    assert lengths[:count] != lengths[count:]
    for length, rates, scaled in zip(lengths, before, during, strict=True):
        assert scaled == [rate * (length / 20) for rate in rates]
    # The schedule is that of the steps of the run, which ends at its end.
    assert [rate for rate, _ in before] == pytest.approx(
        [0.01] * 1 + [0.005 * (1 + math.cos(math.pi * step / (2 * count))) for step in range(1, 2 * count)]
    )
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_batches_of_random_lengths_go_on_exactly(
    make_data: Callable[..., TextDataModule], make_task: Callable[..., LanguageModelTask],
    make_trainer: Callable[..., Trainer], tmp_path: Path,
) -> None:  # fmt: skip
    def data() -> TextDataModule:
        return make_data(random_length=True)

    def task() -> LanguageModelTask:
        return make_task(vocab_size=None)

    data().setup("fit")
    batches = len(data().train_dataloader())
    check_exact_resume(task, data, make_trainer, tmp_path / "saved", step=batches + batches // 2)


def test_the_config_runs_and_averages_once_validation_worsens(
    command: Callable[..., Result], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line says from which step on, once; with the interval of 1, the third validation is the first that can."""
    batch_loss = LanguageModelTask.batch_loss

    def worsening(self: LanguageModelTask, *arguments: Any, **options: Any) -> tuple:
        loss, count = batch_loss(self, *arguments, **options)
        return (loss if self.training else loss * (1 + self.global_step)), count

    monkeypatch.setattr(LanguageModelTask, "batch_loss", worsening)
    result = command(
        "fit", "-c", "awd_lm", "--data.path", text_file, "--model.embedding_size=8", "--model.hidden_size=8",
        "--data.batch_size=4", "--data.sequence_length=20", "--trainer.max_epochs=4", "--model.average_after=1",
        "--trainer.limit_train_batches=5", "--trainer.limit_val_batches=2", "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "weight_dropout=0.5" in result.out
    assert [line for line in result.out.splitlines() if "averaged" in line] == ["Weights are averaged from step 15 on."]
    best, last = (load_checkpoint(f"runs/awd_lm/version_0/checkpoints/{name}.ckpt") for name in ("best", "last"))
    assert best["hyper_parameters"]["average_after"] == 1
    states = [checkpoint["callbacks"]["NonMonotonicAveraging"] for checkpoint in (best, last)]
    assert [state["averaged"] for state in states] == [0, 6]  # the weights at step 15, and those of five steps since
