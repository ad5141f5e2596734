"""The text: where it is read from, how it is cut, its vocabulary."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import make_text

from lightning_modules.data import TextDataModule, Vocabulary
from lightning_modules.data.reading import default_text, find_splits, list_files, read_files
from lightning_modules.data.vocabulary import tokenize


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden", "sub/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    assert [file.name for file in list_files(tmp_path / "b.txt")] == ["b.txt"]
    assert [file.name for file in list_files(tmp_path)] == ["a.txt", "b.txt", "c.txt", "d.md"]
    assert [file.name for file in list_files(tmp_path / "*.txt")] == ["a.txt", "b.txt"]
    assert [file.name for file in list_files(tmp_path / "**" / "*.txt")] == ["a.txt", "b.txt", "c.txt"]


def test_files_are_joined_at_line_ends_and_read_in_any_style(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "2.txt").write_bytes("drei é".encode())
    assert read_files(list_files(tmp_path)) == "one\ntwo\ndrei é"


@pytest.mark.parametrize(
    "names", [("train.txt", "valid.txt", "test.txt"), ("wiki.train.tokens", "wiki.validation.tokens", "x-test.raw")]
)
def test_a_folder_may_name_its_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_text(f"this is {name}\n")
    (tmp_path / "README").write_text("about trains and tests\n")
    assert {split: [file.name for file in files] for split, files in find_splits(tmp_path).items()} == {
        "train": [names[0]],
        "valid": [names[1]],
        "test": [names[2]],
    }
    data = TextDataModule(path=str(tmp_path))
    assert [data.text(split) for split in ("train", "valid", "test")] == [f"this is {name}\n" for name in names]


def test_a_folder_without_a_valid_file_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("some text\n")
    assert find_splits(tmp_path) == {}


def test_explicit_files_win_over_the_path(tmp_path: Path) -> None:
    for name in ("path", "a", "b", "c"):
        (tmp_path / name).write_text(f"{name} {name}\n")
    data = TextDataModule(path=str(tmp_path / "path"), train=str(tmp_path / "a"), valid=str(tmp_path / "b"))
    assert (data.text("train"), data.text("valid"), data.has_test()) == ("a a\n", "b b\n", False)
    data = TextDataModule(path=str(tmp_path / "path"), test=str(tmp_path / "c"))
    assert data.text("test") == "c c\n"
    assert data.text("train").startswith("path")


def test_train_without_valid_is_told() -> None:
    with pytest.raises(ValueError, match="valid is missing"):
        TextDataModule(train="a.txt")


@pytest.mark.parametrize("level", ["char", "word"])
def test_a_split_by_shares_loses_nothing_and_keeps_the_order(text_file: Path, level: str) -> None:
    data = TextDataModule(path=str(text_file), split=(2, 1, 1), level=level)
    parts = [data.text(name) for name in ("train", "valid", "test")]
    assert "".join(parts) == make_text()
    assert len(parts[0]) == pytest.approx(len(make_text()) / 2, abs=8)
    words = [word for part in parts for word in part.split()]
    assert words == make_text().split()  # none is torn


def test_no_share_for_test_means_no_test(text_file: Path) -> None:
    data = TextDataModule(path=str(text_file), split=(0.9, 0.1, 0))
    assert not data.has_test()
    with pytest.raises(ValueError, match="there is no test text"):
        data.setup("test")


@pytest.mark.parametrize("split", [(0.9, 0.1, -0.1), (1.0, 0.0, 0.1), (0.0, 0.5, 0.5)])
def test_bad_shares_are_told(split: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="split must be"):
        TextDataModule(split=split)


def test_the_default_text_is_pythons_help_in_alphabetical_order() -> None:
    text = default_text()
    assert len(text) > 300_000
    assert text.index('The "assert" statement') < text.index('The "yield" statement')
    assert text == default_text()
    data = TextDataModule()
    assert data.text("train") + data.text("valid") + data.text("test") == text


def test_characters_are_ranked_by_frequency_then_alphabetically() -> None:
    vocabulary = Vocabulary.build("bbaacccd", "char")
    assert vocabulary.tokens == ["<unk>", "c", "a", "b", "d"]
    assert vocabulary.encode("dabx").tolist() == [4, 2, 3, 0]
    assert vocabulary.decode([4, 2, 3]) == "dab"


def test_words_end_their_lines() -> None:
    assert tokenize("one two\n\nthree", "word") == ["one", "two", "<eos>", "<eos>", "three", "<eos>"]
    assert tokenize("one two\n", "word") == ["one", "two", "<eos>"]
    assert tokenize("", "word") == []
    vocabulary = Vocabulary.build("b a b <unk>\na\nb", "word")
    assert vocabulary.tokens == ["<unk>", "<eos>", "b", "a"]
    assert vocabulary.encode("a <unk> zebra").tolist() == [3, 0, 0, 1]
    assert vocabulary.decode([3, 2, 1, 2, 1]) == "a b\nb \n"


@pytest.mark.parametrize(("level", "special"), [("char", 1), ("word", 2)])
def test_the_vocabulary_keeps_to_its_limit(level: str, special: int) -> None:
    full = Vocabulary.build(make_text(), level)
    limited = Vocabulary.build(make_text(), level, max_size=special + 3)
    assert limited.tokens == full.tokens[: special + 3]
    unknown = set(full.tokens[special + 3 :])
    kept = [token in limited.ids for token in tokenize(make_text(), level)]
    assert (limited.encode(make_text()) == 0).sum() == kept.count(False) > 0
    assert not unknown & set(limited.tokens)
    with pytest.raises(ValueError, match="max_vocab"):
        Vocabulary.build(make_text(), level, max_size=special)


def test_the_vocabulary_is_of_the_train_text_alone(tmp_path: Path) -> None:
    for name, text in (("train", "aab"), ("valid", "abz"), ("test", "aq")):
        (tmp_path / f"{name}.txt").write_text(text)
    data = TextDataModule(path=str(tmp_path), batch_size=1)
    assert data.vocabulary.tokens == ["<unk>", "a", "b"]
    assert data.tokens("valid").tolist() == [1, 2, 0]
    assert data.summary()["valid_unknown_share"] == pytest.approx(1 / 3)


def test_a_loaded_vocabulary_replaces_the_texts_own(make_data: Callable[..., TextDataModule]) -> None:
    data = make_data()
    before = data.tokens("valid")
    tokens = list(reversed(data.vocabulary.tokens[1:]))
    data.load_state_dict({"vocabulary": {"level": "char", "tokens": ["<unk>", *tokens]}})
    assert data.vocabulary.tokens[1:] == tokens
    after = data.tokens("valid")
    assert not after.equal(before)
    assert data.vocabulary.decode(after.tolist()) == data.text("valid")
    with pytest.raises(ValueError, match="level 'char'"):
        make_data(level="word").load_state_dict({"vocabulary": {"level": "char", "tokens": ["<unk>", *tokens]}})


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no file, folder or match"), (b"", "train text is empty"), (b" \n ", "is empty"), (b"ab\xff", "byte 2")],
)
def test_a_bad_file_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message) as error:
        TextDataModule(path=str(path)).setup("fit")
    assert "text.txt" in str(error.value)


def test_an_empty_folder_and_an_unknown_encoding_are_told(tmp_path: Path, text_file: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no files"):
        list_files(tmp_path / "empty")
    with pytest.raises(ValueError, match="unknown encoding 'utf-99'"):
        read_files([text_file], "utf-99")


def test_a_text_too_short_for_its_columns_is_told(make_data: Callable[..., TextDataModule]) -> None:
    with pytest.raises(ValueError, match=r"valid text is too short: \d+ tokens for 400 columns"):
        make_data(batch_size=400).setup("fit")


def test_a_vocabulary_of_tokens_that_are_split_already() -> None:
    tokens = ["b", "a", "b", "c", "a", "d", "<unk>"]
    vocabulary = Vocabulary.from_tokens(tokens, "word", min_count=2, special=("<unk>", "<pad>"))
    assert vocabulary.tokens == ["<unk>", "<pad>", "a", "b"]
    assert vocabulary.encode_tokens(["b", "c", "<pad>"]).tolist() == [3, 0, 1]
    assert Vocabulary.from_tokens(tokens, "word", max_size=3).tokens == ["<unk>", "a", "b"]
    with pytest.raises(ValueError, match="min_count must leave a token, and the text has none 3 times"):
        Vocabulary.from_tokens(tokens, "word", min_count=3)
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        Vocabulary.from_tokens(tokens, "word", min_count=0)
