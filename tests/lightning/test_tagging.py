"""Tagging: what tags say, files in columns, the CRF, the entity figures, and runs of the task."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from small_runs import Result
from testing import PATIENCE

from lightning_modules import load_run
from lightning_modules.callbacks import RNGState
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.cli import main
from lightning_modules.data import TaggingDataModule
from lightning_modules.data.conll import parse_sentences
from lightning_modules.data.help_pages import tagged_help_pages
from lightning_modules.data.tag_schemes import SCHEMES, allowed_transitions, entities, labels_of, to_tags
from lightning_modules.data.tagging import LONGEST_WORD, NO_LABEL, TaggingBatch
from lightning_modules.models.crf import LinearChainCRF
from lightning_modules.models.entity_metrics import EntityScore, count_entities
from lightning_modules.models.tagger import CharacterCNN
from lightning_modules.tasks import TaggingTask

SMALL = (
    "--model.embedding_size=12",
    "--model.hidden_size=12",
    "--model.character_embedding_size=6",
    "--model.character_hidden_size=8",
    "--data.batch_size=8",
    "--trainer.enable_progress_bar=false",
)
NAMES = ("Anna", "Bert", "Clara", "Doris", "Emil", "Frida")
CITIES = ("Oslo", "Paris", "Rome", "New York", "San Jose")


def make_conll(count: int, seed: int) -> str:
    """Sentences about people (PER) and cities (LOC), which their neighbors and capitals determine."""
    draw = random.Random(seed)
    lines: list[str] = []
    for _ in range(count):
        words = [(draw.choice(NAMES), "PER"), (draw.choice(["lives", "works", f"was {draw.randrange(2000)}"]), "")]
        words += [("in", ""), (draw.choice(CITIES), "LOC"), (".", "")] if draw.random() < 0.8 else [("alone", "")]
        for text, type_ in words:
            for k, token in enumerate(text.split()):
                lines.append(f"{token}\t" + (f"{'I' if k else 'B'}-{type_}" if type_ else "O"))
        lines.append("")
    return "\n".join(lines) + "\n"


def write_splits(folder: Path) -> Path:
    for seed, (name, count) in enumerate({"train": 80, "valid": 20, "test": 20}.items()):
        (folder / f"{name}.conll").write_text(make_conll(count, seed), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three splits."""
    return write_splits(tmp_path_factory.mktemp("conll"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run's folder."""
    runs = tmp_path_factory.mktemp("tagging")
    options = ("--data.path", folder, "--runs", runs, "--trainer.max_epochs=12", "--model.lr=0.02", *SMALL)
    assert main(["fit", "-c", "ner", *map(str, options)]) == 0
    return runs / "ner" / "version_0"


@pytest.fixture
def make(folder: Path) -> Callable[..., tuple[TaggingTask, TaggingDataModule]]:
    def make(scheme: str = "bio", batch_size: int = 8, **options: Any) -> tuple[TaggingTask, TaggingDataModule]:
        """A small task for the splits, its net built."""
        seed_everything(0)
        data = TaggingDataModule(path=str(folder), scheme=scheme, batch_size=batch_size)
        small = {"embedding_size": 6, "hidden_size": 5, "character_embedding_size": 4, "character_hidden_size": 3}
        bidirectional = {"class_path": "fused", "init_args": {"bidirectional": True}}
        task = TaggingTask(**small | {"recurrent": bidirectional} | options)
        task.build(data)
        return task, data

    return make


# What tags say --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags",
    [
        "O B-PER I-PER O B-LOC B-PER B-PER O",  # BIO
        "O I-PER I-PER O I-LOC I-PER B-PER O",  # IOB1: B only where one follows another of its type
        "O B-PER E-PER O S-LOC S-PER S-PER O",  # IOBES
        "O B-PER L-PER O U-LOC U-PER U-PER O",  # BILOU
        "O B-PER M-PER O B-LOC B-PER B-PER O",  # BMES that forgot its ends
    ],
)
def test_every_scheme_is_read_right_and_becomes_any_other(tags: str) -> None:
    found = entities(tags.split())
    assert found == [("PER", 1, 3), ("LOC", 4, 5), ("PER", 5, 6), ("PER", 6, 7)]
    for scheme in SCHEMES:
        again = to_tags(found, 8, scheme)
        assert entities(again) == found
        assert set(again) <= set(labels_of(["LOC", "PER"], scheme))
    assert to_tags(found, 8) == ["O", "B-PER", "I-PER", "O", "B-LOC", "B-PER", "B-PER", "O"]
    assert to_tags([("X", 0, 3), ("", 3, 4)], 4, "iobes") == ["B-X", "I-X", "E-X", "S"]


def test_any_tags_are_read_as_seqeval_reads_them() -> None:
    draw = random.Random(0)
    for _ in range(500):
        tags = [draw.choice(["O", *(f"{p}-{t}" for p in "BIES" for t in "XY")]) for _ in range(draw.randrange(9))]
        theirs = [(type_, start, end + 1) for type_, start, end in get_entities(tags)]
        assert entities(tags) == theirs, tags


def test_what_is_no_tag_is_refused() -> None:
    for tag in ("PER", "B_PER", "o", "B-", "", "X-PER"):
        with pytest.raises(ValueError, match="a tag must be O or a prefix and a type"):
            entities(["O", tag])


# Files in columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Anna\tB-PER\nsleeps\tO\n\n#\tO\n1\tO\n",
        "Anna B-PER\nsleeps O\n\n# O\n1 O",  # no line end
        "Anna NNP  I-NP B-PER\nsleeps VB I-VP O\n\n\n# X X O\n1 CD I-NP O\n\n",
        "-DOCSTART- -X- O O\n\nAnna X X B-PER\nsleeps X X O\n-DOCSTART- -X- O O\n# X X O\n1 X X O\n",
        "# sent_id = 1\n# text: Anna sleeps\nAnna\tB-PER\nsleeps\tO\n \n#\n#\tO\n1\tO\n",
        "Anna\tx y\tB-PER\nsleeps\t\tO\n\t\n#\t_\tO\n1\t_\tO \n",
    ],
)
def test_columns_are_read(text: str) -> None:
    first, second = parse_sentences(text, "f.conll")
    assert (first.tokens, first.tags) == (["Anna", "sleeps"], ["B-PER", "O"])
    assert (second.tokens, second.tags) == (["#", "1"], ["O", "O"])


