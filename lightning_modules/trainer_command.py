"""``lstm-fused fit | validate | test | predict``: Lightning's command line with this project's defaults."""

import difflib
import logging
import re
import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.accelerators.cuda import is_cuda_available
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, StochasticWeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.trainer.call import _call_teardown_hook
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lstm_fused
from lightning_modules import callbacks, data, tasks
from lightning_modules.allocator import keep_freed_memory
from lightning_modules.checkpoints import SafeCheckpointIO, load_checkpoint
from lightning_modules.injection import KINDS, RECURRENT, describe, import_class, merge_specs, parameters_of, to_spec
from lightning_modules.launching import run_in_processes, starts_processes
from lightning_modules.limits import check_limits_of_batches, check_limits_of_training, put_int_before_float
from lightning_modules.loggers import LoggerAction, WandbLogger, made_later, run_loggers
from lightning_modules.precision import check_precision
from lightning_modules.resume_options import OF_TRAINING, counts_anew, other_options, settle_options, why_ended
from lightning_modules.runs import checkpoint_file, config_file, folder_of, read_summary, run_folder
from lightning_modules.trainer_parts import callbacks_of

TRAINER_DEFAULTS = {
    "devices": 1,  # of a machine that others use too; and one process trains what one process says
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,  # RunSummary says what there is
    # Lightning's own sampler would shuffle, which breaks the carried state without an error; our loader shards itself.
    "use_distributed_sampler": False,
}
EARLY_STOPPING_DEFAULTS = {"monitor": "val_loss", "mode": "min", "patience": 5, "min_delta": 0.0, "strict": True}
DIVERGED_ADVICE = "lower the learning rate, or clip gradients (trainer.gradient_clip_val)"


def run(command: str, arguments: list[str]) -> int:
    """Runs one of Lightning's subcommands on command line arguments."""
    silence()
    on_rank: Any = rank_zero_only  # a function with an attribute
    if command == "predict" and on_rank.rank and not {"-h", "--help"} & set(arguments):
        return 0  # under torchrun: the first process predicts it all
    if (help_text := spec_help(arguments)) is not None:
        print(help_text)
        return 0
    _new_command(TrainerCommand, command, arguments)
    return 0


def _new_command(cls: type["TrainerCommand"], command: str, arguments: list[str]) -> "TrainerCommand":
    return cls(
        command,
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=OneSentenceParser,
        save_config_callback=SaveConfig,
        trainer_defaults={"accelerator": default_accelerator()[0], **TRAINER_DEFAULTS},
        seed_everything_default=1,
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "lstm-fused"},
        args=[command, *expand_arguments(command, arguments)],
    )


def parse_fit(arguments: list[str]) -> Any:
    """The options that a fit with these arguments would have, defaults and all; nothing else is done."""

    class Parsed(TrainerCommand):
        def instantiate_classes(self) -> None:
            pass

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    silence()
    return _new_command(Parsed, "fit", arguments).config["fit"]


def default_accelerator() -> tuple[str, str]:
    """``auto`` where there is a GPU and this package's kernels for it, ``cpu`` elsewhere; and a line that says why."""
    if not is_cuda_available():  # which leaves CUDA alone: processes may be forked yet
        return "cpu", "on the CPU: torch finds no GPU that it has CUDA for"
    if (reason := lstm_fused.cuda.unavailable()) is not None:
        return "cpu", f"on the CPU (--trainer.accelerator gpu for the GPU): {reason}"
    return "auto", "on the GPU (--trainer.accelerator cpu for the CPU)"


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
    """The text for ``--model.recurrent.help [CLASS]`` and similar options; ``None`` if no such option is given."""
    for position, option in enumerate(arguments):
        name, _, word = option.partition("=")
        for kind in KINDS.values():
            if name == f"--model.{kind.name}.help":
                following = arguments[position + 1 : position + 2]
                word = word or next((each for each in following if not each.startswith("-")), "")
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

    def dump(self, *args: Any, **options: Any) -> str:
        """What is written was checked when it was parsed: a second and a third time would cost a fit its start."""
        text: str = super().dump(*args, **options | {"skip_validation": True})
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        first, _, rest = message.partition("\n")
        _, _, causes = rest.partition("Errors:\n")
        if causes:  # the message also lists all attempts and all values: keep the causes only
            causes, _, given = causes.partition("Given value")
            given = given.rpartition("Given value: ")[2].strip()
            each = [cause.strip() for cause in causes.split("- ")]
            message = f"{first} {'; '.join(cause for cause in each if cause and 'NoneType' not in cause)}"
            if "Got value" not in message and "(" not in given and len(given) < 80:  # a plain value
                message += f". Got value: {given}"
        message = " ".join(message.split())
        unknown = re.search(r"(?:ption '|arguments: --)([\w.]+)", message)
        if unknown and "did you mean" not in message:
            name, names = unknown[1].rpartition(".")[2], _option_names()
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
            if name in names:
                message += "; it is one of another class"
            elif close:
                message += f"; did you mean '{close[0]}'?"
        raise ValueError(message) from ex


