"""If training has no <unk>, figures are reported with and without the unknown words."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from small_runs import make_text
from torch.nn import functional as F

from lightning_modules.data import TextDataModule
from lightning_modules.tasks import LanguageModelTask

STRANGE = "a zebra sat on the mat\nthe cat ran and quagga slept\n" * 8


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text(make_text(80))
    (tmp_path / "valid.txt").write_text(make_text(20, seed=1) + STRANGE)
    (tmp_path / "test.txt").write_text(STRANGE + make_text(20, seed=2))
    return tmp_path


def make_data(texts: Path, **options) -> TextDataModule:
    return TextDataModule(**{"path": str(texts), "level": "word", "batch_size": 4, "sequence_length": 7} | options)


@pytest.mark.parametrize("level", ["word", "char"])
def test_the_known_figures_are_means_over_the_known_tokens(
    texts: Path, make_task: Callable[..., LanguageModelTask], make_trainer: Callable[..., Trainer], level: str, capsys
) -> None:
    data, task = make_data(texts, level=level), make_task(vocab_size=None)
    trainer = make_trainer()
    for name, judge in (("val", trainer.validate), ("test", trainer.test)):
        [figures] = judge(task, data, verbose=False)
        columns = (data.val_dataloader() if name == "val" else data.test_dataloader()).columns
        with torch.no_grad():
            logits, _ = task.net.eval()(columns[:-1])
        nll = F.cross_entropy(logits.flatten(0, 1), columns[1:].flatten(), reduction="none")
        known = columns[1:].flatten() != 0
        assert 0 < int((~known).sum()) < len(known) / 2
        assert figures[f"{name}_loss"] == pytest.approx(float(nll.mean()), rel=1e-5)
        assert figures[f"{name}_loss_known"] == pytest.approx(float(nll[known].mean()), rel=1e-5)
        assert figures[f"{name}_ppl"] == pytest.approx(math.exp(nll.mean()), rel=1e-5)
        assert figures[f"{name}_ppl_known"] == pytest.approx(math.exp(nll[known].mean()), rel=1e-5)
        if level == "char":
            assert figures[f"{name}_bpc_known"] == pytest.approx(float(nll[known].mean()) / math.log(2), rel=1e-5)
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Training never sees <unk>"))
    share = float((data.tokens("valid") == 0).double().mean())
    assert f"{share:.2%} of the valid text's tokens" in line
    assert "--data.min_count 2" in line

    batches = trainer.predict(task, data)
    said = task.write_predictions(batches, data, texts)
    whole, known_count, known_perplexity = re.search(
        r"perplexity ([\d.]+) \(of the ([\d,]+) known tokens ([\d.]+)\)", said
    ).groups()
    tokens = data.tokens("test")[1:]
    assert int(known_count.replace(",", "")) == int((tokens != 0).sum())
    assert float(known_perplexity) != float(whole)


@pytest.mark.parametrize("options", [{"max_vocab": 8}, {"min_count": 3}, {"train": "unk"}, {"valid": "plain"}])
def test_trained_or_absent_unknown_words_change_nothing(
    texts: Path,
    make_task: Callable[..., LanguageModelTask],
    make_trainer: Callable[..., Trainer],
    options: dict,
    capsys: pytest.CaptureFixture,
) -> None:
    """WikiText has <unk> in its text, PTB too; max_vocab and min_count make it of rare words."""
    text = (texts / "train.txt").read_text()
    if options == {"train": "unk"}:
        (texts / "train.txt").write_text(text.replace("hill", "<unk>"))
    elif options == {"valid": "plain"}:
        (texts / "valid.txt").write_text(text[:400])
    else:
        (texts / "train.txt").write_text(text + "one rare word and no other\n")
    data = make_data(texts, **{k: v for k, v in options.items() if k not in ("train", "valid")})
    [figures] = make_trainer().validate(make_task(vocab_size=None), data, verbose=False)
    assert figures.keys() == {"val_loss", "val_ppl"}
    assert "never sees" not in capsys.readouterr().err


def test_a_checkpoint_knows_whether_unknown_words_were_trained(
    texts: Path, make_task: Callable[..., LanguageModelTask], make_trainer: Callable[..., Trainer]
) -> None:
    state = make_data(texts).state_dict()
    assert state["unknown_is_trained"] is False
    assert make_data(texts, min_count=50).state_dict()["unknown_is_trained"] is True
    new = texts / "new.txt"
    new.write_text(STRANGE)
    for name in ("train", "valid", "test"):
        (texts / f"{name}.txt").unlink()  # nothing of them is needed any more
    for trained, known in ((False, True), (True, False), (None, False)):
        saved = {name: value for name, value in state.items() if trained is not None or name != "unknown_is_trained"}
        data = make_data(texts, test=str(new))
        data.load_state_dict(saved | ({} if trained is None else {"unknown_is_trained": trained}))
        [figures] = make_trainer().test(make_task(vocab_size=None), data, verbose=False)
        assert ("test_ppl_known" in figures) == known


def test_a_run_that_goes_on_with_unknown_words_trains_them(texts: Path) -> None:
    state = make_data(texts).state_dict()
    (texts / "train.txt").write_text(make_text(80) + STRANGE)
    data = make_data(texts)
    data.load_state_dict(state)
    data.setup("fit")
    assert data.unknown_is_trained
    assert not data.judges_untrained_unknown()


@pytest.mark.parametrize("clean", ["valid", "test", None])
def test_it_is_told_once(texts: Path, clean: str | None, capsys: pytest.CaptureFixture) -> None:
    if clean is not None:
        (texts / f"{clean}.txt").write_text(make_text(20, seed=3))
    data = make_data(texts)
    for stage in ("fit", "test", "fit", "test"):  # as the command does, and then Lightning
        data.setup(stage)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Training never sees")]
    assert ("test text" if clean == "valid" else "valid text") in line
