"""The parser of the commands that are not Lightning's."""

import argparse
from typing import Any, NoReturn


class _WithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """Tells a mistake like every other error, without the list of all options; takes no option by its beginning alone.

    Args:
        command: the word after ``lstm-fused``.
        description: what it does, for ``--help``, which shows the defaults too.
        **options: those of ArgumentParser.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"lstm-fused {command}",
            description=description,
            formatter_class=_WithDefaults,
            allow_abbrev=False,
            **options,
        )

    def add_run(self, **options: Any) -> None:
        """The arguments ``run`` and ``--checkpoint``, as :func:`lightning_modules.load_run` takes them."""
        self.add_argument("run", help="a run's folder, such as runs/char_lm/version_0, or a checkpoint file", **options)
        self.add_argument("--checkpoint", default="best", help="which of the run's: best, last or interrupted")

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