def _option_names() -> list[str]:
    """The names of all arguments of the trainer, the models, the data modules and the early stopping."""
    classes = [Trainer, callbacks.EarlyStopping, callbacks.LastCheckpoint]
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

    command: str  # the only one whose parser is made, which takes a while
    checkpoint: dict[str, Any] | None = None
    new_options: Collection[str] = frozenset()  # of the model, which act in spite of the checkpoint
    unfinished: Path | None = None  # the folder of a run that is trained, and lacks what comes after
    diverged: callbacks.TrainingDiverged | None = None

    def __init__(self, command: str, *args: Any, **options: Any) -> None:
        self.command = command
        super().__init__(*args, **options)

    def _of_this_command(self) -> dict[str, set[str]]:
        return {self.command: LightningCLI.subcommands()[self.command]}

    subcommands: Any = _of_this_command  # a static method of Lightning's

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_core_arguments_to_parser(parser)
        for action in parser._actions:
            if action.dest.startswith("trainer."):
                put_int_before_float(action)
            if action.dest == "trainer.logger":
                action.__class__ = LoggerAction

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="the run's folder is RUNS/NAME/version_N")
        parser.add_argument("--runs", type=str, default="runs", help="the folder that holds all runs")
        parser.add_lightning_class_args(callbacks.EarlyStopping, "early_stopping")
        parser.set_defaults({f"early_stopping.{name}": value for name, value in EARLY_STOPPING_DEFAULTS.items()})
        parser.add_class_arguments(callbacks.LastCheckpoint, "last_checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.given = {word.partition("=")[0] for word in args if word.startswith("--")}
        self.config = parser.parse_args(args)  # without Lightning's warning that sys.argv was not used

    def _parse_ckpt_path(self) -> None:
        """Settles which options are the checkpoint's, and says which of those given differ.

        The model's are, since its weights fit no others; but a fit that goes on may be given others of training.
        (Lightning takes the checkpoint's without a word, and with whatever class the file names.)
        """
        command = self.config.subcommand
        config = self.config[command]
        if config.ckpt_path is None:
            return
        self.checkpoint = load_checkpoint(config.ckpt_path)
        task, data_class = (import_class(RECURRENT, part.class_path) for part in (config.model, config.data))
        lines: list[str] = []
        if issubclass(task, tasks.RecurrentTask):
            saved = task.hparams_of(self.checkpoint)
            for kind in KINDS.values():  # as the checkpoint has them
                if config.model.init_args.get(kind.name) is not None:
                    config.model.init_args[kind.name] = to_spec(kind, config.model.init_args[kind.name])
            given = {name.rpartition(".")[2] for name in self.given if name.startswith("--model.")}
            acting: Collection[str] = given & set(OF_TRAINING) if command == "fit" else ()
            lines, self.new_options = settle_options(config.model.init_args, saved, "model.", acting)
        if command == "fit":
            saved = self.checkpoint.get("datamodule_hyper_parameters") or {}
            settled = {name: saved[name] for name in getattr(data_class, "settled", ()) if name in saved}
            lines += settle_options(config.data.init_args, settled, "data.")[0]
            seed = self.checkpoint.get("callbacks", {}).get("RNGState", {}).get("seed")
            if seed is not None and config.seed_everything is not False:
                config.seed_everything = None if config.seed_everything is True else config.seed_everything
                lines += settle_options(config, {"seed_everything": seed}, "")[0]
        for line in lines:
            rank_zero_only(print)(line)
        self._parser(command).validate(config)

    def before_instantiate_classes(self) -> None:
        self.parser.add_instantiator(made_later, Logger, subclasses=True)

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise ValueError(f"seed_everything must be true, false or in [0, 2**32), got {seed}")
        super()._set_seed()

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if self.checkpoint is not None and (state := self.checkpoint.get(type(self.datamodule).__qualname__)):
            self.datamodule.load_state_dict(state)
        # Errors in data, sizes and limits are raised here, before a folder is created for the run.
        self.datamodule.setup(self.subcommand)
        self.model.build(self.datamodule)
        self.model.run_options = self._run_options()
        stages = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        if self.subcommand == "fit" and self.datamodule.has_test():
            self.datamodule.setup("test")
            stages["fit"] += ("test",)
        if self.subcommand == "fit":
            check_limits_of_training(self.trainer)
            self.model.check_trainer(self.trainer)
            if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks_of(self.trainer)):
                raise ValueError(
                    "trainer.callbacks must not have StochasticWeightAveraging, whose average comes after the last "
                    "validation, so that it could not be the best: WeightAveraging and EMAWeightAveraging validate "
                    "theirs"
                )
        command: Any = self.subcommand
        check_limits_of_batches(self.trainer, self.datamodule, stages[command])
        check_precision(self.trainer, self.model, self.datamodule, command)
        if self.subcommand == "fit" and self.trainer.loggers and not self.unfinished:
            self._make_folder_of_runs()

    def _make_folder_of_runs(self) -> None:
        folder = Path(self._get(self.config, "runs"), self._get(self.config, "name"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"runs and name must make a folder to write to, got '{folder}': {error.strerror}") from error

    def instantiate_trainer(self, **options: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        self.interruption = callbacks.Interruption()
        extra: list[Callback] = [self.interruption]
        if given.enable_progress_bar is not False:
            extra.append(callbacks.ProgressBar())
        if self.subcommand == "fit":
            accelerator, why = default_accelerator()
            if given.accelerator == accelerator:
                rank_zero_only(print)(why)
            stopping = self._get(self.config_init, "early_stopping")
            kept: dict[str, Any] = {}
            if self.checkpoint is not None and (reason := why_ended(self.checkpoint, given, stopping)):
                kept = self._kept_of_the_run(reason)
            if self.checkpoint is not None and (line := counts_anew(self.checkpoint, stopping)):
                rank_zero_only(print)(line)
            # The order matters: the best weights are restored before they are put to any use, and the last checkpoint
            # knows what the best is.
            extra += [
                callbacks.RNGState(),
                callbacks.Divergence(),
                callbacks.BestCheckpoint(stopping.monitor, stopping.mode),
                self._get(self.config_init, "last_checkpoint"),
                callbacks.LearningCurves(),
                callbacks.RestoreBest(),
                callbacks.RunSummary(kept),
                callbacks.OptimizerFlags(self.new_options),
            ]
        if self.subcommand != "fit" or self.unfinished:  # nothing is trained: no run, no folder
            self.save_config_callback = None
        loggers: Any = False
        if self.unfinished or (self.subcommand == "fit" and not given.fast_dev_run):
            loggers = self._loggers(given.logger)
        if loggers and not self.unfinished:
            extra.append(LearningRateMonitor(logging_interval="step"))
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": extra}
        if self.subcommand == "predict":
            options |= in_one_process(given)
        plugins = given.plugins if isinstance(given.plugins, list) else [given.plugins] if given.plugins else []
        return super().instantiate_trainer(logger=loggers, plugins=[*plugins, SafeCheckpointIO()], **options)

    def _kept_of_the_run(self, reason: str) -> dict[str, Any]:
        """The summary of the checkpoint's run, which is trained: the command is to finish it.

        Raises ValueError with the ``reason`` why there is nothing to train where it is finished.
        """
        folder = run_folder(self._get(self.config, "ckpt_path"))
        kept = read_summary(folder)
        tests = self.datamodule.has_test() and self._get(self.config_init, "trainer").limit_test_batches != 0
        if kept and ("test" in kept or not tests):
            raise ValueError(reason)
        saved = (self.checkpoint or {}).get("datamodule_hyper_parameters") or {}
        for name, value, given in other_options(saved, self.datamodule.hparams):
            raise ValueError(f"data.{name} must be {value!r}, as in the run that is to be finished, got {given!r}")
        rank_zero_only(print)(f"All is trained: what is missing in {folder} is made now.")
        self.unfinished = folder
        return kept

    def _run_options(self) -> dict[str, Any]:
        """Options that are neither the model's nor the data's, which distinguish a run from others."""
        trainer = self._get(self.config, "trainer")
        return {
            "seed_everything": self._get(self.config, "seed_everything"),
            "gradient_clip_val": trainer.gradient_clip_val,
            "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
            "early_stopping": self._get(self.config, "early_stopping").as_dict(),
        }

    def _loggers(self, given: Any) -> list[Logger]:
        """Those of the run, in its folder; only W&B and ``metrics.csv`` are gone on with in that of another process."""
        loggers = [] if given in (None, True, False) else list(given) if isinstance(given, (list, tuple)) else [given]
        name, checkpoint = (self._get(self.config, option) for option in ("name", "ckpt_path"))
        folder = self.unfinished
        if folder is None:
            folder = Path(CSVLogger(self._get(self.config, "runs"), name).log_dir)
        else:
            loggers = [logger for logger in loggers if issubclass(logger.func, WandbLogger)]
        return run_loggers(loggers, folder, name, None if checkpoint is None else run_folder(checkpoint))

    def _run_subcommand(self, subcommand: str) -> None:
        silence()  # a process that has just been spawned is not
        if subcommand == "fit":
            keep_freed_memory()
        if starts_processes(self.trainer):
            run_in_processes(self.trainer, self.model, partial(self._run_subcommand, subcommand))
            return
        try:
            super()._run_subcommand(subcommand)
        except (SystemExit, KeyboardInterrupt, callbacks.TrainingDiverged):
            if self.trainer.is_global_zero or self.trainer.strategy.launcher is None:
                raise
            # Process 0 says what has happened; Lightning would kill it if another ended with a code other than 0 first.

    def fit(self, **options: Any) -> None:
        try:
            self.trainer.fit(**options)
        except callbacks.TrainingDiverged as error:  # raised after the best weights so far have been tested
            self.diverged = error
            _call_teardown_hook(self.trainer)  # which Lightning leaves out after an error: a test follows

    def after_fit(self) -> None:
        """Tests the best weights, which :class:`callbacks.RestoreBest` has put into the model."""
        folder = folder_of(self.trainer)
        how_to_finish = f"All is trained; fit -c {folder} --ckpt_path last makes the test."
        if self.interruption.interrupted or self.trainer.received_sigterm:  # after the last batch of all
            self.trainer.print(how_to_finish)
            raise KeyboardInterrupt if self.interruption.interrupted else SIGTERMException
        kept = callbacks.best_checkpoint(self.trainer)
        assert kept is not None  # this command adds one to every fit
        best = kept.best
        if self.diverged is not None and best is None:
            raise callbacks.TrainingDiverged(f"{self.diverged}; no weights were validated before; {DIVERGED_ADVICE}")
        if not self.datamodule.has_test():
            self.trainer.print("There is no test split, so nothing was tested.")
        elif self.trainer.limit_test_batches == 0:
            self.trainer.print("trainer.limit_test_batches is 0, so nothing was tested.")
        else:
            try:
                self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            except (SystemExit, KeyboardInterrupt):
                self.trainer.print(how_to_finish)
                raise
        if self.trainer.received_sigterm:  # in the test's last batch
            raise SIGTERMException
        if self.diverged is not None and best is not None:
            place = f"of epoch {best['epoch']}, step {best['step']}"
            raise callbacks.TrainingDiverged(f"{self.diverged}; best.ckpt has the weights {place}; {DIVERGED_ADVICE}")
        if folder is not None:
            self.trainer.print(f"The run is in {folder}")

    def predict(self, **options: Any) -> None:
        """Writes what the task makes of the data to predict, into the run's folder."""
        batches = self.trainer.predict(**options)
        print(self.model.write_predictions(batches, self.datamodule, run_folder(options["ckpt_path"])))


def in_one_process(given: Any) -> dict[str, Any]:
    """The trainer's arguments with which one process predicts, whatever others trained the run; a line says so.

    Each of several processes would have a share of the predictions, which are written in the order of the data.

    Args:
        given: the trainer's arguments.
    """
    devices = given.devices
    if isinstance(devices, str) and "," in devices:  # numbers of devices, as a list
        devices = [int(number) for number in devices.split(",") if number.strip()]
    one = devices[:1] if isinstance(devices, list) else 1
    if given.num_nodes > 1 or devices not in ("auto", "1", 1, one):
        rank_zero_only(print)(f"predict runs in one process: trainer.devices {given.devices} is left aside")
    return {"devices": one, "num_nodes": 1, "strategy": "auto"}


def silence() -> None:
    """Leaves out what a run's user can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # it warns that it makes something
    for message in (
        ".*LeafSpec.*",
        ".*all_gather is deprecated.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*does not have many workers.*",
        ".*tensorboardX.*",
        ".*is smaller than the logging interval.*",
        ".*WeightAveraging doesn't support sharding.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # that of a run that is finished
    ):
        warnings.filterwarnings("ignore", message=message)
