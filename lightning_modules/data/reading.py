"""Which files a data set is made of, by split.

:class:`DataFiles` knows nothing of what is in the files: it is what ``--data.path``, ``--data.train``,
``--data.valid`` and ``--data.test`` mean to every data module.
"""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_modules.data.split_names import SPLITS, look_alikes, splits_named
from lightning_modules.data.text_files import not_text
from lightning_modules.terminal import check_text

# No data, wherever they lie: what systems and editors leave, and other runs' results.
_LEFTOVERS = re.compile(r"\..*|thumbs\.db|desktop\.ini|__macosx|__pycache__|.*(~|\.(bak|orig|swp|tmp|part))", re.I)
# About the data, where there is anything else.
_DOCUMENTS = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|changelog|citation|checksums?|(md5|sha\d+)sums?)([._-].*)?", re.I
)


def list_files(path: str | Path) -> list[Path]:
    """The files that ``path`` means, sorted: a file, every file of a folder and its sub-folders, or a glob's matches.

    Where a glob matches folders alone, they stand for their files. Links are followed. Left out of folders and
    matches are hidden files and folders, what systems and editors leave, and the folders of training runs.

    Raises:
        FileNotFoundError: there is none, or a link leads nowhere.
        ValueError: ``path`` is empty, or a pipe or a device.
    """
    files = _list(path)[1]
    check_text(map(str, files), "the name of a file")
    return files


def _list(path: str | Path) -> tuple[Path, list[Path]]:
    """The folder below which the names of files count, and the files."""
    if not str(path):
        raise ValueError("a path of data must name a file, a folder or a glob, got an empty one")
    given = Path(path).expanduser()
    if given.is_file():
        return given.parent, [given]
    if given.is_dir():
        if not (files := list(_files_under(given))):
            raise FileNotFoundError(f"the folder '{path}' has no files")
        return given, files
    if given.exists():
        raise ValueError(
            f"'{path}' is neither a file nor a folder; what a pipe or a device gives can be read only once, "
            f"so write it to a file"
        )
    root = given.parent
    while glob.has_magic(str(root)):
        root = root.parent
    matches = _without_leftovers(map(Path, glob.glob(str(given), recursive=True)), root)
    files = sorted(match for match in matches if match.is_file())
    files = files or sorted(file for match in matches if match.is_dir() for file in _files_under(match))
    if not files:
        raise FileNotFoundError(f"there is no file, folder or match of a glob at '{path}'")
    return root, list(dict.fromkeys(files))


