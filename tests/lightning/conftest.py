"""What the tests of the training side share: a small text, small models, a trainer that writes where it is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer, seed_everything
from small_runs import SMALL, Result, make_text

from lightning_modules.checkpoints import SafeCheckpointIO
from lightning_modules.cli import main
from lightning_modules.data import TextDataModule
from lightning_modules.tasks import LanguageModelTask


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
