"""``lstm-fused fit | validate | test | predict``: Lightning's command line with this project's defaults."""

import difflib
import logging
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_modules import callbacks, data, tasks
from lightning_modules.checkpoints import SafeCheckpointIO, load_checkpoint
from lightning_modules.injection import KINDS, RECURRENT, describe, import_class, merge_specs, parameters_of
from lightning_modules.launching import run_in_processes, starts_processes
from lightning_modules.loggers import WandbLogger
from lightning_modules.precision import check_precision
from lightning_modules.runs import checkpoint_file, config_file, folder_of, run_folder

TRAINER_DEFAULTS = {
    "accelerator": "cpu",  # where the fused kernel runs
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,  # RunSummary says what there is
    # Lightning's own sampler would shuffle, which breaks the carried state without an error; our loader shards itself.
    "use_distributed_sampler": False,
}
EARLY_STOPPING_DEFAULTS = {"monitor": "val_loss", "mode": "min", "patience": 5, "min_delta": 0.0, "strict": True}


def run(command: str, arguments: list[str]) -> int:
    """Runs one of Lightning's subcommands on command line arguments."""
    silence()
    if (help_text := spec_help(arguments)) is not None:
        print(help_text)
        return 0
    TrainerCommand(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=OneSentenceParser,
        save_config_callback=SaveConfig,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=1,
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "lstm-fused"},
        args=[command, *expand_arguments(command, arguments)],
    )
    return 0


def expand_arguments(command: str, arguments: list[str]) -> list[str]:
    """Spells out configs that are given by a bare name or by a run's folder, and ``--ckpt_path best | last``.

    ``best`` and ``last`` are those of the run whose folder or config.yaml is given with ``-c``. A run's folder as
    ``--ckpt_path`` means its last checkpoint for a fit, which goes on from there, and its best for anything else.
    """
    options = _split_equals(arguments)
    run: Path | None = None
    has_config = False
    for position, option in enumerate(options[:-1]):
        if option in ("-c", "--config"):
            path = config_file(options[position + 1])
            options[position + 1] = str(path)
            has_config = True
            run = path.parent if (path.parent / "checkpoints").is_dir() else run
    for position, option in enumerate(options[:-1]):
        if option == "--ckpt_path":
            given = options[position + 1]
            if given in ("best", "last", "interrupted"):
                if run is None:
                    raise ValueError(f"--ckpt_path {given} needs a run to be that of: give its folder with -c")
                options[position + 1] = str(checkpoint_file(run, given))
            else:
                options[position + 1] = str(checkpoint_file(given, "last" if command == "fit" else "best"))
    if not {"-h", "--help"} & set(options):
        if not has_config and not any(option.partition("=")[0] == "--model" for option in options):
            raise ValueError(f"'{command}' needs a config: -c char_lm, -c word_lm, or a YAML file of your own")
        if command != "fit" and "--ckpt_path" not in options:
            raise ValueError(f"'{command}' needs weights: --ckpt_path best, with the run's folder as -c, or a file")
    options, notes = merge_specs(options, {"recurrent": "fused", "optimizer": "adamw", "lr_scheduler": None})
    for note in notes:
        rank_zero_only(print)(note)
    return options


def spec_help(arguments: list[str]) -> str | None:
    """What ``--model.recurrent.help [CLASS]`` and its like ask for; ``None`` where nothing is asked."""
    for position, option in enumerate(arguments):
        name, _, word = option.partition("=")
        for kind in KINDS.values():
            if name == f"--model.{kind.name}.help":
                word = word or next(iter(arguments[position + 1 :]), "")
                return describe(kind, word or ("fused" if kind is RECURRENT else "adamw"))
    return None


def _split_equals(arguments: list[str]) -> list[str]:
    """``--config=x`` and ``--ckpt_path=x`` as two words, like all the others."""
    words: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        words += [name, value] if equals and name in ("-c", "--config", "--ckpt_path") else [argument]
    return words


class OneSentenceParser(LightningArgumentParser):
    """Tells a mistake in one line, with the name that may have been meant; takes no option by its beginning alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> None:
        first, _, rest = message.partition("\n")
        _, _, causes = rest.partition("Errors:\n")
        if causes:  # all that was tried and all that was given is told too: the causes are enough
            causes, _, given = causes.partition("Given value")
            given = given.rpartition("Given value: ")[2].strip()
            causes = [cause.strip() for cause in causes.split("- ")]
            message = f"{first} {'; '.join(cause for cause in causes if cause and 'NoneType' not in cause)}"
            if "Got value" not in message and "(" not in given and len(given) < 80:  # a plain value
                message += f". Got value: {given}"
        message = " ".join(message.split())
        unknown = re.search(r"(?:ption '|arguments: --)([\w.]+)", message)
        if unknown and "did you mean" not in message:
            close = difflib.get_close_matches(unknown[1].rpartition(".")[2], _option_names(), n=1, cutoff=0.7)
            message += f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(message) from ex


def _option_names() -> list[str]:
    """The names of all arguments of the trainer, the models, the data modules and the early stopping."""
    classes = [Trainer, EarlyStopping]
    for module in (tasks, data):
        classes += [value for value in map(module.__dict__.get, module.__all__) if isinstance(value, type)]
    return [name for cls in classes for name in parameters_of(cls)] + ["model", "data", "trainer"]


class SaveConfig(SaveConfigCallback):
    """Keeps the config in the run's folder, but not where the run was resumed from: a test of it is another matter."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **options: Any) -> None:
        config = config.clone()
        config.ckpt_path = None
        super().__init__(parser, config, **options)


