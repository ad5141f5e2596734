"""Which files hold which split: what their names say, and an error where they cannot say it."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_modules.data import TextDataModule
from lightning_modules.data.reading import DataFiles, list_files
from lightning_modules.data.split_names import splits_named

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of files that hold their own names."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_text(f"{name}\n" * 20)
        return tmp_path / "data"

    return make


def names_by_split(files: DataFiles, root: Path) -> dict[str, list[str]]:
    """The files of each split, and into what they are cut where that is more than one."""
    found: dict[str, list[str]] = {}
    for split in ("train", "valid", "test"):
        if (source := files.source(split)) is not None and source[1][0] == split:
            found["+".join(source[1])] = [str(file.relative_to(root)) for file in source[0]]
    return found


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("train.txt", {"train"}),
        ("TRAIN.TXT", {"train"}),
        ("train1.txt", {"train"}),
        ("train-00000-of-00002.parquet", {"train"}),
        ("wiki.train.tokens", {"train"}),
        ("wnut17train.conll", {"train"}),
        ("JapaneseVowels_TRAIN.ts", {"train"}),
        ("en_train", {"train"}),
        ("trainset", {"train"}),
        ("trainData.csv", {"train"}),
        ("training", {"train"}),
        ("eng.testa", {"valid"}),
        ("eng.testb", {"test"}),
        ("emerging.dev.conll", {"valid"}),
        ("devel.tsv", {"valid"}),
        ("val", {"valid"}),
        ("validation", {"valid"}),
        ("ptb.valid.txt", {"valid"}),
        ("X_test.npy", {"test"}),
        ("testing", {"test"}),
        ("held-out.txt", {"test"}),
        ("holdout.txt", {"test"}),
        ("eval", {"eval"}),
        ("train_test.txt", {"train", "test"}),
        ("JSB_Chorales.trainvalid.npz", {"train", "valid"}),
        ("devtest.txt", {"valid", "test"}),
        ("latest.txt", set()),
        ("contest.txt", set()),
        ("constrained.txt", set()),
        ("testament.txt", set()),
        ("valley.txt", set()),
        ("devil.txt", set()),
        ("training_day_is_not_trains.txt", {"train"}),
        ("corpus.txt", set()),
    ],
)
def test_the_split_that_a_name_says(name: str, splits: set[str]) -> None:
    assert splits_named(name) == splits


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # All three, as files of many styles and as folders.
        (
            ["train.txt", "valid.txt", "test.txt"],
            {"train": ["train.txt"], "valid": ["valid.txt"], "test": ["test.txt"]},
        ),
        (
            ["en/train/a.txt", "en/train/b.txt", "en/dev/a.txt", "en/testing/a.txt"],
            {"train": ["en/train/a.txt", "en/train/b.txt"], "valid": ["en/dev/a.txt"], "test": ["en/testing/a.txt"]},
        ),
        (
            ["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"],
            {
                "train": ["train-00000-of-00002", "train-00001-of-00002"],
                "valid": ["validation-00000-of-00001"],
                "test": ["test-00000-of-00001"],
            },
        ),
        # An eval set is the valid set, but the test set where there is a valid set and no other test set.
        (["train.txt", "eval.txt"], {"train": ["train.txt"], "valid": ["eval.txt"]}),
        (["train.txt", "eval.txt", "test.txt"], {"train": ["train.txt"], "valid": ["eval.txt"], "test": ["test.txt"]}),
        (["train.txt", "dev.txt", "eval.txt"], {"train": ["train.txt"], "valid": ["dev.txt"], "test": ["eval.txt"]}),
        (["train.txt", "eval/dev.txt", "eval/test.txt"],
         {"train": ["train.txt"], "valid": ["eval/dev.txt"], "test": ["eval/test.txt"]}),
        # One is missing.
        (["train.txt", "test.txt"], {"train+valid": ["train.txt"], "test": ["test.txt"]}),
        (["train.txt", "valid.txt"], {"train": ["train.txt"], "valid": ["valid.txt"]}),
        (["corpus.txt", "test.txt"], {"train+valid": ["corpus.txt"], "test": ["test.txt"]}),
        (["corpus.txt", "vocab.json", "dev.txt"], {"train": ["corpus.txt"], "valid": ["dev.txt"]}),
        # No name denotes a held-out split: one whole.
        (["a.txt", "b.txt"], {"train+valid+test": ["a.txt", "b.txt"]}),
        (["train1.txt", "train2.txt"], {"train+valid+test": ["train1.txt", "train2.txt"]}),
        # What names no split beside what does, and what is no data.
        (
            ["train.txt", "valid.txt", "vocab.txt", "README.md", "LICENSE", ".gitkeep", "__MACOSX/test.txt"],
            {"train": ["train.txt"], "valid": ["valid.txt"]},
        ),
        (["train.txt", "test.txt", "test.txt~", "test.txt.bak"], {"train+valid": ["train.txt"], "test": ["test.txt"]}),
        (["a.txt", "README_test.md"], {"train+valid+test": ["a.txt"]}),
        (["README.md", "b/README.md"], {"train+valid+test": ["README.md", "b/README.md"]}),
    ],
)  # fmt: skip
def test_a_folder_is_what_its_names_say(folder: Folder, names: list[str], expected: dict[str, list[str]]) -> None:
    root = folder(*names)
    assert names_by_split(DataFiles(str(root)), root) == expected
    # A glob of the same files says the same: names count from where the glob begins.
    assert names_by_split(DataFiles(str(root / "**" / "*")), root) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train_test.txt", "valid.txt"], "'.*train_test.txt' is named after test and train: rename it"),
        (["train/valid.txt", "train/a.txt"], "'.*valid.txt' is named after train and valid"),
        (["trainval.txt", "test.txt"], "'.*trainval.txt' is named after train and valid"),
        (["valid.txt", "test.txt"], "files named after test and valid, and none for train"),
        (["test.txt", "README"], "files named after test, and none for train"),
        (["mytrain.txt", "mytest.txt"], "'mytrain.txt' and 'mytest.txt' of .* may be splits of one data set"),
        (["test.txt", "xtrain1.txt", "xdev1.txt"], "may be splits of one data set"),
    ],
)
def test_names_that_do_not_tell_are_an_error(folder: Folder, names: list[str], message: str) -> None:
    root = folder(*names)
    for path in (root, root / "**" / "*"):
        with pytest.raises(ValueError, match=message):
            TextDataModule(path=str(path)).setup("fit")


def test_a_single_file_is_one_whole_whatever_its_name(folder: Folder) -> None:
    file = folder("train_test.txt", "valid.txt") / "train_test.txt"
    assert DataFiles(str(file)).source("test") == ([file], ("train", "valid", "test"))


def test_names_above_the_path_do_not_count(folder: Folder) -> None:
    root = folder("test/mine/a.txt", "test/mine/b.txt", "train/x.txt")
    inside = root / "test" / "mine"
    for path in (inside, inside / "*.txt"):
        assert DataFiles(str(path)).source("train") == (
            [inside / "a.txt", inside / "b.txt"],
            ("train", "valid", "test"),
        )


def test_a_glob_of_folders_stands_for_their_files(folder: Folder) -> None:
    root = folder("a/train/1.txt", "a/test/1.txt", "b/train/2.txt")
    expected = {"train+valid": ["a/train/1.txt", "b/train/2.txt"], "test": ["a/test/1.txt"]}
    assert names_by_split(DataFiles(str(root / "*")), root) == expected


def test_what_is_not_read_is_noted(folder: Folder) -> None:
    root = folder("train.txt", "valid.txt", "README", *(f"extra{k}.txt" for k in range(5)))
    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        archive.writestr("train.txt", "text")
    (root / "picture.dat").write_bytes(b"\x00\x01\xff\xfe" * 50)
    files = DataFiles(str(root))
    files.source("train")
    assert files.notes == [
        f"Not read of '{root}': README (about the data); all.zip (a zip archive); picture.dat (a binary file); "
        f"extra0.txt, extra1.txt, extra2.txt and 2 more (named after no split)."
    ]
    files = DataFiles(str(folder("test.txt")), train=str(root), valid=str(root / "extra0.txt"))
    assert files.source("train") == ([root / "train.txt"], ("train",))
    assert "test.txt (named after test)" in files.notes[0]
    corpus = root / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("a")
    (corpus / "test.txt").write_text("b")
    files = DataFiles(str(corpus))
    files.source("train")
    assert files.notes == [
        f"'{corpus}' has files named after test and none for train: train is what is named after no split, a.txt."
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.txt", "valid.zip", "test.txt"], "'.*valid.zip' is a zip archive, which is not read"),
        (["all.zip"], "'.*all.zip' is a zip archive, which is not read"),
    ],
)
def test_a_split_that_is_no_data_is_an_error(folder: Folder, names: list[str], message: str) -> None:
    root = folder(*names)
    for name in names:
        if name.endswith(".zip"):
            with zipfile.ZipFile(root / name, "w") as archive:
                archive.writestr("text.txt", "text")
    with pytest.raises(ValueError, match=message):
        DataFiles(str(root)).source("train")


def test_another_task_says_what_its_data_is(folder: Folder) -> None:
    root = folder("train.mid", "train.txt", "test.mid", "about.txt")
    files = DataFiles(str(root), not_data=lambda file: None if file.suffix == ".mid" else "no MIDI file")
    assert names_by_split(files, root) == {"train+valid": ["train.mid"], "test": ["test.mid"]}
    assert files.notes == [f"Not read of '{root}': about.txt, train.txt (no MIDI file)."]


def test_one_file_is_in_one_split(folder: Folder) -> None:
    root = folder("train.txt", "a.txt", "b/valid.txt")
    train, other, valid = (root / name for name in ("train.txt", "a.txt", "b/valid.txt"))
    (root / "linked").symlink_to(train)
    os.link(train, root / "hard")
    for same in (train, root / "." / "train.txt", root / "linked"):
        with pytest.raises(ValueError, match="train and valid must be different files"):
            TextDataModule(train=str(train), valid=str(same))
    for options in (
        {"train": train, "valid": root / "hard"},
        {"train": train, "valid": valid, "test": root / "linked"},
        {"train": train, "valid": valid, "test": valid},
        {"path": other, "test": other},
        {"path": root / "[a]*", "test": other},
    ):
        with pytest.raises(ValueError, match=r"a file must be in one split, got .* in (train|valid) and (valid|test)"):
            TextDataModule(**{name: str(path) for name, path in options.items()}).setup("fit")

    # What is judged alone may be anything: a test of the train text is a question one may ask.
    data = TextDataModule(train=str(train), valid=str(valid), test=str(train))
    assert data.text("test") == train.read_text()


def test_a_link_between_splits_is_no_second_file(folder: Folder) -> None:
    root = folder("train/a.txt", "train/b.txt", "valid/c.txt")
    (root / "train" / "link.txt").symlink_to("a.txt")
    files = DataFiles(str(root))
    assert names_by_split(files, root)["train"] == ["train/a.txt", "train/b.txt"]
    assert files.notes == [f"Not read of '{root}': link.txt (read by another name)."]
    (root / "valid" / "link.txt").symlink_to("../train/a.txt")
    with pytest.raises(ValueError, match=r"'.*a.txt' and '.*link.txt', which are one file, in train and valid"):
        DataFiles(str(root)).check_disjoint()


def test_links_are_followed_once_around(folder: Folder) -> None:
    root = folder("a/x.txt", "b/y.txt")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "across").symlink_to(root / "b")
    (root / "b" / "across").symlink_to(root / "a")
    assert {file.resolve() for file in list_files(root)} == {root / "a" / "x.txt", root / "b" / "y.txt"}
    (root / "lost.txt").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"'.*lost.txt' is a link to 'nowhere', which is not there"):
        list_files(root)


def test_the_folder_of_a_run_is_no_data(folder: Folder) -> None:
    root = folder("a.txt", "runs/x/version_0/config.yaml", "runs/x/version_0/metrics.csv", "runs/x/version_0/test.txt")
    assert list_files(root) == [root / "a.txt"]
    assert list_files(root / "**" / "*.txt") == [root / "a.txt"]


def test_a_path_that_is_no_file_is_told(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder("a.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"'.*pipe' is neither a file nor a folder"):
        list_files(tmp_path / "pipe")
    with pytest.raises(ValueError, match="got an empty one"):
        TextDataModule(path="").setup("fit")

    def refuse(self: Path, *_: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=r"'.*a.txt' cannot be read: Permission denied"):
        TextDataModule(path=str(root / "a.txt")).setup("fit")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*data'"):
        TextDataModule(path=str(root)).setup("fit")
