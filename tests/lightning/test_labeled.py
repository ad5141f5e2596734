"""Labeled texts and series in common formats: reading, splitting, errors for bad data."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_modules.data import LabeledSeriesDataModule, LabeledTextDataModule
from lightning_modules.data.generated import SHAPES, generated_movements, generated_reviews
from lightning_modules.data.labeled import NO_LABEL, cut_by_label
from lightning_modules.data.labeled_text import split_words

TEXTS = [("a fine film", "1"), ("no good , it 's bad", "0"), ('"fine"', "1"), ("bad bad film", "0")]
HEADER = "@problemName Small\n@timeStamps false\n@dimensions 2\n@classLabel true a b\n@data\n"
SERIES = HEADER + "1,2,3:10,20,30:a\n4:40:b\n5,6:50,60:a\n7,8:70,80:b\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def table(rows: list[tuple[str, ...]], between: str = "\t") -> str:
    return "".join(between.join(row) + "\n" for row in rows)


# Tables and folders of texts ------------------------------------------------------------------------------------------

QUOTED = 'id;text;label\n1;a fine film;1\n2;"no good , it \'s bad";0\n3;"""fine""";1\n4;bad bad film;0\n'


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("train.tsv", table(TEXTS), {}),
        ("train.txt", table(TEXTS), {}),
        ("train.tsv", "\n" + table(TEXTS).replace("\n", "\r\n\r\n"), {}),
        ("train.tsv", b"\xef\xbb\xbf" + table([("sentence", "label"), *TEXTS]).encode(), {}),
        ("train.tsv", table([("sentence", "label"), *TEXTS]).encode("utf-16"), {}),
        ("train.csv", QUOTED, {}),
        ("train.csv", QUOTED.replace("text", "a").replace("label", "b"), {"text_column": "a", "label_column": "b"}),
        ("train.csv", QUOTED.split("\n", 1)[1], {"text_column": 1, "label_column": -1}),
        ("train.tab", table([(label, text) for text, label in TEXTS]), {"label_column": 0}),
        ("train.tsv", table([("Label", "what"), *((label, text) for text, label in TEXTS)]), {}),
    ],
)
def test_tables_as_they_are_found(write: Callable[..., str], name: str, content: str | bytes, options: dict) -> None:
    data = LabeledTextDataModule(**options)
    rows = data.read([Path(write(name, content))], labeled=True)
    assert [(row.content, row.label) for row in rows] == TEXTS


def test_a_first_row_that_may_be_names_is_told(write: Callable[..., str], capfd: pytest.CaptureFixture) -> None:
    content = table([("opinion", "verdict"), *TEXTS * 3])
    LabeledTextDataModule().read([Path(write("train.tsv", content))], labeled=True)
    [line] = capfd.readouterr().err.splitlines()
    assert "train.tsv', line 1: read as an example, though no other has the label 'verdict'; if it names" in line
    assert line.endswith("say so with --data.label_column verdict.")
    LabeledTextDataModule(label_column="verdict").read([Path(write("train.tsv", content))], labeled=True)
    LabeledTextDataModule().read([Path(write("train.tsv", table(TEXTS * 3)))], labeled=True)
    assert not capfd.readouterr().err


def test_a_cell_with_line_breaks_and_the_line_of_the_next(write: Callable[..., str]) -> None:
    path = write("train.csv", 'text,label\n"two\nlines, of text",a\nthree,b,c\n')
    with pytest.raises(ValueError, match=r"train.csv', line 4: want 2 columns, as in line 1, got 3"):
        LabeledTextDataModule(path).rows("train")
    path = write("train.csv", 'text,label\n"two\nlines, of text",a\nthree,b\n')
    rows = LabeledTextDataModule(path, split=(1, 1, 0)).rows("train") + LabeledTextDataModule(path).rows("train")
    assert ("two\nlines, of text", "a") in [(row.content, row.label) for row in rows]


def test_folders_of_text_files_by_label(write: Callable[..., str], tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            for k in range(4):
                write(f"imdb/{split}/{label}/{k}.txt", f"{split} {label} {k}\nin\ttwo lines\n")
    write("imdb/README", "what it is")
    data = LabeledTextDataModule(str(tmp_path / "imdb"))
    assert data.labels == ["neg", "pos"]
    assert len(data.rows("train")) + len(data.rows("valid")) == 8
    assert len(data.rows("test")) == 8
    assert all(row.content.startswith(f"test {row.label} ") for row in data.rows("test"))
    column, names = data.names("predict")
    assert column == "file"
    assert names[0] == str(tmp_path / "imdb/test/neg/0.txt")


def test_new_texts_need_no_labels(write: Callable[..., str], tmp_path: Path) -> None:
    train = write("train.tsv", table(TEXTS))

    def new(source: str, **options: object) -> list[str]:
        data = LabeledTextDataModule(train=train, valid=train.replace("train", "valid"), predict=source, **options)
        return data.names("predict")[1]

    assert new(write("new.txt", "one text\n\nanother one\n")) == ["one text", "another one"]
    assert new(write("new.tsv", table(TEXTS))) == [text for text, _ in TEXTS]
    assert new(write("new.csv", "sentence\nhello\nyou\n")) == ["hello", "you"]
    assert new(write("new.csv", "index,sentence\n0,hello\n1,you\n")) == ["hello", "you"]
    assert new(write("new.csv", "id,words\n0,hello\n"), text_column="words", label_column="mood") == ["hello"]
    files = [write(f"new/{k}.txt", f"text {k}\n") for k in range(2)]
    assert new(str(tmp_path / "new")) == files


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("fine\t1\nbad 0\n", {}, "'{}', line 2: want 2 columns, as in line 1, got 1"),
        ("fine\t1\nbad\t0\tx\n", {}, "'{}', line 2: want 2 columns, as in line 1, got 3"),
        ("fine\t1\nbad\t \n", {}, "'{}', line 2: the label is empty"),
        ("fine fine\t1\n \t0\n", {}, "'{}', line 2: an example must have at least one token"),
        ("", {}, "the train split has no examples: '{}'"),
        ("sentence\tlabel\n", {}, "the train split has no examples: '{}'"),
        ("fine\t1\nbad\t1\n", {}, "the train split must have at least two labels, got '1' alone"),
        ("a\tb\tc\n", {}, "'{}' has the columns 'a' (0), 'b' (1), 'c' (2): say with --data.text_column which it is"),
        ("text\tb\tc\n", {}, "'{}' has the columns 'text' (0), 'b' (1), 'c' (2): say with --data.label_column which "
         "it is"),
        ("a\tb\n", {"text_column": "txt"}, "data.text_column must be a column of '{}', 'a' (0), 'b' (1), got 'txt'"),
        ("a\tb\n", {"label_column": 2}, "data.label_column must be a column of '{}', 'a' (0), 'b' (1), got 2"),
        ("a\tb\n", {"text_column": 1, "label_column": -1}, "text_column and label_column must differ, got 'b' of '{}' "
         "for both"),
        ("".join(f"text {k}\tlabel {k}\n" for k in range(30)), {}, "the train split has 30 labels for 30 examples, "
         "'label 0' among them: these are hardly labels"),
        (b"fine\t1\nbad \xff\t0\n", {}, "'{}' is not utf-8 text (byte 11, in line 2, cannot be decoded); name its "
         "encoding with --data.encoding, or leave the file out"),
        (b"PK\x03\x04\x00", {}, "'{}' is a zip archive, not text: unpack or convert it"),
    ],
)  # fmt: skip
def test_a_bad_table_is_told(write: Callable[..., str], content: str | bytes, options: dict, sentence: str) -> None:
    train = write("train.tsv", content)
    data = LabeledTextDataModule(train=train, valid=write("valid.tsv", table(TEXTS)), **options)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(train))}$"):
        data.setup("fit")


def test_a_quote_that_is_not_closed_is_told(write: Callable[..., str]) -> None:
    path = write("train.csv", 'text,label\nfine,1\n"bad,0\nfine,1\n')
    with pytest.raises(
        ValueError, match=r"train.csv', line 3: a cell that begins there cannot be read: unexpected end"
    ):
        LabeledTextDataModule(path).rows("train")


def test_a_label_that_train_lacks_is_told(write: Callable[..., str]) -> None:
    train, valid = write("train.tsv", table(TEXTS)), write("valid.tsv", table([*TEXTS, ("so so", "2")]))
    with pytest.raises(ValueError, match=r"valid.tsv', line 5: the label '2' is none of the train split's: 0, 1"):
        LabeledTextDataModule(train=train, valid=valid).setup("fit")


# Splits ---------------------------------------------------------------------------------------------------------------


def test_cut_splits_hold_every_label_in_their_shares() -> None:
    labels = ["a"] * 50 + ["b"] * 30 + ["c"] * 20 + ["d"]
    pieces = cut_by_label(labels, (0.8, 0.1, 0.1))
    assert sorted(position for piece in pieces for position in piece) == list(range(101))
    assert pieces == cut_by_label(labels, (8, 1, 1))
    counts = [Counter(labels[position] for position in piece) for piece in pieces]
    assert counts[0]["d"] == 1
    for label, count in Counter(labels).items():
        for piece, share in zip(counts, (0.8, 0.1, 0.1), strict=True):
            assert abs(piece[label] - share * count) <= 1, (label, piece)


def test_valid_is_cut_from_train_alone(write: Callable[..., str]) -> None:
    train = write("train.tsv", table([(f"text {k}", str(k % 2)) for k in range(90)]))
    test = write("test.tsv", table([("new text", "0")]))
    data = LabeledTextDataModule(train=train, test=test)
    assert [len(data.rows(name)) for name in ("train", "valid", "test")] == [80, 10, 1]
    assert not {row.content for row in data.rows("valid")} & {row.content for row in data.rows("train")}
    whole = LabeledTextDataModule(train, split=(8, 2, 0))
    assert not whole.has_test()
    assert [len(whole.rows(name)) for name in ("train", "valid")] == [72, 18]


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it 's n't a well-made film .", ["it", "'s", "n't", "a", "well-made", "film", "."]),
        ('"Great!", he said (twice)...', ['"', "Great", '!",', "he", "said", "(", "twice", ")..."]),
        ("it's 'quoted' $5 :-)", ["it's", "'", "quoted", "'", "$", "5", ":-)"]),
        ("यह हिंदी है।", ["यह", "हिंदी", "है", "।"]),
        (" \n\t", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_the_vocabulary_is_that_of_train_and_training_sees_the_unknown(write: Callable[..., str]) -> None:
    train = write("train.tsv", table([("A film", "x"), ("a good film", "y")]))
    valid = write("valid.tsv", table([("a new FILM film film", "x")]))
    data = LabeledTextDataModule(train=train, valid=valid, max_length=4)
    assert data.vocabulary.tokens == ["<unk>", "a", "film"]
    assert [x.tolist() for x in data.encoded("train")[0]] == [[1, 2], [1, 0, 2]]
    assert data.encoded("valid")[0][0].tolist() == [1, 0, 2, 2]
    assert data.summary()["unknown_share"] == {"train": 1 / 5, "valid": 1 / 4}
    letters = LabeledTextDataModule(train=train, valid=valid, level="char", lowercase=False, min_count=1)
    assert letters.vocabulary.tokens == ["<unk>", " ", "f", "i", "l", "m", "o", "A", "a", "d", "g"]


# Series ---------------------------------------------------------------------------------------------------------------


def test_series_of_unequal_lengths(write: Callable[..., str]) -> None:
    content = "\ufeff# said of it\n\n" + SERIES.replace("\n", "\r\n")
    train = write("train.ts", content)
    data = LabeledSeriesDataModule(train=train, valid=write("valid.ts", SERIES))
    rows = data.rows("train")
    assert [row.label for row in rows] == ["a", "b", "a", "b"]
    assert rows[0].content.equal(torch.tensor([[1.0, 10], [2, 20], [3, 30]]))
    assert rows[1].content.equal(torch.tensor([[4.0, 40]]))
    assert data.channels == 2
    batch = next(iter(data.val_dataloader()))
    assert batch.inputs.shape == (3, 4, 2)
    assert batch.lengths.tolist() == [3, 1, 2, 2]
    assert batch.targets.tolist() == [0, 1, 0, 1]


def test_series_are_standardized_by_train_alone(write: Callable[..., str]) -> None:
    train = write("train.ts", SERIES.replace("7,8:70,80", "7,8:40,40"))
    data = LabeledSeriesDataModule(train=train, valid=write("valid.ts", HEADER + "100:100:a\n"))
    steps = torch.cat(data.encoded("train")[0])
    torch.testing.assert_close(steps.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(steps.std(0, correction=0), torch.ones(2))
    numbers = torch.arange(1.0, 9)
    valid = (100 - numbers.mean()) / numbers.std(correction=0)
    assert float(data.encoded("valid")[0][0][0, 0]) == pytest.approx(float(valid))
    again = LabeledSeriesDataModule()
    again.load_state_dict(data.state_dict())
    assert again.encode([[1, 10]]).equal(data.encode([[1, 10]]))


def test_a_channel_that_never_changes_is_harmless(write: Callable[..., str]) -> None:
    content = HEADER + "1,2:5,5:a\n3:5:b\n"
    data = LabeledSeriesDataModule(train=write("train.ts", content), valid=write("valid.ts", content))
    assert torch.cat(data.encoded("train")[0])[:, 1].tolist() == [0, 0, 0]


def test_new_series_need_no_labels(write: Callable[..., str]) -> None:
    new = SERIES.replace("@classLabel true a b", "@classLabel false")
    new = re.sub(":[ab]\n", "\n", new)
    train = write("train.ts", SERIES)
    data = LabeledSeriesDataModule(train=train, valid=write("valid.ts", SERIES), predict=write("new.ts", new))
    batch = next(iter(data.predict_dataloader()))
    assert batch.lengths.tolist() == [3, 1, 2, 2]
    assert batch.targets.tolist() == [NO_LABEL] * 4
    assert data.names("predict") == ("row", ["1", "2", "3", "4"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (HEADER + "1,2:1:a\n", ", line 6: the channels of a series must have one length, got [2, 1]"),
        (HEADER + "1:1:a\n1:a\n", ", line 7: want 2 channels between colons, got 1"),
        (HEADER + "1,?:1,2:a\n", ", line 6: want finite numbers between commas, got '?' as number 2 of channel 1"),
        (HEADER + "1:NaN:a\n", ", line 6: want finite numbers between commas, got 'NaN' as number 1 of channel 2"),
        (HEADER + "1:1e99:a\n", ", line 6: want finite numbers between commas, got '1e99' as number 1 of channel 2"),
        (HEADER + "1:2:c\n", ", line 6: the label 'c' is none of the header's: a, b"),
        (HEADER + "::a\n1:2:b\n", ", line 6: an example must have at least one step"),
        (HEADER.replace("@data", "1:2:a"), ", line 5: want a header line, which begins with @, or @data before the "
         "series"),
        (HEADER.replace("@data\n", ""), " has no line @data, after which the series of a .ts file begin"),
        (HEADER.replace("true a b", "false") + "1:2\n", " has no labels to learn; want a line such as '@classLabel "
         "true a b' in its header"),
        (HEADER.replace("Stamps false", "Stamps true"), " has time stamps (@timeStamps true), which are not read; want "
         "numbers alone"),
    ],
)  # fmt: skip
def test_a_bad_ts_file_is_told(write: Callable[..., str], content: str, sentence: str) -> None:
    train = write("train.ts", content)
    data = LabeledSeriesDataModule(train=train, valid=write("valid.ts", SERIES))
    with pytest.raises(ValueError, match=f"^{re.escape(repr(train) + sentence)}$"):
        data.setup("fit")


def test_series_with_other_channels_are_told(write: Callable[..., str]) -> None:
    one = SERIES.replace("@dimensions 2", "@dimensions 1")
    one = re.sub(r":\d[\d,]*:", ":", one)
    data = LabeledSeriesDataModule(train=write("train.ts", SERIES), valid=write("valid.ts", one))
    with pytest.raises(ValueError, match=r"valid.ts', line 6: an example must be numbers \[T, 2\], got \[3, 1\]"):
        data.setup("fit")


def test_a_label_that_the_train_series_lack_is_told(write: Callable[..., str]) -> None:
    train = SERIES.replace("true a b", "true a b c")
    valid = train + "1:1:c\n"
    data = LabeledSeriesDataModule(train=write("train.ts", train), valid=write("valid.ts", valid))
    with pytest.raises(ValueError, match=r"valid.ts', line 10: the label 'c' is none of the train split's: a, b"):
        data.setup("fit")


def test_a_file_that_is_no_ts_is_told(write: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"train.arff', line 1: want a header line"):
        LabeledSeriesDataModule(write("train.arff", "1,2,3\n")).setup("fit")


# What there is without files ------------------------------------------------------------------------------------------

OPPOSITES = re.compile(r"\b(not|never|nobody|nothing)\b")
GOOD = {
    "good", "great", "funny", "clever", "moving", "fresh", "charming", "honest", "gripping", "subtle", "beautiful",
    "brilliant", "lively", "warm", "rich", "loved", "liked", "enjoyed", "admired",
}  # fmt: skip


def label_of(sentence: str) -> str:
    """The label that a reader would give a generated sentence."""
    if ", but " in sentence:
        main = sentence.split(", but ")[1]
    elif sentence.startswith("although "):
        main = sentence.split(" , ")[1]
    else:
        main = sentence.split(" , even if ")[0].split(" and ")[0]
    good = bool(GOOD & set(main.split()))
    return "positive" if good != bool(OPPOSITES.search(main)) else "negative"


def test_generated_sentences_mean_what_their_label_says() -> None:
    reviews = generated_reviews(600)
    assert all(label_of(text) == label for text, label in reviews)
    assert reviews == generated_reviews(600)
    assert Counter(label for _, label in reviews) == {"positive": 300, "negative": 300}
    with_good = [label for text, label in reviews if GOOD & set(text.split())]
    assert 0.35 < with_good.count("positive") / len(with_good) < 0.65  # a single word does not determine the label


def test_generated_movements() -> None:
    movements = generated_movements(60)
    assert Counter(label for _, label in movements) == dict.fromkeys(SHAPES, 10)
    assert all(20 <= len(series) <= 60 and series.shape[1] == 2 for series, _ in movements)
    again = generated_movements(60)
    assert all(a.equal(b) for (a, _), (b, _) in zip(movements, again, strict=True))
    # Which way a circle goes is the sign of the area that it sweeps.
    for series, label in movements:
        if label.startswith("circle"):
            x, y = (series - series.mean(0)).unbind(1)
            area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
            assert (area > 0) == (label == "circle left")