def test_lines_without_tags_are_read_where_none_are_wanted() -> None:
    sentences = parse_sentences("Anna\nsleeps\n\n# a comment\n#\n#x\n\u00a0\n", "f.txt", tagged=False)
    assert [sentence.tokens for sentence in sentences] == [["Anna", "sleeps"], ["#", "#x", "\u00a0"]]
    (tagged,) = parse_sentences("Anna\tB-PER\nsleeps\tO\n", "f.conll", tagged=False)
    assert (tagged.tokens, tagged.tags) == (["Anna", "sleeps"], None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no sentences; want a token and its tag a line"),
        (b"\n\n-DOCSTART- O\n", "has no sentences; want a token and its tag a line"),
        (b"a\nb\n", ", line 1: want a token and its tag, separated by a TAB or spaces, got 'a'"),
        (b"a O\n\nb X O\n", ", line 3: want 2 columns as in line 1, got 3: 'b X O'"),
        (b"a\tO\nb\t\n", ", line 2: want 2 columns as in line 1, got 1: 'b\\t'"),
        (b"a\tO\nb O\n", ", line 2: want 2 columns as in line 1, got 1: 'b O'"),
        (b"a\tO\n\tO\n", ", line 2: want a token in the first column, got '\\tO'"),
        (b"a O\nb NOUN\n", ", line 2: want a tag in the last column, O or a prefix (B, I, E, S) and a type such as"),
        (b"a O\n\xff O\n", "is not utf-8 text"),
        (b"a O\nb O\n", "the train sentences must have an entity, got tags O alone"),
    ],
)
def test_bad_files_are_told_in_a_sentence(
    command: Callable[..., Result], tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "bad.conll"
    path.write_bytes(content)
    error = command("fit", "-c", "ner", "--data.train", path, "--data.valid", write_splits(tmp_path) / "valid.conll")
    assert said in error.error
    assert f"'{path}'" in error.error or "train sentences" in said
    assert not Path("runs").exists()


def test_a_type_that_train_never_has_is_told_with_its_place(tmp_path: Path) -> None:
    for name, text in {"train": "a B-X\n", "valid": "a O\n\nb O\nc I-Y\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    data = TaggingDataModule(path=str(tmp_path))
    with pytest.raises(ValueError, match=r"valid.txt', line 4: want an entity of a type .* \(X\), got 'I-Y'"):
        data.setup("fit")


def test_windows_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "all.conll"
    path.write_bytes(b"\xef\xbb\xbf" + make_conll(10, 0).replace("\n", "\r\n").encode())
    data = TaggingDataModule(path=str(path), split=(3, 1, 1))
    data.setup("fit")
    assert [len(data.sentences(name)) for name in ("train", "valid", "test")] == [6, 2, 2]
    assert data.types == ["LOC", "PER"]
    assert data.sentences("train")[0].tokens[0] in NAMES


def test_options_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scheme must be 'bio' or 'iobes', got 'bilou'"):
        TaggingDataModule(scheme="bilou")
    with pytest.raises(ValueError, match="split must be three shares"):
        TaggingDataModule(split=(1, 0, 0))
    for option in ({"unknown_rate": 1.5}, {"characters": "lstm"}, {"embedding_size": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be"):
            TaggingTask(**option)
    (tmp_path / "two.conll").write_text("a B-X\n\nb O\n")
    with pytest.raises(ValueError, match=r"must have a sentence for each of train, valid, test, .* got 2"):
        TaggingDataModule(path=str(tmp_path / "two.conll")).setup("fit")


# The batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_has_what_its_sentences_have(folder: Path) -> None:
    data = TaggingDataModule(path=str(folder))
    batch = data.collate([(["Anna", "was", "17"], ["B-PER", "O", "O"]), (["Qu" * 40], None)])
    words = data.known["words"]
    assert [words[k] for k in batch.words[:, 0]] == ["anna", "was", "00"]
    assert batch.words[:, 1].tolist() == [0, 0, 0]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.character_lengths.tolist() == [4, 3, 2, LONGEST_WORD]
    characters = [data.known["characters"][k] for k in batch.characters[:4, batch.spellings[0, 0]]]
    assert characters == list("Anna")
    assert [data.labels[k] for k in batch.labels[:, 0]] == ["B-PER", "O", "O"]
    assert batch.labels[:, 1].tolist() == [NO_LABEL] * 3


def test_the_default_data_is_that_of_the_help_pages() -> None:
    pages = parse_sentences(tagged_help_pages(), "pages")
    (sentence,) = [s for s in pages if s.tokens[:3] == ["These", "equivalences", "assume"]]
    tagged = {token: tag for token, tag in zip(sentence.tokens, sentence.tags, strict=True) if tag != "O"}
    assert tagged == {"__debug__": "B-code", "AssertionError": "B-code"}
    data = TaggingDataModule()
    data.setup("fit")
    assert data.types == ["code", "term"]
    figures = data.summary()
    assert sum(figures["tokens"].values()) > 30_000
    assert figures["entities"]["train"]["code"] > 1_000
    assert not any("*" in token and len(token) > 1 for s in data.sentences("train") for token in s.tokens)
    assert "Python's help pages" in "\n".join(data.describe())


# The conditional random field -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_crf_is_what_enumeration_gives(scheme: str) -> None:
    torch.manual_seed(0)
    allowed = allowed_transitions(2, scheme)
    K, T = len(allowed) - 1, 4
    crf = LinearChainCRF(allowed).double()
    emissions = torch.randn(T, 3, K, dtype=torch.float64)
    lengths = torch.tensor([4, 1, 3])
    garbage = emissions.clone()
    garbage[3:, 2], garbage[1:, 1] = 1e3, torch.inf  # past the ends
    partition, decoded = crf.log_partition(garbage.nan_to_num(posinf=50), lengths), crf.decode(emissions, lengths)
    labels = labels_of(["X", "Y"], scheme)
    for column, length in enumerate(lengths.tolist()):
        scores = {}
        for path in itertools.product(range(K), repeat=length):
            tags = [labels[k] for k in path]
            if to_tags(entities(tags), length, scheme) != tags:  # the scheme forbids it
                continue
            whole = [K, *path, K]
            moves = sum(crf.transitions[a, b] for a, b in itertools.pairwise(whole))
            scores[path] = moves + sum(emissions[step, column, k] for step, k in enumerate(path))
        total = torch.logsumexp(torch.stack(list(scores.values())), 0)
        assert partition[column].item() == pytest.approx(total.item(), abs=1e-9)
        best = max(scores, key=scores.get)
        assert tuple(decoded[:length, column].tolist()) == best
        assert not decoded[length:, column].any()
        gold = torch.zeros(T, 3, dtype=torch.int64)
        gold[length:, column] = NO_LABEL
        gold[:length, column] = torch.tensor(best)
        assert crf(emissions, gold, lengths)[column].item() == pytest.approx((total - scores[best]).item(), abs=1e-9)


def test_the_crf_decodes_no_tags_that_the_scheme_forbids_and_its_gradients_are_finite() -> None:
    torch.manual_seed(1)
    for scheme in SCHEMES:
        crf = LinearChainCRF(allowed_transitions(3, scheme))
        labels = labels_of("XYZ", scheme)
        emissions = (30 * torch.randn(12, 16, len(labels))).requires_grad_()  # most of them favor forbidden transitions
        lengths = torch.randint(1, 13, (16,))
        for column, ids in enumerate(crf.decode(emissions, lengths).t().tolist()):
            tags = [labels[k] for k in ids[: lengths[column]]]
            assert to_tags(entities(tags), len(tags), scheme) == tags
        crf(emissions, torch.zeros(12, 16, dtype=torch.int64), lengths).sum().backward()
        assert emissions.grad.isfinite().all()
        assert crf.transitions.grad.isfinite().all()
        assert (crf.transitions.grad[~crf.allowed] == 0).all()


def test_the_crf_computes_in_float32_under_bf16() -> None:
    crf = LinearChainCRF(allowed_transitions(1, "bio"))
    emissions = torch.randn(20, 2, 3).bfloat16()
    assert crf(emissions, torch.zeros(20, 2, dtype=torch.int64), torch.tensor([20, 7])).dtype == torch.float32


# The figures ----------------------------------------------------------------------------------------------------------


def test_the_figures_are_seqevals() -> None:
    draw = random.Random(2)
    labels = labels_of(["X", "Y"], "bio")

    def sentences() -> list[list[str]]:
        return [draw.choices(labels, [3, 2, 2, 2, 2], k=1 + k % 7) for k in range(60)]

    gold, predicted = sentences(), sentences()
    predicted[:30] = gold[:30]
    oracle = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    for name, of_seqeval in oracle.items():
        metric = EntityScore(2, name)
        for start in (0, 20, 40):  # in batches
            metric.update(count_entities(predicted[start : start + 20], gold[start : start + 20], ["X", "Y"]))
        assert metric.compute().item() == pytest.approx(of_seqeval(gold, predicted), abs=1e-12)
        by_type = EntityScore(2, name, 1)
        by_type.update(count_entities(predicted, gold, ["X", "Y"]))
        assert by_type.compute().item() == pytest.approx(of_seqeval(gold, predicted, average=None)[1], abs=1e-12)
    nothing = EntityScore(1, "f1")
    nothing.update(count_entities([["O"]], [["O"]], ["X"]))
    assert nothing.compute() == 0


# The task -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("characters", "crf", "scheme", "recurrent"),
    [
        ("cnn", True, "bio", "fused"),
        ("rnn", True, "iobes", "fused"),
        ("rnn", False, "bio", "gru"),
        ("none", True, "bio", "torch"),
    ],
)
def test_a_sentence_alone_and_in_a_batch_give_the_same(
    make: Callable[..., tuple], characters: str, crf: bool, scheme: str, recurrent: str
) -> None:
    spec = {"class_path": recurrent, "init_args": {"bidirectional": True}}
    task, data = make(scheme, characters=characters, crf=crf, recurrent=spec)
    task.new_metrics(data)
    task.eval()
    sentences = [(s.tokens, tags) for s, tags in zip(data.sentences("train"), data.gold_tags("train"), strict=True)]
    sentences = [*sentences[:6], (["Internationalisation"], ["O"])]
    assert len({len(tokens) for tokens, _ in sentences}) > 2
    together = data.collate(sentences)
    scores = task(together)
    loss, count = task.batch_loss(together, 0)
    total = 0.0
    for column, sentence in enumerate(sentences):
        alone = data.collate([sentence])
        torch.testing.assert_close(task(alone)[:, 0], scores[: len(sentence[0]), column], atol=1e-6, rtol=1e-5)
        loss_alone, count_alone = task.batch_loss(alone, 0)
        total += loss_alone.item() * count_alone
        assert task.net.decode(task(alone), alone.lengths)[0] == task.net.decode(scores, together.lengths)[column]
    assert count == sum(len(tokens) for tokens, _ in sentences)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_spelling_is_read_without_its_padding() -> None:
    torch.manual_seed(0)
    encoder = CharacterCNN(9, 4, 5)
    words = [torch.randint(9, (length,)) for length in (1, 2, 7)]
    padded = torch.nn.utils.rnn.pad_sequence(words, padding_value=8)
    together = encoder(padded, torch.tensor([1, 2, 7]))
    for k, word in enumerate(words):
        torch.testing.assert_close(encoder(word[:, None], torch.tensor([len(word)]))[0], together[k])
    # By hand: each window of three characters, with nothing before the first and after the last.
    weight, bias = encoder.convolution.weight, encoder.convolution.bias
    embedded = torch.nn.functional.pad(encoder.embedding(words[2]), (0, 0, 1, 1))
    windows = [torch.einsum("hek,ke->h", weight, embedded[start : start + 3]) + bias for start in range(7)]
    torch.testing.assert_close(torch.stack(windows).amax(0), together[2])


def test_only_words_seen_once_are_taken_for_unknown_and_only_in_training(make: Callable[..., tuple]) -> None:
    task, data = make(unknown_rate=1.0, dropout=0.0, characters="none")
    known = data.known
    counts = dict.fromkeys(known["words"], 0)
    for sentence in data.sentences("train"):
        for token in sentence.tokens:
            counts["".join("0" if c.isdigit() else c for c in token.lower())] += 1
    assert [count > 1 for count in list(counts.values())[1:]] == [
        k < known["num_frequent_words"] for k in range(1, len(counts))
    ]
    task.net.num_frequent_words = 4  # as if those from the fourth on were seen once
    once, often, unknown = (data.collate([([known["words"][k]] if k else ["?!"], None)]) for k in (4, 3, 0))
    task.train()
    assert task(once).equal(task(unknown))
    assert not task(often).equal(task(unknown))
    task.eval()
    assert not task(once).equal(task(unknown))


def test_training_goes_on_exactly_from_the_middle_of_an_epoch(
    make: Callable[..., tuple], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def fit(resume: Path | None = None) -> TaggingTask:
        task, data = make(dropout=0.3, recurrent_dropout=0.1, lr=1e-2, characters="rnn")
        seed_everything(5 if resume is None else 6)
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
        trainer = make_trainer(callbacks=[RNGState(), saver] if resume is None else [RNGState()])
        trainer.fit(task, data, ckpt_path=resume, weights_only=True)
        assert trainer.global_step == 20
        return task

    whole = fit()
    for step in (7, 14):  # of 10 steps an epoch
        resumed = fit(tmp_path / f"step={step}.ckpt")
        for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert value.equal(other), name


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_what_it_should(run: Path, command: Callable[..., Result]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    names = {"f1", "precision", "recall", "loss", "f1_LOC", "f1_PER"}
    assert set(summary["test"]) == {f"test_{name}" for name in names}
    assert summary["test"]["test_f1"] > 0.9
    assert summary["best"]["val_f1"] > 0.9
    assert summary["data"]["sentences"] == {"train": 80, "valid": 20, "test": 20}
    for split in ("valid", "test"):
        assert (run / f"entities_{split}.png").stat().st_size > 10_000
    test = command("test", "-c", run, "--ckpt_path", "best", "--trainer.enable_progress_bar=false")
    assert test.code == 0, test.err
    assert str(summary["test"]["test_f1"])[:6] in test.out


def test_predictions_are_columns_with_one_more(run: Path, folder: Path, command: Callable[..., Result]) -> None:
    result = command("predict", "-c", run, "--ckpt_path", "best", "--trainer.enable_progress_bar=false")
    assert result.code == 0, result.err
    path = run / "predictions.conll"
    assert f"in {path}" in result.out
    gold = parse_sentences((folder / "test.conll").read_text(), "gold")
    predicted = parse_sentences(path.read_text(encoding="utf-8"), "predicted")
    assert [s.tokens for s in predicted] == [s.tokens for s in gold]
    assert [[row.split("\t")[1] for row in s.rows] for s in predicted] == [s.tags for s in gold]
    summary = json.loads((run / "summary.json").read_text())
    assert f1_score([s.tags for s in gold], [s.tags for s in predicted]) == pytest.approx(summary["test"]["test_f1"])
    options = ("--data.batch_size=1", "--trainer.devices=2", "--trainer.strategy=ddp_spawn")
    limited = command("predict", "-c", run, "--ckpt_path=best", *options, "--trainer.limit_predict_batches=2")
    assert limited.code == 0, limited.err
    assert "predict runs in one process: trainer.devices 2 is left aside" in limited.out
    assert "2 sentences with" in limited.out
    assert parse_sentences(path.read_text(encoding="utf-8"), "predicted") == predicted[:2]
    nothing = command("predict", "-c", run, "--ckpt_path=best", "--trainer.limit_predict_batches=0")
    assert nothing.error == "trainer.limit_predict_batches must be more than 0 to predict, got 0"


def test_new_sentences_are_tagged_from_a_file_and_from_memory(
    run: Path, command: Callable[..., Result], tmp_path: Path
) -> None:
    text = "Anna\nlives\nin\nNew\nYork\n.\n\nÜmit\nworks\nin\nRome\n.\n"
    (tmp_path / "new.txt").write_text(text, encoding="utf-8")
    options = ("--data.predict", tmp_path / "new.txt", "--trainer.enable_progress_bar=false")
    result = command("predict", "-c", run, "--ckpt_path", "best", *options)
    assert result.code == 0, result.err
    assert "2 sentences with" in result.out
    sentences = parse_sentences((run / "predictions.conll").read_text(encoding="utf-8"), "predictions")
    assert sentences[0].rows[0] == "Anna\tB-PER"
    assert sentences[0].tags == ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]
    examples = [sentences[0].tokens, "Ümit works in Rome .", []]
    loaded = load_run(run)
    assert loaded.predict(examples) == [sentences[0].tags, sentences[1].tags, []]
    with pytest.raises(ValueError, match="a sentence must be tokens of a character or more"):
        loaded.predict([["a", ""]])
    with pytest.raises(TypeError, match="must be a list of sentences"):
        loaded.predict("Anna lives")
    (tmp_path / "new.txt").write_text("\n")
    assert (
        "has no sentences; want a token a line" in command("predict", "-c", run, "--ckpt_path", "best", *options).error
    )


def test_the_scheme_of_a_checkpoint_stays(run: Path, command: Callable[..., Result]) -> None:
    error = command("test", "-c", run, "--ckpt_path", "best", "--data.scheme=iobes").error
    assert error == "data.scheme must be that of the checkpoint, 'bio', got 'iobes'"


@pytest.mark.parametrize("layer", ["torch", "gru", "rnn", "toy_task.OwnLayer"])
def test_any_recurrent_layer_serves(command: Callable[..., Result], folder: Path, layer: str) -> None:
    options = ("--model.recurrent", layer, "--model.characters=rnn", "--trainer.fast_dev_run=2", "--data.scheme=iobes")
    result = command("fit", "-c", "ner", "--data.path", folder, *SMALL, *options)
    assert result.code == 0, result.err


def test_the_config_runs_without_data_of_ones_own(command: Callable[..., Result]) -> None:
    result = command("fit", "-c", "ner", "--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false")
    assert result.code == 0, result.err
    assert "Python's help pages" in result.out


def test_the_embedding_begins_with_given_vectors(folder: Path, tmp_path: Path, command: Callable[..., Result]) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("anna 1 2 3\noslo 4 5 6\nelsewhere 7 8 9\n")
    data = TaggingDataModule(path=str(folder), vectors=str(path))
    data.setup("fit")
    task = TaggingTask(hidden_size=4)
    task.build(data)
    assert task.net.embedding.weight[data.known["words"].index("oslo")].tolist() == [4, 5, 6]
    assert any("vectors: 2 of the vocabulary's" in line for line in data.describe())
    options = ("--data.path", folder, "--data.vectors", path, *SMALL)
    assert command("fit", "-c", "ner", *options).error == "embedding_size must be that of the vectors, 3, got 12"
    # A run is used without them.
    result = command("fit", "-c", "ner", *options, "--model.embedding_size=3", "--trainer.max_epochs=1")
    assert result.code == 0, result.err
    path.unlink()
    loaded = load_run("runs/ner/version_0")
    assert len(loaded.predict([["Anna", "sleeps"]])[0]) == 2


def test_what_a_checkpoint_keeps_is_plain(run: Path) -> None:
    state = load_checkpoint(run / "checkpoints" / "best.ckpt")["TaggingDataModule"]
    assert state["types"] == ["LOC", "PER"]
    assert isinstance(state["words"], list)
    assert state["words"][0] == "<unk>"


def test_batches_are_tuples_of_tensors(make: Callable[..., tuple]) -> None:
    _, data = make()
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TaggingBatch)
    assert batch.words.shape == batch.labels.shape == batch.spellings.shape == (int(batch.lengths.max()), 8)


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(folder: Path, tmp_path: Path) -> None:
    """The sentences of a batch are of unequal lengths, so the two have different numbers of tokens."""
    off = ("--model.dropout=0", "--model.recurrent_dropout=0", "--model.unknown_rate=0", "--model.lr=0.005")
    options = ["--data.path", str(folder), "--trainer.max_epochs=2", *SMALL, *off]
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    for name, more in (("one", []), ("two", two)):
        command = [sys.executable, "-m", "lightning_modules", "fit", "-c", "ner", "--name", name, *options, *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=tmp_path, env=environment, timeout=PATIENCE, check=True)
    one, two = (json.loads((tmp_path / "runs" / n / "version_0" / "summary.json").read_text()) for n in ("one", "two"))
    assert two["best"] == pytest.approx(one["best"], rel=1e-4)
    assert two["test"] == pytest.approx(one["test"], rel=1e-4)
    assert 0 < one["best"]["val_loss"] < 2
