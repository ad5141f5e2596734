"""The parser of the commands that are not Lightning's."""

import argparse
from typing import NoReturn


class OneSentenceParser(argparse.ArgumentParser):
    """Tells a mistake like every other error, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
