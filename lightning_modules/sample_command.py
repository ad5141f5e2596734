"""``lstm-fused sample``: what a trained model makes up."""

from lightning_modules.arguments import CommandParser
from lightning_modules.loading import load_run
from lightning_modules.runs import run_folder
from lightning_modules.tasks import LanguageModelTask


def run(command: str, arguments: list[str]) -> int:
    parser = CommandParser(
        command,
        "Draw samples from a trained model. With a run's name --help lists the options of its task, "
        "without one those of a language model.",
        add_help=False,
    )
    parser.add_run(nargs="?")
    parser.add_argument("-h", "--help", action="store_true", help="this list")
    options, _ = parser.parse_known_args(arguments)
    if options.run is None:
        LanguageModelTask.add_sample_arguments(parser)
        parser.print_help()
        return 0 if options.help else 2
    loaded = load_run(options.run, options.checkpoint)
    type(loaded.task).add_sample_arguments(parser)
    if options.help:
        parser.print_help()
        return 0
    print(loaded.task.sample(loaded.data, parser.parse_args(arguments), run_folder(loaded.checkpoint)))
    return 0
