"""What every task's test of resuming shares."""

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.callbacks import RNGState
from lightning_modules.tasks import RecurrentTask


class Losses(Callback):
    """The loss of every training batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def check_exact_resume(
    new_task: Callable[[], RecurrentTask],
    new_data: Callable[[], LightningDataModule],
    make_trainer: Callable[..., Trainer],
    folder: Path,
    step: int,
) -> None:
    """Two epochs at once, and the same after a stop at ``step``, in the middle of an epoch: every bit alike.

    Losses, weights, and the figures at the end: among them the mean loss of the whole epoch.
    """

    def fit(seed: int, *callbacks: Callback, resume: Path | None = None) -> tuple[RecurrentTask, list[float], dict]:
        seed_everything(seed)
        losses, task = Losses(), new_task()
        trainer = make_trainer(max_epochs=2, callbacks=[losses, RNGState(), *callbacks], gradient_clip_val=1.0)
        trainer.fit(task, new_data(), ckpt_path=resume, weights_only=True)
        return task, losses.values, trainer.callback_metrics

    whole, losses, figures = fit(1, ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1))
    assert 0 < step < len(losses)
    assert step % (len(losses) // 2), "the stop must be in the middle of an epoch"
    again, rest, figures_again = fit(99, resume=folder / f"step={step}.ckpt")
    assert rest == losses[step:]
    assert "train_loss_epoch" in figures
    assert figures_again == figures
    for (name, value), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert value.equal(other), name
