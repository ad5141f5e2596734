"""Checkpoints run no code and are written atomically; a bad one is an error of one sentence."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import Result

from lightning_modules.checkpoints import SafeCheckpointIO, load_checkpoint


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.fixture
def bad_checkpoint(tmp_path: Path) -> Callable[[str], tuple[Path, str]]:
    """A file of the given kind of badness, and what is said about it."""

    def make(kind: str) -> tuple[Path, str]:
        path = tmp_path / "bad.ckpt"
        good = {"state_dict": {"net.weight": torch.ones(300)}, "hyper_parameters": {}}
        if kind == "hostile":
            torch.save(good | {"extra": Payload(tmp_path / "owned")}, path)
            return path, "could run code"
        if kind == "hostile pickle":
            path.write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
            return path, "could run code"
        if kind == "truncated":
            torch.save(good, path)
            path.write_bytes(path.read_bytes()[:-200])
            return path, "damaged"
        if kind == "flipped":
            torch.save(good, path)
            content = bytearray(path.read_bytes())
            content[60:120] = bytes(60)
            path.write_bytes(content)
            return path, "damaged"
        if kind == "empty":
            path.touch()
            return path, "damaged"
        if kind == "text":
            path.write_text("not a checkpoint at all\n")
            return path, "damaged"
        if kind == "tensor":
            torch.save(torch.ones(3), path)
            return path, "has no state_dict"
        assert kind == "missing"
        return path, "there is no checkpoint at"

    return make


KINDS = ["hostile", "hostile pickle", "truncated", "flipped", "empty", "text", "tensor", "missing"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_checkpoint_is_told_and_runs_nothing(bad_checkpoint: Callable, tmp_path: Path, kind: str) -> None:
    path, message = bad_checkpoint(kind)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "owned").exists()


def test_the_payload_is_real(bad_checkpoint: Callable, tmp_path: Path) -> None:
    """The test above can fail: loaded without care, the hostile file writes its file."""
    path, _ = bad_checkpoint("hostile")
    torch.load(path, weights_only=False)
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", ["hostile", "truncated", "tensor"])
@pytest.mark.parametrize("subcommand", ["fit", "test", "predict", "sample"])
def test_every_command_refuses_a_bad_checkpoint(
    command: Callable[..., Result],
    small_fit: Callable[..., Result],
    bad_checkpoint: Callable,
    text_file: Path,
    tmp_path: Path,
    subcommand: str,
    kind: str,
) -> None:
    path, message = bad_checkpoint(kind)
    if subcommand == "sample":
        result = command("sample", path)
    elif subcommand == "fit":
        result = small_fit("--ckpt_path", path)
    else:
        result = command(subcommand, "-c", "char_lm", "--data.path", text_file, "--ckpt_path", path)
    assert message in result.error
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "runs").exists()


def test_a_save_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "last.ckpt"
    checkpoint_io = SafeCheckpointIO()
    checkpoint_io.save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, path)

    def fail_half_way(checkpoint, file) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        checkpoint_io.save_checkpoint({"state_dict": {"w": torch.ones(3)}}, path)
    monkeypatch.undo()
    assert load_checkpoint(path)["state_dict"]["w"].tolist() == [0, 0, 0]
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
