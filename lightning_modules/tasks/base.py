"""What every task shares, and what the command line, the callbacks and the experiments may ask of one."""

import copy
import math
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._pytree import tree_map
from torchmetrics import Metric, MetricCollection
from typing_extensions import TypeVar

from lightning_modules.callbacks.checkpoints import is_measured_in_training
from lightning_modules.data.base import TaskDataModule
from lightning_modules.data.batches import NoShare
from lightning_modules.injection import (
    CLASS_OPTIONS,
    KINDS,
    LR_SCHEDULER,
    OPTIMIZER,
    RECURRENT,
    Kind,
    build,
    has_argument,
    import_class,
    parameters_of,
    takes_option,
    to_spec,
)
from lightning_modules.models.metrics import EpochMean, Mean, PreciseMetricCollection
from lightning_modules.models.optimizers import (
    COSINE_NEEDS_AN_END,
    DecayPartition,
    build_optimizer,
    learning_rate_factor,
    partition_parameters,
)
from lightning_modules.models.recurrent import build_recurrent
from lightning_modules.regularization import l2_penalty
from lightning_modules.resuming import continue_epoch, is_before_an_epochs_end, is_inside_an_epoch
from lightning_modules.tasks.exported import Exported
from lightning_modules.trainer_parts import callbacks_of, datamodule_of
from lstm_fused._types import LayerNorm

Data = TypeVar("Data", bound=TaskDataModule, default=Any)


