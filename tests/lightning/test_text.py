"""The text: where it is read from, how it is cut, its vocabulary."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import make_text

from lightning_modules.data import TextDataModule, Vocabulary
from lightning_modules.data.cutting import cut_text
from lightning_modules.data.reading import list_files
from lightning_modules.data.text_files import default_text, read_files
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


SENTENCE = "Grüße: δ, 我们, é!\n"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (SENTENCE.encode("utf-16"), "utf-8"),
        (b"\xfe\xff" + SENTENCE.encode("utf-16-be"), "utf-8"),
        (SENTENCE.encode("utf-32"), "utf-8"),
        (SENTENCE.encode("utf-8-sig"), "latin-1"),
        (SENTENCE.encode("utf-16-le"), "utf-16-le"),
        (SENTENCE.replace("\n", "\r").encode(), "utf-8"),
        (SENTENCE.replace("\n", "\r\n").encode("utf-16"), "utf-8"),
    ],
)
def test_byte_order_marks_and_line_ends_of_all_kinds(tmp_path: Path, content: bytes, encoding: str) -> None:
    (tmp_path / "1.txt").write_bytes(content)
    (tmp_path / "2.txt").write_bytes(b"")
    (tmp_path / "3.txt").write_bytes("end".encode("utf-8-sig"))
    assert read_files(list_files(tmp_path), encoding) == SENTENCE + "end"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("première\nligne é\n".encode("latin-1"), r"is not utf-8 text \(byte 5, in line 1, cannot be decoded\)"),
        (b"one\ntwo\nthr\xe9e", r"byte 11, in line 3"),
        ("plain text\n".encode("utf-16-le"), "seems to be UTF-16 without a byte order mark"),
        ("plain text\n".encode("utf-16-be"), "seems to be UTF-16 without a byte order mark"),
        (b"\xff\xfe\x00", "is not utf-16 text"),
        (b"\x1f\x8b\x08" + bytes(30), "is compressed by gzip, not text"),
        (b"PK\x03\x04" + bytes(30), "is a zip archive, not text"),
    ],
)
def test_what_is_no_text_of_its_encoding_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "good.txt").write_text("é\n", encoding="utf-8")
    (tmp_path / "other.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_files([tmp_path / "good.txt", tmp_path / "other.txt"])
    assert "other.txt" in str(error.value)


def test_characters_that_no_line_ends_with_are_kept(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0cd\x00e\u00a0f\n"
    (tmp_path / "text.txt").write_bytes(text.encode())
    assert read_files(list_files(tmp_path)) == text
    assert tokenize(text, "word") == ["a", "b", "c", "d\x00e", "f", "<eos>"]
    vocabulary = Vocabulary.build(text, "char")
    assert vocabulary.decode(vocabulary.encode(text).tolist()) == text


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


@pytest.mark.parametrize(
    "text",
    [
        "acgtacgatcga" * 2000,
        "我们的天空是蓝色的猫坐在垫子上。" * 1500,
        "a b c d\n" * 2000 + "x" * 8000,
        "x" * 20_000 + " a b" * 1000,
        "0123456789" * 2400 + "\n",
        "คนไทยรักแมวมาก" * 1700,
    ],
)
def test_a_text_without_spaces_is_cut_where_the_shares_say(text: str) -> None:
    parts = cut_text(text, (0.8, 0.1, 0.1))
    assert "".join(parts) == text
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        assert abs(len(part) - share * len(text)) <= 2 * 100  # each of its ends moves by a hundred at most


def test_a_cut_tears_no_symbol() -> None:
    family, flag, thumb = "👨\u200d👩\u200d👧", "🇩🇪", "👍🏽"
    for symbol in ("e\u0301", family, flag, thumb, "का", "\u1112\u1161\u11ab", "❤\ufe0f"):
        text = symbol * 101
        for shares in ((0.8, 0.1, 0.1), (1, 1, 1), (3, 2, 2)):
            parts = cut_text(text, shares)
            assert "".join(parts) == text
            assert all(part == symbol * (len(part) // len(symbol)) for part in parts), symbol
    # Marks without end are no symbol: the search ends.
    assert [len(part) for part in cut_text("a" + "\u0301" * 9999, (8, 1, 1))] == [8000, 1000, 1000]


@pytest.mark.parametrize(
    "text",
    [
        "a b c d\n" * 2000 + "x" * 8000,
        "x" * 20_000 + " a b" * 1000,
        "we are ten words here and no more than ten",
        "https://example.org/" + "y" * 300 + ("\nword " + "z" * 250) * 40,
    ],
)
def test_words_are_not_torn_however_long(text: str) -> None:
    parts = cut_text(text, (0.8, 0.1, 0.1), words=True)
    assert "".join(parts) == text
    assert [word for part in parts for word in part.split()] == text.split()
    counts = [len(part.split()) for part in parts]
    assert all(abs(count - share * sum(counts)) <= 1 for count, share in zip(counts, (0.8, 0.1, 0.1), strict=True))


def test_too_few_words_to_cut_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("我们的天空是蓝色的" * 500)
    with pytest.raises(ValueError, match=r"the text has 1 words .* --data.level char reads it by characters"):
        TextDataModule(path=str(tmp_path / "text.txt"), level="word").setup("fit")


def test_valid_is_cut_from_train_where_no_file_is_named_after_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train, test = "train words here\n" * 500, "TEST words here\n" * 60
    (tmp_path / "train.txt").write_text(train)
    (tmp_path / "test.txt").write_text(test)
    (tmp_path / "README").write_text("about it\n")
    data = TextDataModule(path=str(tmp_path), split=(3, 1, 1))
    assert data.text("train") + data.text("valid") == train
    assert len(data.text("valid")) == pytest.approx(len(train) / 4, abs=100)
    assert data.text("test") == test
    data.setup("fit")
    assert capsys.readouterr().err == f"Not read of '{tmp_path}': README (about the data).\n"
    assert data.has_test()


def test_another_test_text_leaves_train_as_it_was(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("another text\n" * 20)
    plain = TextDataModule(path=str(text_file))
    other = TextDataModule(path=str(text_file), test=str(tmp_path / "other"))
    assert (plain.text("train"), plain.text("valid")) == (other.text("train"), other.text("valid"))
    assert other.text("test") == "another text\n" * 20


def test_a_copy_of_the_train_text_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(make_text())
    data = TextDataModule(path=str(tmp_path))
    data.setup("fit")
    data.setup("test")
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"The {name} text is the train text: its figures say nothing of new text." for name in ("valid", "test")
    ]


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


def test_rare_tokens_become_unknown(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build("a b a c b a d", "word", min_count=2)
    assert vocabulary.tokens == ["<unk>", "<eos>", "a", "b"]
    assert vocabulary.encode("a c d b").tolist() == [2, 0, 0, 3, 1]
    assert Vocabulary.build("a b a c b a d", "word", 3, 2).tokens == ["<unk>", "<eos>", "a"]
    with pytest.raises(ValueError, match="min_count must leave a token, and the text has none 9 times"):
        Vocabulary.build("a b a", "word", min_count=9)
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        TextDataModule(min_count=0).setup("fit")


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
    with pytest.raises(ValueError, match=r"data\.level must be .* level 'char', got 'word'"):
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
    for encoding in ("utf-99", "hex", "", "utf\0"):
        with pytest.raises(ValueError, match="unknown encoding"):
            TextDataModule(path=str(text_file), encoding=encoding)


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