class TrainerCommand(LightningCLI):
    """Adds to LightningCLI: the run's folder, the callbacks of every run, the test after a fit, checked checkpoints."""

    checkpoint: dict[str, Any] | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="the run's folder is RUNS/NAME/version_N")
        parser.add_argument("--runs", type=str, default="runs", help="the folder that holds all runs")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults({f"early_stopping.{name}": value for name, value in EARLY_STOPPING_DEFAULTS.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # without Lightning's warning that sys.argv was not used

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's model arguments win over the config's, since its weights fit no others; say which differ.

        (Lightning does it without a word, and with whatever class the file names.)
        """
        config = self.config[self.config.subcommand]
        if config.ckpt_path is None:
            return
        self.checkpoint = load_checkpoint(config.ckpt_path)
        given = config.model.init_args
        task = import_class(RECURRENT, config.model.class_path)
        if not issubclass(task, tasks.RecurrentTask):
            return
        for name, saved in task.hparams_of(self.checkpoint).items():
            saved = tuple(saved) if isinstance(saved, list) else saved
            if name in given and given[name] != saved:
                if given[name] is not None:
                    rank_zero_only(print)(f"model.{name} is {saved!r}, as in the checkpoint, not {given[name]!r}")
                given[name] = saved
        self._parser(self.config.subcommand).validate(config)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if self.checkpoint is not None and (state := self.checkpoint.get(type(self.datamodule).__qualname__)):
            self.datamodule.load_state_dict(state)
        # Bad data and bad sizes are told here, before a folder is made for the run.
        self.datamodule.setup(self.subcommand)
        self.model.build(self.datamodule)
        if self.subcommand == "fit":
            _check_that_there_is_more_to_train(self.trainer, self.checkpoint)
            if self.datamodule.has_test():
                self.datamodule.setup("test")
        check_precision(self.trainer, self.model, self.datamodule, self.subcommand)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        self.interruption = callbacks.Interruption()
        extra: list[Callback] = [self.interruption]
        if given.enable_progress_bar is not False:
            extra.append(callbacks.ProgressBar())
        if self.subcommand == "fit":
            # The order matters: the best weights are restored before they are put to any use.
            extra += [
                callbacks.RNGState(),
                callbacks.BestCheckpoint(
                    self._get(self.config, "early_stopping.monitor"), self._get(self.config, "early_stopping.mode")
                ),
                callbacks.LastCheckpoint(),
                callbacks.LearningCurves(),
                callbacks.RestoreBest(),
                callbacks.RunSummary(),
            ]
        else:  # nothing is trained: no run, no folder
            self.save_config_callback = None
        loggers = self._loggers(given.logger) if self.subcommand == "fit" and not given.fast_dev_run else False
        if loggers:
            extra.append(LearningRateMonitor(logging_interval="step"))
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": extra}
        plugins = given.plugins if isinstance(given.plugins, list) else [given.plugins] if given.plugins else []
        return super().instantiate_trainer(logger=loggers, plugins=[*plugins, SafeCheckpointIO()], **options)

    def _loggers(self, given: Any) -> list[Logger]:
        """The CSV logger, whose folder is the run's, and then those of the config."""
        first = CSVLogger(save_dir=self._get(self.config, "runs"), name=self._get(self.config, "name"))
        others = [] if given in (None, True, False) else list(given) if isinstance(given, (list, tuple)) else [given]
        for logger in others:
            if isinstance(logger, WandbLogger):
                logger.set_default_name(f"{first.name}/version_{first.version}")
        return [first, *others]

    def _run_subcommand(self, subcommand: str) -> None:
        silence()  # a process that has just been spawned is not
        if starts_processes(self.trainer):
            run_in_processes(self.trainer, self.model, partial(self._run_subcommand, subcommand))
            return
        try:
            super()._run_subcommand(subcommand)
        except (SystemExit, KeyboardInterrupt):
            if self.trainer.is_global_zero or self.trainer.strategy.launcher is None:
                raise
            # Process 0 says what has happened; Lightning would kill it if another ended with a code other than 0 first.

    def after_fit(self) -> None:
        """Tests the best weights, which :class:`callbacks.RestoreBest` has put into the model."""
        if self.interruption.interrupted:  # after the last batch of all
            raise KeyboardInterrupt
        if self.trainer.received_sigterm:
            raise SIGTERMException
        if self.trainer.fast_dev_run:
            return
        if self.datamodule.has_test():
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        else:
            self.trainer.print("There is no test split, so nothing was tested.")
        self.trainer.print(f"The run is in {folder_of(self.trainer)}")

    def predict(self, **options: Any) -> None:
        """Writes what the task makes of the data to predict, into the run's folder."""
        batches = self.trainer.predict(**options)
        print(self.model.write_predictions(batches, self.datamodule, run_folder(options["ckpt_path"])))


def _check_that_there_is_more_to_train(trainer: Trainer, checkpoint: dict[str, Any] | None) -> None:
    """(Lightning would make a folder for the run, train nothing, and not say so.)"""
    loops = (checkpoint or {}).get("loops")
    if not loops:
        return
    epochs = loops["fit_loop"]["epoch_progress"]["current"]["processed"]
    for name, limit, done in (
        ("epochs", trainer.max_epochs, epochs),
        ("steps", trainer.max_steps, checkpoint["global_step"]),
    ):
        if limit is not None and 0 <= limit <= done:
            raise ValueError(
                f"trainer.max_{name} must be more than the {done} that the checkpoint's run has had, got {limit}"
            )


def silence() -> None:
    """Leaves out what a run's user can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*all_gather is deprecated.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*does not have many workers.*",
        ".*tensorboardX.*",
        ".*is smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)