class RecurrentTask(LightningModule, Generic[Data]):
    """Base class of all tasks: a net around one recurrent layer, trained, judged and used.

    A task is a subclass. It must say

    - :meth:`data_sizes`: which of its own arguments come from the data (each ``None`` until then),
    - :meth:`new_net`: the net, an ``nn.Module`` whose recurrent layer is made by :meth:`new_layer`,
    - :meth:`batch_loss`: the mean loss of a batch, and over how many items it is the mean;

    and it may say

    - :meth:`new_metrics`: what it is judged by beside the loss,
    - ``predict_step`` and :meth:`write_predictions`: what becomes of new data,
    - :meth:`add_sample_arguments` and :meth:`sample`: what ``lstm-fused sample`` draws,
    - :meth:`own_callbacks`: callbacks of its own, such as one that draws its picture,
    - :meth:`step_names` and :meth:`text_batch`, where its steps are tokens: what stands at a step in a picture,
    - :meth:`to_export`: what ``lstm-fused export`` writes,
    - ``loss_unit``: what the axis of the learning curves says.

    Logged are ``train_loss`` (the objective: with label smoothing and the L2 penalty, where they are on), ``val_loss``
    and ``test_loss`` (without either), and the metrics as ``val_NAME`` and ``test_NAME``. Under distributed training
    loss and gradients are means over the items of all processes, however unequally these are shared.

    Args:
        recurrent: the recurrent layer: ``fused`` (lstm_fused.FusedLSTM), ``torch`` (torch.nn.LSTM), ``gru``, ``rnn``,
            a class path, or ``{class_path: ..., init_args: {...}}``. ``--model.recurrent.NAME VALUE`` gives an argument
            of the class, ``--model.recurrent.help CLASS`` lists them.
        hidden_size: size of each layer.
        num_layers: number of layers; the class's default if not given.
        layer_norm: layer norm inside the layer; by default on where the layer has it.
        recurrent_dropout: rate on the hidden state from step to step.
        zoneout: rate at which h and c keep their previous value, one rate or two.
        forget_bias: initial bias of the forget gates; the layer's own if not given.
        dropout: rate of dropout outside the recurrence; where it acts, the task says.
        layer_dropout: rate between the recurrent layers; ``dropout`` if not given.
        variational: dropout masks are locked over time.
        optimizer: a class of torch.optim by name (``adamw``, ``SGD``), a class path, or class_path and init_args.
        lr: learning rate.
        weight_decay: on weights alone, as the optimizer does it; biases and norms are spared. The default is 0 for an
            optimizer without weight decay.
        decay_embeddings: weight decay and L2 act on embeddings too.
        momentum: of the optimizer, where it has one.
        l2: coefficient of the penalty ``l2 / 2 * sum(w^2)`` of the same weights in the training loss.
        lr_schedule: ``constant``, or ``cosine`` down to 0 at the end of the run.
        warmup_steps: steps over which the learning rate rises to ``lr``.
        lr_scheduler: instead of these two, a class of torch.optim.lr_scheduler, a class path, or class_path and
            init_args.
        lr_scheduler_interval: whether it steps every ``epoch`` or every ``step``.
        lr_scheduler_monitor: the figure that ReduceLROnPlateau goes by; its own ``mode`` says which way is better.
        cell: the former name of ``recurrent``.
    """

    if TYPE_CHECKING:  # Lightning's own type knows no names

        @property
        def hparams(self) -> Any: ...

    def __init__(
        self,
        recurrent: str | dict[str, Any] = "fused",
        hidden_size: int = 256,
        num_layers: int | None = None,
        layer_norm: bool | LayerNorm | None = None,
        recurrent_dropout: float | None = None,
        zoneout: float | tuple[float, float] | None = None,
        forget_bias: float | None = None,
        dropout: float = 0.2,
        layer_dropout: float | None = None,
        variational: bool = False,
        optimizer: str | dict[str, Any] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        decay_embeddings: bool = False,
        momentum: float | None = None,
        l2: float = 0.0,
        lr_schedule: Literal["constant", "cosine"] = "constant",
        warmup_steps: int = 0,
        lr_scheduler: str | dict[str, Any] | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        lr_scheduler_monitor: str = "val_loss",
        cell: str | None = None,
    ) -> None:
        super().__init__()
        self.run_options: dict[str, Any] = {}  # logged in addition to the hyperparameters
        self.save_hyperparameters()
        self.save_hyperparameters(self._resolved())
        self._check_hyperparameters()
        self.train_loss = EpochMean()
        self._epoch_loss_so_far: tuple[float, float] | None = None  # of the checkpoint that a fit goes on from
        self.net: Any = None  # an nn.Module, when the sizes are known; which one, the task knows
        if all(self.hparams[name] is not None for name in self.size_names()):
            self.net = self.new_net()

    @property
    def loss_unit(self) -> str:
        return "nats"

    # The seam -------------------------------------------------------------------------------------------------------

    @classmethod
    def size_names(cls) -> tuple[str, ...]:
        """The constructor's arguments that :meth:`data_sizes` gives."""
        raise NotImplementedError

    def data_sizes(self, data: Data) -> dict[str, Any]:
        """The values of :meth:`size_names` for this data: plain values, kept in every checkpoint."""
        raise NotImplementedError

    def new_net(self) -> nn.Module:
        """The net; all of ``self.hparams`` is known."""
        raise NotImplementedError

    def batch_loss(
        self, batch: Any, batch_idx: int, metrics: MetricCollection | None = None
    ) -> tuple[Tensor, int | Tensor]:
        """The mean loss of a batch, and the number of items that it is the mean of: padding is none.

        Args:
            metrics: those of :meth:`new_metrics`, to be updated with this batch; ``None`` in training.
        """
        raise NotImplementedError

    def new_metrics(self, data: Data) -> dict[str, Metric]:
        """What the task is judged by beside the loss, by the name it is logged under after ``val_`` or ``test_``."""
        return {}

    def own_callbacks(self) -> list[Callback]:
        """Callbacks that every trainer of this task gets, unless it has one of the kind; they run after the others."""
        return []

    def write_predictions(self, batches: list[Any], data: Data, folder: Path) -> str:
        """Writes what ``predict_step`` gave for each batch to a file in ``folder``; one line that says what and where.

        Raises NotImplementedError where the task predicts nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} has no predictions to write")

    def predict_examples(self, examples: Any, data: Data) -> Any:
        """What the task makes of data in memory; the subclass says in what form."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing of data in memory")

    @classmethod
    def add_sample_arguments(cls, parser: ArgumentParser) -> None:
        """The options of ``lstm-fused sample`` for this task; raises ValueError where the task draws no samples."""
        raise ValueError(f"a {cls.__name__} draws no samples")

    def sample(self, data: Data, options: Namespace, folder: Path) -> str:
        """Draws samples according to :meth:`add_sample_arguments`, and returns the text to print."""
        raise NotImplementedError

    def configure_callbacks(self) -> list[Callback]:
        kinds = {type(callback) for callback in callbacks_of(self.trainer)}
        return [callback for callback in self.own_callbacks() if type(callback) not in kinds]

    @property
    def hparams_initial(self) -> AttributeDict:
        """What is logged: neither checkpoints nor the constructor have the options of the run."""
        return AttributeDict({**super().hparams_initial, **self.run_options})

    # The model ------------------------------------------------------------------------------------------------------

    def step_names(self, batch: Any, data: Data) -> list[list[str]] | None:
        """What stands at each step of each sequence of a batch, where the steps are tokens; ``None`` elsewhere."""
        return None

    def text_batch(self, text: str, data: Data) -> Any:
        """A text as a batch of one sequence. Raises ValueError where the task reads no text."""
        raise ValueError(f"there must be no text for a {type(self).__name__}, which reads none, got {text!r}")

    def to_export(self, data: Data) -> Exported:
        """The net as ``lstm-fused export`` writes it for other programs, on a batch of the valid data.

        Raises NotImplementedError where the task does not say how.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it is exported (to_export)")

    def configure_model(self) -> None:
        """Lightning calls this before it loads any weights, which would be rounded to the precision they are put in."""
        self.build(datamodule_of(self.trainer))
        self.trainer.precision_plugin.convert_module(self.net)

    def build(self, data: Data) -> None:
        """Builds the net for the data's sizes, unless it is built.

        Raises ValueError where it was built for others.
        """
        sizes = self.data_sizes(data)
        for name, size in sizes.items():
            if self.hparams[name] not in (None, size):
                raise ValueError(f"{name} must be that of the data, {size}, got {self.hparams[name]}")
        self.save_hyperparameters(sizes)
        if self.net is None:
            self.net = self.new_net()

    def new_layer(self, input_size: int, hidden_size: int | None = None, num_layers: int | None = None) -> nn.Module:
        """The recurrent layer on inputs of this size; a task's second one may be of another size than the first."""
        layer_dropout = self.hparams.layer_dropout
        return build_recurrent(
            self.hparams.recurrent,
            input_size,
            hidden_size=hidden_size or self.hparams.hidden_size,
            num_layers=num_layers or self.hparams.num_layers,
            dropout=self.hparams.dropout if layer_dropout is None else layer_dropout,
            variational=self.hparams.variational,
            **{name: self.hparams[name] for name in CLASS_OPTIONS},
        )

    @property
    def recurrent_class(self) -> type:
        """The class of the recurrent layer."""
        return import_class(RECURRENT, self.hparams.recurrent["class_path"])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the net gives for tensors of any precision.

        Its first or only tensor, the scores, is float32 at least: losses, figures and probabilities in half precision
        would be rounded to three digits.
        """
        dtype = next(self.net.parameters()).dtype

        def to_its_precision(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        args, kwargs = tree_map(to_its_precision, (args, kwargs))
        given = self.net(*args, **kwargs)
        if isinstance(given, tuple):
            return to_full_precision(given[0]), *given[1:]
        return to_full_precision(given)

    # The hyperparameters --------------------------------------------------------------------------------------------

    def _resolved(self) -> dict[str, Any]:
        """The specs in full, the short forms with what their long forms said, and the defaults that depend on both."""
        given = self.hparams
        resolved: dict[str, Any] = {"cell": None}
        recurrent = given.recurrent
        if given.cell is not None:
            if recurrent not in ("fused", given.cell):
                raise ValueError(f"cell is the former name of recurrent, give one, got {given.cell!r}, {recurrent!r}")
            recurrent = given.cell
        resolved |= self._take_short_forms(RECURRENT, recurrent)
        resolved |= self._take_short_forms(OPTIMIZER, given.optimizer)
        if given.lr_scheduler is not None:
            resolved["lr_scheduler"] = to_spec(LR_SCHEDULER, given.lr_scheduler)
        layer = import_class(RECURRENT, resolved["recurrent"]["class_path"])
        optimizer = import_class(OPTIMIZER, resolved["optimizer"]["class_path"])
        if resolved.get("layer_norm", given.layer_norm) is None and takes_option(layer, "layer_norm"):
            resolved["layer_norm"] = True
        if given.weight_decay == default_of("weight_decay") and not has_argument(optimizer, "weight_decay"):
            resolved["weight_decay"] = 0.0
        return resolved

    def _take_short_forms(self, kind: Kind, value: Any) -> dict[str, Any]:
        """The spec without the arguments that have a short form, and these by that."""
        spec = copy.deepcopy(to_spec(kind, value))
        taken: dict[str, Any] = {kind.name: spec}
        for argument, short in kind.short.items():
            if argument not in spec["init_args"]:
                continue
            long = spec["init_args"].pop(argument)
            long = tuple(long) if isinstance(long, list) else long
            if self.hparams[short] not in (None, long, default_of(short)):
                raise ValueError(
                    f"{short} and {kind.name}.{argument} are one setting and must not differ, got "
                    f"{self.hparams[short]!r} and {long!r}"
                )
            taken[short] = long
        return taken

    def _check_hyperparameters(self) -> None:
        hparams = self.hparams
        for name in ("hidden_size", "num_layers"):
            if hparams[name] is not None and hparams[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {hparams[name]}")
        for name in ("dropout", "layer_dropout"):
            if hparams[name] is not None and not 0 <= hparams[name] < 1:
                raise ValueError(f"{name} must be in [0, 1), got {hparams[name]}")
        for name in ("lr", "weight_decay", "momentum", "l2", "warmup_steps"):
            value = hparams[name]
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        if hparams.lr_scheduler is not None and (hparams.lr_schedule != "constant" or hparams.warmup_steps):
            raise ValueError(
                f"lr_scheduler is instead of lr_schedule and warmup_steps: give one, got "
                f"{hparams.lr_scheduler['class_path']} with lr_schedule {hparams.lr_schedule!r} and warmup_steps "
                f"{hparams.warmup_steps}"
            )

        if hparams.lr_scheduler is not None and hparams.lr_scheduler_interval == "step":
            cls = import_class(LR_SCHEDULER, hparams.lr_scheduler["class_path"])
            if issubclass(cls, ReduceLROnPlateau):
                raise ValueError(
                    f"lr_scheduler_interval must be 'epoch' with {cls.__name__}, which goes by "
                    f"{hparams.lr_scheduler_monitor}, got 'step'"
                )

    @classmethod
    def hparams_of(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments that a checkpoint was saved with, an older one's among them."""
        known = parameters_of(cls)
        saved = {k: v for k, v in (checkpoint.get("hyper_parameters") or {}).items() if k in known}
        if (cell := saved.pop("cell", None)) is not None:
            saved["recurrent"] = cell
        for kind in KINDS.values():
            if saved.get(kind.name) is not None:
                saved[kind.name] = to_spec(kind, saved[kind.name])
        return saved

    # The steps ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        own: dict[str, Any] = self.new_metrics(datamodule_of(self.trainer))
        metrics = {"loss": Mean(), **own}
        self.val_metrics = PreciseMetricCollection(metrics, prefix="val_", compute_groups=False)
        self.test_metrics = self.val_metrics.clone(prefix="test_")

    def on_train_start(self) -> None:
        continue_epoch(self.trainer)
        is_trained = is_before_an_epochs_end(self.trainer)
        goes_on = is_trained or is_inside_an_epoch(self.trainer)
        self.train_loss.carry_on(self._epoch_loss_so_far if goes_on else None)
        if is_trained and self._epoch_loss_so_far is not None:  # no step will log it
            self.log("train_loss_epoch", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, count = self.share_loss(batch, batch_idx)
        objective = loss + self.l2_penalty() if self.hparams.l2 else loss
        world_size = self.trainer.world_size
        if world_size == 1:
            to_minimize, mean, total = objective, objective.detach(), count
        else:
            # Gradients become means over the processes; their batches hold different numbers of items.
            count = torch.as_tensor(count, device=loss.device, dtype=torch.float64)
            sums = torch.stack((objective.detach() * count, count))
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
            mean, total = sums[0] / sums[1], sums[1]
            to_minimize = loss * (count * world_size / total).to(loss.dtype) + (objective - loss)
        self.train_loss.add(mean, total)
        self.log("train_loss", self.train_loss, on_step=True, on_epoch=True, prog_bar=True)
        return to_minimize

    def share_loss(
        self, batch: Any, batch_idx: int, metrics: MetricCollection | None = None
    ) -> tuple[Tensor, int | Tensor]:
        """:meth:`batch_loss` of a process's share of a batch.

        That of no items is 0, with gradients of zeros: the other processes wait for them.
        """
        if isinstance(batch, NoShare):
            nothing: Any = sum((0 * parameter).sum() for parameter in self.parameters() if parameter.requires_grad)
            return nothing, 0
        return self.batch_loss(batch, batch_idx, metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the loss of an epoch is the mean of, so that a run resumed inside of one logs the whole epoch's.

        A task that keeps more calls this too, and :meth:`on_load_checkpoint`.
        """
        checkpoint["epoch_loss"] = self.train_loss.sums()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._epoch_loss_so_far = checkpoint.get("epoch_loss")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch, batch_idx, self.val_metrics)

    def on_validation_end(self) -> None:
        """(Lightning raises its error only after an epoch of training.)"""
        figures = self.trainer.callback_metrics
        for schedule in self.trainer.lr_scheduler_configs if self.trainer.sanity_checking else ():
            name: Any = schedule.monitor
            if schedule.reduce_on_plateau and name not in figures and not is_measured_in_training(name):
                raise ValueError(f"lr_scheduler_monitor must be one of {', '.join(figures)}, got {name!r}")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch, batch_idx, self.test_metrics)

    def _evaluation_step(self, batch: Any, batch_idx: int, metrics: MetricCollection) -> None:
        loss, count = self.share_loss(batch, batch_idx, metrics)
        metrics["loss"].update(loss, weight=count)
        self.log_dict(
            {f"{metrics.prefix}{name}": metric for name, metric in metrics.items(keep_base=True)},
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=int(count),
        )

    def l2_penalty(self) -> Tensor:
        """``l2 / 2 * sum(w^2)`` over the weights that weight decay would act on; its gradient is ``l2 * w``."""
        return l2_penalty(self.decay_partition().decayed.values(), self.hparams.l2)

    # The optimizer --------------------------------------------------------------------------------------------------

    def decay_partition(self) -> DecayPartition:
        """Which parameters weight decay and L2 act on, and which they spare."""
        return partition_parameters(self, self.hparams.decay_embeddings)

    def check_trainer(self, trainer: Trainer) -> None:
        """Raises ValueError where this task cannot be trained by this trainer; called before anything is changed."""
        # Lightning trains 1000 epochs where it has no limit at all, and without an end where it has one of time alone.
        endless = -1 if any(isinstance(callback, Timer) for callback in callbacks_of(trainer)) else 1000
        max_epochs = endless if trainer.max_epochs is None else trainer.max_epochs
        if self.hparams.lr_schedule == "cosine" and max_epochs == trainer.max_steps == -1:
            raise ValueError(COSINE_NEEDS_AN_END)
        optimizer = self._new_optimizer()
        if self.hparams.lr_scheduler is not None:
            self._new_scheduler(optimizer)

    def _new_optimizer(self) -> Optimizer:
        return build_optimizer(
            self.decay_partition(),
            self.hparams.optimizer,
            lr=self.hparams.lr,
            weight_decay=self.hparams.weight_decay,
            momentum=self.hparams.momentum,
        )

    def _new_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """That of ``lr_scheduler``."""
        spec = self.hparams.lr_scheduler
        try:
            scheduler: LRScheduler = build(LR_SCHEDULER, spec, optimizer)
            return scheduler
        except TypeError as error:  # an argument is missing
            reason = str(error).rpartition("__init__() ")[2]
        except ValueError as error:
            reason = str(error)
        reason = reason.removeprefix("lr_scheduler: ")
        raise ValueError(f"lr_scheduler: {spec['class_path']}: {reason}; --model.lr_scheduler.NAME gives an argument")

    def configure_optimizers(self) -> Any:
        if self._trainer is not None:  # without one the optimizers can be looked at too
            self.check_trainer(self.trainer)
        optimizer = self._new_optimizer()
        if self.hparams.lr_scheduler is not None:
            schedule = {
                "scheduler": self._new_scheduler(optimizer),
                "interval": self.hparams.lr_scheduler_interval,
                "monitor": self.hparams.lr_scheduler_monitor,
            }
            return {"optimizer": optimizer, "lr_scheduler": schedule}
        # If this were read here and not in a step, the trainer would open the train loader before a resumed run has set
        # the loader's position.
        factor = learning_rate_factor(
            self.hparams.lr_schedule, self.hparams.warmup_steps, lambda: self.trainer.estimated_stepping_batches
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def to_full_precision(scores: Tensor) -> Tensor:
    """As float32, where they are of half precision."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def default_of(name: str) -> Any:
    """The default of an argument that all tasks have."""
    return parameters_of(RecurrentTask)[name].default