def _files_under(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """The files of a folder and its sub-folders; ``above`` are the folders that it lies in, to which links may lead."""
    identity = _identity(folder)
    if identity in above or (above and _is_run(folder)):
        return
    for entry in sorted(folder.iterdir()):
        if _LEFTOVERS.fullmatch(entry.name):
            continue
        if entry.is_dir():
            yield from _files_under(entry, (*above, identity))
        elif entry.is_file():
            yield entry
        elif entry.is_symlink() and not entry.exists():
            raise FileNotFoundError(f"'{entry}' is a link to '{os.readlink(entry)}', which is not there")


def _without_leftovers(matches: Iterable[Path], root: Path) -> list[Path]:
    """A glob's matches, as far as they are no leftovers and do not lie in a run's folder."""
    inside = {match: match.relative_to(root).parts for match in matches}
    folders = {root.joinpath(*parts[:count]) for parts in inside.values() for count in range(1, len(parts) + 1)}
    runs = {folder for folder in folders if _is_run(folder)}
    return [
        match
        for match, parts in inside.items()
        if not any(map(_LEFTOVERS.fullmatch, parts)) and runs.isdisjoint((match, *match.parents))
    ]


def _is_run(folder: Path) -> bool:
    """Whether it is the folder of a training run: its config, figures and samples are no data."""
    return (folder / "config.yaml").is_file() and (
        (folder / "checkpoints").is_dir() or (folder / "metrics.csv").is_file()
    )


class DataFiles:
    """The files that hold each split of a data set.

    ``train``, ``valid`` and ``test`` are what the user says; of ``path`` the names of its files say it. Rules for a
    folder or a glob as ``path``:

    - A file's split is named by a word of its name, or of a folder's between ``path`` and the file
      (:func:`~lightning_modules.data.split_names.splits_named`). A file that names two splits is an error.
    - Where no file names a split, or all that do name train, they are one whole, to be cut into train, valid and test.
      A single file as ``path`` is a whole, whatever its name.
    - Where train and test are named but not valid, valid is to be cut from train. Where train and valid are named but
      not test, there is no test.
    - Where valid or test is named but not train, files of the same suffix that name no split are train; without any,
      there is no train.
    - Beside named train files, files that name no split are not read. Beside anything else, READMEs, licenses and
      their like are not read, nor what is no data; but where all files of a split are no data, it is an error.

    ``train``, ``valid`` or ``test`` as a single file is that file, whatever its name; as a folder or a glob, those of
    its files that name this split, or else those that name none. ``train`` is instead of ``path``; ``test`` is instead
    of the test files of ``path`` and does not change how a whole is cut: another test leaves train as it was.

    Files are listed on first use only, so that a test needs no train files.

    Args:
        path: a file, a folder or a glob.
        train: a file, a folder or a glob of the train data.
        valid: the same of the valid data; needs ``train``.
        test: the same of the test data.
        not_data: what a file of a folder or a glob is instead of data (``a zip archive``), or ``None`` for data.

    Attributes:
        notes: a sentence for each decision so far that the user may not expect, for the data module to tell.

    Raises:
        ValueError: ``valid`` without ``train``, or the same path for both.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        not_data: Callable[[Path], str | None] = not_text,
    ) -> None:
        if valid is not None and train is None:
            raise ValueError("train and valid name the files of a split together: train is missing")
        if train is not None and valid is not None and os.path.realpath(train) == os.path.realpath(valid):
            raise ValueError(f"train and valid must be different files, got '{valid}' for both")
        self.notes: list[str] = []
        self._path = path
        self._given = {"train": train, "valid": valid, "test": test}
        self._not_data = not_data
        self._files_of_given: dict[str, list[Path]] = {}

    def source(self, split: str) -> tuple[list[Path], tuple[str, ...]] | None:
        """The files that hold ``split``, and the splits that these files are to be cut into, in this order.

        ``None`` where there is no such split. Without ``path`` and ``train`` there are no files, and the whole is the
        data module's default data.

        Raises:
            FileNotFoundError: there is no file.
            ValueError: the names do not tell which files these are, or tell that there is no train.
        """
        if self._given[split] is not None:
            cut = split == "train" and self._given["valid"] is None
            return self._files_given(split), ("train", "valid") if cut else (split,)
        if self._given["train"] is not None:
            cut = split == "valid"
            return (self._files_given("train"), ("train", "valid")) if cut else None
        if self._path is None:
            return [], SPLITS
        files = self._files_of_path
        if "whole" in files:
            return files["whole"], SPLITS
        if split == "train" or (split == "valid" and "valid" not in files):
            if "train" not in files:
                raise ValueError(f"'{self._path}' has files named after {_and(files)}, and none for train")
            return files["train"], ("train",) if "valid" in files else ("train", "valid")
        return (files[split], (split,)) if split in files else None

    def check_disjoint(self) -> None:
        """Raises ValueError where one file is in two splits, also by a link to it: what is held out would leak."""
        seen: dict[tuple[int, int], tuple[str, Path]] = {}
        for split in SPLITS:
            files, parts = self.source(split) or ([], ())
            if parts[:1] != (split,):  # no such split, or it is cut from the files of another
                continue
            for file in files:
                other, first = seen.setdefault(_identity(file), (split, file))
                if other != split:
                    both = f"'{file}'" if file == first else f"'{first}' and '{file}', which are one file,"
                    raise ValueError(f"a file must be in one split, got {both} in {other} and {split}")

    def _files_given(self, split: str) -> list[Path]:
        if split not in self._files_of_given:
            source = self._given[split]
            assert source is not None  # source() calls this only for a split that was given
            by_split, not_read = self._by_split(source)
            chosen = split if split in by_split else None
            if chosen not in by_split:
                raise ValueError(f"'{source}' must have {split} files, but all are named after {_and(by_split)}")
            self._files_of_given[split] = by_split.pop(chosen)
            not_read += [(files, f"named after {other or 'no split'}") for other, files in by_split.items()]
            self._note_not_read(source, not_read)
        return self._files_of_given[split]

    @cached_property
    def _files_of_path(self) -> dict[str, list[Path]]:
        """By split; or all of the ``whole``."""
        assert self._path is not None  # source() comes here only with a path
        by_split, not_read = self._by_split(self._path)
        unnamed = by_split.pop(None, [])
        if not by_split:
            by_split["whole"] = unnamed
        elif "train" not in by_split:
            kinds = {file.suffix for files in by_split.values() for file in files}
            if train := [file for file in unnamed if file.suffix in kinds]:
                self.notes.append(
                    f"'{self._path}' has files named after {_and(by_split)} and none for train: "
                    f"train is what is named after no split, {_some(train)}."
                )
                by_split["train"], unnamed = train, [file for file in unnamed if file not in set(train)]
        if unnamed and "whole" not in by_split:
            not_read.append((unnamed, "named after no split"))
        self._note_not_read(self._path, not_read)
        of_splits: dict[Any, list[Path]] = by_split  # no file is left without one
        return {"whole": of_splits["train"]} if of_splits.keys() == {"train"} else of_splits

    def _by_split(self, source: str) -> tuple[dict[str | None, list[Path]], list[tuple[list[Path], str]]]:
        """The data files by the split that they name, ``None`` for none; and what is not read, with the reason."""
        root, files = _list(source)
        check_text(map(str, files), "the name of a file")
        if files == [Path(source).expanduser()]:
            return {None: files}, []
        not_read: list[tuple[list[Path], str]] = []
        documents = [file for file in files if _DOCUMENTS.fullmatch(file.name)]
        if 0 < len(documents) < len(files):
            files = [file for file in files if file not in set(documents)]
            not_read.append((documents, "about the data"))
        by_split, refused = self._sorted_by_split(files, root)
        for split, (bad, *_) in refused.items():
            if split not in by_split and (split is not None or not by_split):
                raise ValueError(f"'{bad[0]}' is {bad[1]}, which is not read: unpack or convert it, or leave it out")
            not_read += [([file], kind) for file, kind in refused[split]]
        if "eval" in by_split:
            split = "test" if "valid" in by_split and "test" not in by_split else "valid"
            by_split[split] = sorted(by_split.get(split, []) + by_split.pop("eval"))
        if "train" not in by_split:
            alike = look_alikes(str(file.relative_to(root)) for file in by_split.get(None, []))
            if alike is not None:
                raise ValueError(
                    f"'{alike[0]}' and '{alike[1]}' of '{source}' may be splits of one data set, but their names have "
                    f"none as a word: name the files with --data.train, --data.valid and --data.test"
                )
        for split, of_split in by_split.items():
            by_split[split], links = _without_links(of_split)
            if links:
                not_read.append((links, "read by another name"))
        return by_split, not_read

    def _sorted_by_split(
        self, files: list[Path], root: Path
    ) -> tuple[dict[str | None, list[Path]], dict[str | None, list[tuple[Path, str]]]]:
        """The data files by split, and by split those that are no data, with what they are."""
        by_split: dict[str | None, list[Path]] = {}
        refused: dict[str | None, list[tuple[Path, str]]] = {}
        for file in files:
            if kind := self._not_data(file):
                splits = _splits_of(file, root)
                refused.setdefault(splits.pop() if len(splits) == 1 else None, []).append((file, kind))
            else:
                by_split.setdefault(_split_of(file, root), []).append(file)
        return by_split, refused

    def _note_not_read(self, source: str, not_read: list[tuple[list[Path], str]]) -> None:
        if not_read:
            by_reason: dict[str, list[Path]] = {}
            for files, reason in not_read:
                by_reason.setdefault(reason, []).extend(files)
            reasons = "; ".join(f"{_some(files)} ({reason})" for reason, files in by_reason.items())
            self.notes.append(f"Not read of '{source}': {reasons}.")


def _splits_of(file: Path, root: Path) -> set[str]:
    """The splits that ``file``'s name, and those of the folders between it and ``root``, have as words."""
    splits = set().union(*map(splits_named, file.relative_to(root).parts))
    return splits - {"eval"} if splits & {"valid", "test"} else splits


def _split_of(file: Path, root: Path) -> str | None:
    splits = _splits_of(file, root)
    if len(splits) > 1:
        raise ValueError(
            f"a file must be in one split, and '{file}' is named after {_and(splits)}: "
            f"rename it, or name the files with --data.train, --data.valid and --data.test"
        )
    return splits.pop() if splits else None


def _without_links(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files, each by its first name, and the other names."""
    first: dict[tuple[int, int], Path] = {}
    for file in files:
        first.setdefault(_identity(file), file)
    kept = list(first.values())
    return kept, [file for file in files if file not in kept]


def _identity(file: Path) -> tuple[int, int]:
    """The same for all names of, and links to, one file or folder."""
    status = file.stat()
    return status.st_dev, status.st_ino


def _and(splits: Iterable[str | None]) -> str:
    return " and ".join(sorted(split for split in splits if split))


def _some(files: Sequence[Path], most: int = 3) -> str:
    """``a.txt, b.txt, c.txt and 5 more``"""
    return ", ".join(file.name for file in files[:most]) + (f" and {len(files) - most} more" if files[most:] else "")
