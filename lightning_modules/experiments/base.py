"""What an experiment says of itself: its variants, what its report looks at, and what follows from the figures."""

import contextlib
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning_modules.experiments.plan import Variants

if TYPE_CHECKING:
    from lightning_modules.experiments.plan import Run
    from lightning_modules.experiments.report import Report, Result
    from lightning_modules.tasks import RecurrentTask


class Config:
    """What the arguments of a fit come to, as the command line reads them.

    Args:
        arguments: of ``lstm-fused fit``. Errors in them are raised as there.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        from lightning_modules.trainer_command import parse_fit

        self.arguments = list(arguments)
        with contextlib.redirect_stdout(sys.stderr):
            self.parsed: Any = parse_fit(self.arguments)
        if self.parsed.trainer.fast_dev_run:
            raise ValueError("trainer.fast_dev_run keeps no run to report on; --quick is short too")

    @cached_property
    def task(self) -> "RecurrentTask":
        """The task, whose net is not built."""
        from lightning_modules.injection import RECURRENT, import_class

        model = self.parsed.model
        task: RecurrentTask = import_class(RECURRENT, model.class_path)(**model.init_args.as_dict())
        return task

    @cached_property
    def built_task(self) -> "RecurrentTask":
        """The task with the net for its data, which is read for that."""
        from lightning_modules.injection import RECURRENT, import_class

        task = self.task
        with contextlib.redirect_stdout(sys.stderr):
            data = import_class(RECURRENT, self.parsed.data.class_path)(**self.parsed.data.init_args.as_dict())
            data.setup("fit")
            task.build(data)
        return task

    def option(self, name: str, value: Any) -> str:
        """The argument that sets an option of the model, spelled as the command line spells it where it does.

        (One setting given by its short and by its long form with two values is an error.)
        """
        long = f"--model.recurrent.{name}"
        given = any(word.partition("=")[0] == long for word in self.arguments)
        return f"{long if given else f'--model.{name}'}={value}"


def count_parameters(task: "RecurrentTask", **changes: Any) -> int:
    """Of the task's net, if its options were changed; those that its data gives must be known."""
    import torch

    options = type(task).hparams_of({"hyper_parameters": dict(task.hparams)}) | changes
    with torch.device("meta"):  # which takes no memory
        return sum(parameter.numel() for parameter in type(task)(**options).net.parameters())


class Experiment:
    """Base class of all experiments.

    Attributes:
        verb: its name on the command line.
        help: what it shows, in a sentence or two.
        seeds: how many by default.
        common: arguments of all of its runs, before those of the command line.
        quick: likewise, of ``--quick``: minutes.
        compares: whether the report shows each variant's curves and its differences to the baseline.
        shows_samples: whether the report shows what the models draw, where they do.
    """

    verb: str
    help: str
    seeds = 5
    shows_samples = False
    compares = True
    common: tuple[str, ...] = ()
    quick: tuple[str, ...] = (
        "--trainer.max_epochs=3",
        "--trainer.limit_train_batches=100",
        "--trainer.limit_val_batches=20",
        "--trainer.limit_test_batches=20",
    )

    def check(self, arguments: Sequence[str]) -> None:
        """Raises ValueError where these arguments of a fit, without those of the experiment, are none for it."""

    def variants(self, config: Config) -> Variants:
        """All variants of a config; the first one is the baseline."""
        raise NotImplementedError

    def default(self, variants: Variants, quick: bool = False) -> Sequence[str]:
        """Those that are run where none are chosen."""
        return list(variants)

    def turn(self, run: "Run") -> int:
        """Runs of a lower turn are run before others; of one turn, seed after seed."""
        return 0

    def needless(self, run: "Run", report: "Report") -> str | None:
        """Why a run need not be made, after what the finished ones of the report have shown; ``None`` if it must be."""
        return None

    def overview(self, report: "Report") -> str:
        """The table of the results."""
        return report.overview()

    def more_figures(self, results: Sequence["Result"]) -> list[dict[str, float]]:
        """Figures of its own for each of the results: they stand in the tables beside the others."""
        return [{} for _ in results]

    def findings(self, report: "Report") -> list[str]:
        """What follows from the figures, in sentences."""
        return report.findings()

    def pictures(self, report: "Report") -> list[tuple[str, str]]:
        """Draws pictures of its own in the plan's folder; the file and a caption of each."""
        return []
