"""Output never ends a run: terminals, locales, pipes; what cannot be printed or stored is reported."""

import io
import locale
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, Result, make_text
from testing import PATIENCE

from lightning_modules.callbacks.confusion_picture import draw_confusion
from lightning_modules.cli import main
from lightning_modules.data import TextDataModule
from lightning_modules.terminal import lenient_output, utf8_files

FOREIGN = make_text().replace("cat", "Käfer").replace("dog", "猫")
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")


@pytest.fixture(scope="module")
def foreign_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose folder, text and name are not ASCII, its stdout an ASCII pipe whose reader has gone."""
    folder = tmp_path_factory.mktemp("runs [1] %d {x} ö")
    text = folder / "täxt.txt"
    text.write_text(FOREIGN, encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="ascii") as gone, redirect_stdout(gone):
        arguments = ("fit", "-c", "char_lm", f"--data.path={text}", f"--runs={folder}", *SMALL, *SHORT, "--name=käfer")
        code = main([*arguments, "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=true"])
    assert code == 0
    return folder / "käfer" / "version_0"


def test_a_fit_whose_reader_has_gone_is_whole(foreign_run: Path) -> None:
    assert {file.name for file in foreign_run.iterdir()} >= {"config.yaml", "metrics.csv", "sample.txt", "summary.json"}
    assert '"test_loss"' in (foreign_run / "summary.json").read_text(encoding="utf-8")
    assert "täxt.txt" in (foreign_run / "config.yaml").read_text(encoding="utf-8")
    assert "Käfer" in (foreign_run / "sample.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_terminal_lacks_are_escaped(foreign_run: Path, tmp_path: Path, encoding: str) -> None:
    shown = tmp_path / "shown"
    with open(shown, "w", encoding=encoding) as terminal, redirect_stdout(terminal):
        assert main(["sample", str(foreign_run), "--prompt", "Käfer 猫", "--length", "3"]) == 0
    expected = {"ascii": "K\\xe4fer \\u732b", "latin-1": "Käfer \\u732b"}[encoding]
    assert shown.read_text(encoding=encoding).startswith(expected)


def test_samples_for_a_reader_that_has_gone_end_well(foreign_run: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as gone, redirect_stdout(gone):
        assert main(["sample", str(foreign_run), "--length", "3"]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_what_a_full_disk_swallows_is_told(capfd: pytest.CaptureFixture) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full, redirect_stdout(full):
        assert main(["--help"]) == 1
    assert Result(1, *capfd.readouterr()).error == "standard output is not whole: No space left on device"


def test_an_output_that_must_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    child = subprocess.Popen(["wc", "-c"], stdin=reader, stdout=subprocess.PIPE, text=True)
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe, redirect_stdout(pipe), lenient_output():
        print("x" * 2**20)
    assert child.communicate(timeout=PATIENCE)[0].strip() == str(2**20 + 1)


def test_closed_streams_an_ascii_locale_and_an_unknown_backend() -> None:
    """In a process of its own, without torch: its streams are closed before Python starts."""
    script = (
        "import os, sys; from lightning_modules.cli import main; assert sys.stdout is sys.stderr is None; "
        "sys.argv = ['', '--help']; codes = main(), main(['fits']), main(['fit', 't\\udcc3xt.txt']); "
        "opened = os.open(os.devnull, os.O_RDWR); "
        "os._exit(0 if codes == (0, 1, 1) and opened > 2 and os.environ['MPLBACKEND'] == 'agg' else 3)"
    )
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "", "MPLBACKEND": "of another machine"}
    command = ["sh", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, script]
    assert subprocess.run(command, env=env, timeout=PATIENCE, check=False).returncode == 0


def test_a_folder_that_has_been_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert main(["fit", "-c", "char_lm"]) == 1
    assert Result(1, *capfd.readouterr()).error == "the current folder has been removed: go to one that is there"


def test_files_are_utf8_in_any_locale(tmp_path: Path) -> None:
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        with utf8_files():
            (tmp_path / "text").write_text("Käfer 猫")
        assert locale.setlocale(locale.LC_CTYPE) == "C"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert (tmp_path / "text").read_text(encoding="utf-8") == "Käfer 猫"


def test_streams_that_are_no_files_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Notebook(io.StringIO):
        """Jupyter's too tell a file: that of the terminal from which the notebook was started."""

        def fileno(self) -> int:
            return 1

    notebook = Notebook()
    monkeypatch.setattr("sys.stdout", notebook)
    with lenient_output():
        assert sys.stdout is notebook


def test_names_that_are_no_text_are_told(command: Callable[..., Result], tmp_path: Path) -> None:
    """Nothing that is UTF-8 could hold them: no config, no table of predictions."""
    assert "an argument must be text in " in command("fit", "-c", "char_lm", "--data.path", "t\udce4xt.txt").error
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/t\xe4xt.txt")).write_text(make_text())
    except OSError:
        pytest.skip("this file system's names are all text")
    with pytest.raises(ValueError, match=r"the name of a file must be text in .*t\\udce4xt.txt'"):
        TextDataModule(path=str(tmp_path)).text("train")


def test_pictures_take_names_as_they_stand(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """``$^$`` is no formula, 猫 is in no font of matplotlib's."""
    path = tmp_path / "picture.png"
    draw_confusion(torch.ones(2, 2, dtype=torch.int64), ["$^$", "猫"], path, "test split")
    assert path.stat().st_size > 0
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--seed", 2**64), "seed must be in [-2**63, 2**64), got 18446744073709551616"),
        (("--seed", "true"), "argument --seed: invalid int value: 'true'"),
        (("--temperature", "nan"), "temperature must be at least 0, got nan"),
        (("--length", "2.5"), "argument --length: invalid int value: '2.5'"),
        (("--length", "-1"), "length must be at least 0, got -1"),
        (("--lenght", "5"), "unrecognized arguments: --lenght 5"),
    ],
)
def test_odd_arguments_of_sample_are_one_sentence(
    command: Callable[..., Result], foreign_run: Path, arguments: tuple, error: str
) -> None:
    assert command("sample", foreign_run, *arguments).error == error


def test_the_coldest_temperature_is_the_likeliest_text(command: Callable[..., Result], foreign_run: Path) -> None:
    cold, zero = (command("sample", foreign_run, "--length", 9, "--temperature", value) for value in ("1e-310", 0))
    assert cold.code == zero.code == 0
    assert cold.out == zero.out


@pytest.mark.parametrize("seed", [2**32, -1])
def test_an_odd_seed_of_a_run_is_one_sentence(small_fit: Callable[..., Result], seed: int, tmp_path: Path) -> None:
    error = small_fit(f"--seed_everything={seed}").error
    assert error == f"seed_everything must be true, false or in [0, 2**32), got {seed}"
    assert not (tmp_path / "runs").exists()


def test_runs_that_are_no_folder_are_told_before_training(small_fit: Callable[..., Result], text_file: Path) -> None:
    result = small_fit(f"--runs={text_file}")
    assert result.error == (
        f"runs and name must make a folder to write to, got '{text_file / 'char_lm'}': Not a directory"
    )
    assert "weight decay" not in result.out  # what a fit says when it begins
