"""What the tests of the training side share: a small text, small models, a trainer that writes to a given folder."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from lightning.pytorch import Trainer, seed_everything
from small_runs import SHORT_RUN, SMALL, Result, make_text

from lightning_modules.callbacks import TextSample
from lightning_modules.checkpoints import SafeCheckpointIO
from lightning_modules.cli import main
from lightning_modules.data import TextDataModule
from lightning_modules.tasks import LanguageModelTask


@pytest.fixture(scope="module", autouse=True)
def short_samples() -> Iterator[None]:
    """Of the text that a fit samples when it ends; in full length that would take as long as the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_modules.tasks.language_model.TextSample", partial(TextSample, length=5))
        yield


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(), encoding="utf-8")
    return path


@pytest.fixture
def make_data(text_file: Path) -> Callable[..., TextDataModule]:
    def make(**options: Any) -> TextDataModule:
        return TextDataModule(**{"path": str(text_file), "batch_size": 4, "sequence_length": 20} | options)

    return make


@pytest.fixture
def make_task() -> Callable[..., LanguageModelTask]:
    def make(seed: int = 0, **options: Any) -> LanguageModelTask:
        """A small model with every random option on, its weights a function of ``seed``."""
        seed_everything(seed)
        small = {"vocab_size": 30, "embedding_size": 8, "hidden_size": 12, "num_layers": 2, "lr": 1e-2}
        return LanguageModelTask(**small | {"recurrent_dropout": 0.1, "zoneout": 0.1} | options)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**options: Any) -> Trainer:
        defaults = {
            "accelerator": "cpu",
            "max_epochs": 2,
            "default_root_dir": tmp_path,
            "plugins": [SafeCheckpointIO()],
            "logger": False,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        if "callbacks" not in options:
            defaults["enable_checkpointing"] = False
        return Trainer(**defaults | options)

    return make


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., Result]:
    """Runs ``lstm-fused`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def small_fit(command: Callable[..., Result], text_file: Path) -> Callable[..., Result]:
    """A fit of a small model on the small text; its run is ``runs/char_lm/version_N``."""

    def fit(*arguments: object, config: str = "char_lm") -> Result:
        return command("fit", "-c", config, "--data.path", text_file, *SMALL, *arguments)

    return fit


@pytest.fixture(scope="module")
def small_pictures() -> Iterator[None]:
    """For tests of many fits that ask no more of a picture than that it is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(matplotlib.rcParams, "figure.dpi", 20)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_pictures: None) -> Path:
    """Where all runs of a file are by ``fit`` and ``whole``; their folders are ``NAME/version_N``."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(make_text(170), encoding="utf-8")
    return folder


@pytest.fixture
def fit(folder: Path, capfd: pytest.CaptureFixture) -> Callable[..., tuple[Result, Path]]:
    def run(name: str, *arguments: str, config: str | Path = "char_lm", version: int = 0) -> tuple[Result, Path]:
        """A fit under a name of its own; how it ended, and its folder."""
        capfd.readouterr()
        options = (f"--data.path={folder / 'text.txt'}", *SHORT_RUN) if config == "char_lm" else ()
        code = main(["fit", "-c", str(config), *options, f"--runs={folder}", f"--name={name}", *arguments])
        return Result(code, *capfd.readouterr()), folder / name / f"version_{version}"

    return run


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The folder of a run of three epochs that never stops, and validates once an epoch."""
    text = f"--data.path={folder / 'text.txt'}"
    main(["fit", "-c", "char_lm", text, *SHORT_RUN, f"--runs={folder}", "--name=whole"])
    return folder / "whole" / "version_0"
