"""Plain text from files, folders and globs, and the text that every Python ships."""

import glob
import re
from pathlib import Path

# The name parts by which a folder's files say which split they are: train.txt, wiki.valid.tokens, ptb-test.txt, ...
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def default_text() -> str:
    """The help pages of Python's own ``pydoc``, in alphabetical order: about 465,000 characters of English prose."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise FileNotFoundError(
            "this Python comes without pydoc_data, the default text; give a text of your own with --data.path"
        ) from None
    return "\n".join(topics[name] for name in sorted(topics))


def list_files(path: str | Path) -> list[Path]:
    """The files that ``path`` means, sorted: a file, every file of a folder and its sub-folders, or a glob's matches.

    Files and folders whose name starts with a dot are left out of a folder. Raises FileNotFoundError when there is
    none.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        files = [
            file
            for file in sorted(given.rglob("*"))
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(given).parts)
        ]
        if not files:
            raise FileNotFoundError(f"the folder '{path}' has no files")
        return files
    files = [Path(match) for match in sorted(glob.glob(str(given), recursive=True)) if Path(match).is_file()]
    if not files:
        raise FileNotFoundError(f"there is no file, folder or match of a glob at '{path}'")
    return files


def find_splits(path: str | Path) -> dict[str, list[Path]]:
    """The files of ``path`` by split, where it is a folder with files named after both train and valid; else {}.

    Keys are ``train``, ``valid`` and, where there is one, ``test``; a file that names no split is left out.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return {}
    splits: dict[str, list[Path]] = {}
    for file in list_files(folder):
        words = re.split(r"[^a-z0-9]+", file.name.lower())
        for split, names in SPLIT_NAMES.items():
            if any(name in words for name in names):
                splits.setdefault(split, []).append(file)
                break
    return splits if {"train", "valid"} <= splits.keys() else {}


def read_files(files: list[Path], encoding: str = "utf-8") -> str:
    """The files' text, joined with a line break where one lacks it; line ends are read as ``\\n``.

    Raises OSError when one cannot be read and ValueError when one cannot be decoded.
    """
    texts = []
    for file in files:
        try:
            text = file.read_text(encoding=encoding)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"'{file}' is not {encoding} text (byte {error.start} cannot be decoded); name its encoding with "
                f"--data.encoding, or leave the file out"
            ) from None
        except LookupError:
            raise ValueError(f"unknown encoding {encoding!r}; want a name that Python knows, such as 'utf-8'") from None
        texts.append(text.removeprefix("\ufeff"))  # a byte order mark is no symbol of the text
    return "".join(
        text if text.endswith("\n") or position == len(texts) - 1 else text + "\n"
        for position, text in enumerate(texts)
    )
