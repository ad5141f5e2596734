"""``lstm-fused sample``: text from a trained language model."""

import argparse
import inspect
import sys
from pathlib import Path

from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.data import TextDataModule, Vocabulary
from lightning_modules.data.vocabulary import UNKNOWN
from lightning_modules.generation import generate
from lightning_modules.models import LanguageModel, LanguageModelTask
from lightning_modules.runs import checkpoint_file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lstm-fused sample",
        description="Draw text from a language model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", help="a run's folder, such as runs/char_lm/version_0, or a checkpoint file")
    parser.add_argument("--checkpoint", default="best", help="which of the run's: best, last or interrupted")
    parser.add_argument("--prompt", default="", help="the text to go on from")
    parser.add_argument("--length", type=int, default=500, help="how many tokens to draw")
    parser.add_argument("--temperature", type=float, default=0.8, help="below 1 is more careful, 0 takes the likeliest")
    parser.add_argument("--top-k", "--top_k", type=int, help="draw from the k likeliest tokens; all if not given")
    parser.add_argument("--top-p", "--top_p", type=float, default=1.0, help="draw from the likeliest that sum to p")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    return parser


def run(command: str, arguments: list[str]) -> int:
    options = build_parser().parse_args(arguments)
    net, vocabulary = load_language_model(checkpoint_file(options.run, options.checkpoint))
    if unknown := vocabulary.unknown_tokens(options.prompt):
        names = ", ".join(map(repr, unknown))
        print(f"The model does not know {names} of the prompt and takes each for {UNKNOWN}.", file=sys.stderr)
    text = generate(
        net,
        vocabulary,
        prompt=options.prompt,
        length=options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    print(text)
    return 0


def load_language_model(path: str | Path) -> tuple[LanguageModel, Vocabulary]:
    """The net and the vocabulary of a checkpoint of :class:`LanguageModelTask`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a sound checkpoint of a language model.
    """
    checkpoint = load_checkpoint(path)
    try:
        vocabulary = Vocabulary(**checkpoint[TextDataModule.__qualname__]["vocabulary"])
        known = inspect.signature(LanguageModelTask).parameters
        hparams = {name: value for name, value in checkpoint["hyper_parameters"].items() if name in known}
        task = LanguageModelTask(**hparams | {"vocab_size": len(vocabulary)})
        task.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"'{path}' is not a sound checkpoint of a language model: {reason}") from error
    return task.net.eval(), vocabulary
