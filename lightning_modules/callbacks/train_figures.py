"""The loss on data that was trained on, measured as the validation measures it."""

from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_modules.callbacks.resume_point import is_fitting
from lightning_modules.runs import ON_TRAIN
from lightning_modules.trainer_parts import datamodule_of


class TrainFigures(Callback):
    """Logs ``val_loss_on_train`` with every validation: the loss on as many batches of the train split.

    The difference to ``val_loss`` is what has been learned by heart. The running ``train_loss`` does not tell it: it is
    that of weights before the epoch's end, with dropout, and with the penalties and label smoothing that are on.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not is_fitting(trainer):
            return
        metrics = pl_module.val_metrics.clone()
        metrics.reset()
        loader = datamodule_of(trainer).train_dataloader()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            for index, batch in enumerate(islice(loader, int(sum(trainer.num_val_batches)))):
                loss, count = pl_module.share_loss(trainer.strategy.batch_to_device(batch), index, metrics)
                metrics["loss"].update(loss, weight=count)
        pl_module.log(ON_TRAIN, metrics["loss"].compute())
