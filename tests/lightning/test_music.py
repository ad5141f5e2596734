"""Music: piano rolls from npz and MIDI, what a frame costs, samples and predictions."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_resume import check_exact_resume
from lightning.pytorch import Trainer, seed_everything
from small_runs import Result

from lightning_modules import load_run
from lightning_modules.cli import main
from lightning_modules.data import MusicDataModule
from lightning_modules.data.piano_rolls import KEYS, chorales, read_midi, read_npz, write_midi, write_npz
from lightning_modules.tasks import MusicTask

SMALL = ("--trainer.enable_progress_bar=false", "--model.hidden_size=12", "--model.warmup_steps=2")


def random_pieces(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy((rng.random((length, KEYS)) < 0.05).astype(np.uint8)) for length in lengths]


def save_splits(path: Path, **splits: list[torch.Tensor]) -> Path:
    arrays: dict[str, Any] = {}
    for name, pieces in splits.items():
        arrays[f"{name}_roll"] = torch.cat(pieces).numpy()
        arrays[f"{name}_len"] = np.array([len(piece) for piece in pieces], np.int32)
    np.savez(path, **arrays)
    return path


def new_task(data: MusicDataModule | None = None, **options: Any) -> MusicTask:
    """A small model of random weights, larger than a new one's: what it says of pieces differs."""
    seed_everything(0)
    task = MusicTask(**{"hidden_size": 7, "dropout": 0.0} | options)
    if data is not None:
        task.build(data)
        with torch.no_grad():
            for parameter in task.parameters():
                parameter.mul_(3)
        task.eval()
    return task


def nll_of(task: MusicTask, piece: torch.Tensor) -> list[float]:
    """What each frame of a piece costs, key by key."""
    roll = piece.double()
    inputs = torch.cat((torch.zeros(1, KEYS), piece[:-1].float()))
    probabilities = task(inputs[:, None], torch.tensor([len(piece)]))[:, 0].detach().double().sigmoid()
    return [
        float(-sum(p.log() if x else (1 - p).log() for p, x in zip(frame, keys, strict=True)))
        for frame, keys in zip(probabilities, roll, strict=True)
    ]


# What a frame costs ---------------------------------------------------------------------------------------------------


def test_nll_is_summed_over_keys_and_the_mean_of_real_frames(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    valid = random_pieces([9, 2, 5])
    path = save_splits(tmp_path / "pieces.npz", train=random_pieces([4]), valid=valid)
    data = MusicDataModule(path=str(path), batch_size=2)
    task, trainer = new_task(data), make_trainer()
    trainer.validate(task, data, verbose=False)
    frames = [cost for piece in valid for cost in nll_of(task, piece)]
    assert len(frames) == 16
    for name in ("val_loss", "val_nll"):
        assert float(trainer.callback_metrics[name]) == pytest.approx(np.mean(frames), rel=1e-5)


@pytest.mark.parametrize("layer", ["fused", "torch", "gru", "rnn"])
def test_a_piece_alone_and_in_a_padded_batch_give_the_same(layer: str) -> None:
    data = MusicDataModule()
    task = new_task(data, recurrent=layer, num_layers=2)
    pieces = random_pieces([7, 1, 4])
    together = task.predict_step(data.collate(pieces)).probabilities
    for column, piece in enumerate(pieces):
        alone = task.predict_step(data.collate([piece])).probabilities[:, 0]
        torch.testing.assert_close(together[: len(piece) + 1, column], alone, rtol=1e-4, atol=1e-5)


def test_no_frame_is_told_from_itself_or_from_later_ones() -> None:
    data = MusicDataModule()
    task = new_task(data)
    piece = random_pieces([8])[0]
    other = piece.clone()
    other[5] = 1 - other[5]
    before, after = (task.predict_step(data.collate([each])).probabilities[:, 0] for each in (piece, other))
    assert before[:6].equal(after[:6])
    assert not before[6:].allclose(after[6:])
    with pytest.raises(ValueError, match="recurrent must not be bidirectional in music"):
        new_task(data, recurrent={"class_path": "fused", "init_args": {"bidirectional": True}})


# The pieces -----------------------------------------------------------------------------------------------------------


def test_an_npz_file_tells_its_splits(tmp_path: Path) -> None:
    pieces = {name: random_pieces([3 + k, 5], seed=k) for k, name in enumerate(("train", "valid", "test"))}
    path = str(save_splits(tmp_path / "all.npz", **pieces))
    data = MusicDataModule(path=path)
    assert data.has_test()
    for name, expected in pieces.items():
        assert [piece.tolist() for piece in data.pieces(name)] == [piece.tolist() for piece in expected]
    del pieces["test"]
    data = MusicDataModule(path=str(save_splits(tmp_path / "two.npz", **pieces)))
    assert not data.has_test()
    with pytest.raises(ValueError, match="there are no test pieces"):
        data.setup("test")
    only = MusicDataModule(path=str(save_splits(tmp_path / "one.npz", train=random_pieces([2] * 18))))
    assert not only.has_test()
    assert [len(only.pieces(name)) for name in ("train", "valid")] == [16, 2]
    no_train = MusicDataModule(path=str(save_splits(tmp_path / "none.npz", valid=random_pieces([2]))))
    with pytest.raises(ValueError, match=r"there are no train pieces|has no train_roll"):
        no_train.setup("fit")
    given = MusicDataModule(train=path, valid=str(tmp_path / "two.npz"))
    assert [len(given.pieces(name)[0]) for name in ("train", "valid")] == [3, 4]


def test_pieces_of_no_split_are_cut_alike_each_time(tmp_path: Path) -> None:
    pieces = [torch.eye(KEYS, dtype=torch.uint8)[[k]] for k in range(20)]
    write_npz(tmp_path / "whole.npz", pieces)
    data, again = (MusicDataModule(path=str(tmp_path / "whole.npz")) for _ in range(2))
    found = {name: [int(piece.argmax()) for piece in data.pieces(name)] for name in ("train", "valid", "test")}
    assert {name: len(keys) for name, keys in found.items()} == {"train": 16, "valid": 2, "test": 2}
    assert sorted(key for keys in found.values() for key in keys) == list(range(20))
    assert [int(piece.argmax()) for piece in again.pieces("valid")] == found["valid"]
    whole = MusicDataModule(path=str(tmp_path / "whole.npz"), split=(1, 1, 0))
    assert not whole.has_test()
    assert len(whole.pieces("train")) == 10


def test_long_train_pieces_are_cut_and_no_others(tmp_path: Path) -> None:
    path = save_splits(tmp_path / "long.npz", train=random_pieces([11]), valid=random_pieces([9]))
    data = MusicDataModule(path=str(path), max_length=4)
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch.lengths.tolist()) == [3, 4, 4]
    assert next(iter(data.val_dataloader())).lengths.tolist() == [9]


def save_arrays(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


ROLL = np.zeros((4, KEYS), np.uint8)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no zip"), r"is not an npz file of arrays: File is not a zip file$"),
        (save_arrays(x=ROLL), r"must have arrays train_roll and train_len \(valid, test\), or roll and len, got x"),
        (save_arrays(train_roll=ROLL), "has train_roll, and no train_len that says how many frames each piece has"),
        (save_arrays(roll=ROLL[:, :80], len=np.array([4])), r"roll: must be \[frames, 88\], got \[4, 80\]"),
        (save_arrays(roll=ROLL, len=np.array([3])), r"len: must sum to the 4 frames of roll, got 3"),
        (save_arrays(roll=ROLL, len=np.array([4, 0])), "len: piece 1 must have at least 1 frame, got 0"),
        (save_arrays(roll=ROLL, len=np.array([4.0])), "len: must be whole numbers, got float64"),
        (save_arrays(roll=ROLL[:0], len=np.array([], int)), "len: there are no pieces"),
        (save_arrays(roll=ROLL * np.nan, len=np.array([4])), "roll: must be 0 or 1, got nan at frame 0, key 0"),
        (save_arrays(roll=ROLL + 2, len=np.array([4])), "roll: must be 0 or 1, got 2 at frame 0, key 0"),
    ],
)
def test_bad_npz_files_are_told(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    write(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=message) as error:
        MusicDataModule(path=str(tmp_path / "bad.npz")).setup("fit")
    assert "bad.npz" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": (1, 0, 1)}, "split must be three shares"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"frames_per_beat": 7}, "frames_per_beat must divide 480, got 7"),
        ({"path": "no.npz"}, "there is no file, folder or match of a glob at 'no.npz'"),
    ],
)
def test_bad_options_are_told(options: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        MusicDataModule(**options).setup("fit")


def test_the_generated_chorales_follow_their_rules() -> None:
    pieces = chorales(40, 0)
    assert [piece.tolist() for piece in pieces] == [piece.tolist() for piece in chorales(40, 0)]
    assert pieces[0].tolist() != chorales(1, 1)[0].tolist()
    for piece in pieces:
        assert len(piece) in range(32, 65, 8)
        assert piece.sum(1).min() >= 3  # a passing note may meet another voice
        assert piece.sum(1).max() == 4
        classes = {int(key) % 12 for key in piece.nonzero()[:, 1]}
        assert len(classes) <= 7  # of one scale
        first, last = (int(piece[k].nonzero().min()) for k in (0, -1))
        assert first == last  # the bass begins and ends on the tonic
    assert "generated" in MusicDataModule().describe()[0]


# MIDI -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames_per_beat", [1, 2, 4])
def test_a_piece_comes_back_from_midi(tmp_path: Path, frames_per_beat: int) -> None:
    pytest.importorskip("mido")
    for piece in chorales(3, 5):
        write_midi(tmp_path / "piece.mid", piece, frames_per_beat)
        assert read_midi(tmp_path / "piece.mid", frames_per_beat).equal(piece)


def test_midi_as_others_write_it_is_read(tmp_path: Path) -> None:
    """Two tracks, note-ons of velocity 0, drums, running on, notes off the piano, an early start."""
    mido = pytest.importorskip("mido")
    midi = mido.MidiFile(ticks_per_beat=96)
    for channel, notes in (
        (0, [(60, 96, 144), (60, 144, 150)]),
        (1, [(21, 192, 384), (120, 0, 96)]),
        (9, [(35, 0, 400)]),
    ):
        track = mido.MidiTrack()
        events = [(at, note, velocity) for note, start, end in notes for at, velocity in ((start, 64), (end, 0))]
        now = 0
        for at, note, velocity in sorted(events, key=lambda event: event[0]):
            track.append(mido.Message("note_on", note=note, channel=channel, velocity=velocity, time=at - now))
            now = at
        midi.tracks.append(track)
    midi.tracks[0].append(mido.Message("note_on", note=108, velocity=9, time=90))  # never ends
    midi.save(tmp_path / "other.mid")
    roll = read_midi(tmp_path / "other.mid", 2)  # 48 ticks a frame; the first note is at frame 2
    assert [frame.nonzero().flatten().tolist() for frame in roll] == [[39], [39], [0], [0, 87], [0, 87], [0, 87]]


def test_bad_midi_and_a_missing_package_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mido = pytest.importorskip("mido")
    for content in (b"MThd nonsense", b""):
        (tmp_path / "bad.mid").write_bytes(content)
        with pytest.raises(ValueError, match=r"'.*bad.mid' is not a MIDI file that can be read: .+"):
            MusicDataModule(path=str(tmp_path / "bad.mid")).setup("fit")
    empty = mido.MidiFile()
    empty.tracks.append(mido.MidiTrack())
    empty.save(tmp_path / "empty.mid")
    with pytest.raises(ValueError, match=r"empty.mid' has no notes of the 88 keys of a piano"):
        read_midi(tmp_path / "empty.mid", 2)
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"MIDI files need the package 'mido': pip install 'lstm-fused\[music\]'"
    ):
        MusicDataModule(path=str(tmp_path / "empty.mid")).setup("fit")


def test_a_folder_of_midi_files_has_its_splits(tmp_path: Path) -> None:
    pytest.importorskip("mido")
    pieces = chorales(6, 0)
    for k, split in enumerate(("train", "train", "train", "valid", "test", "test")):
        (tmp_path / split).mkdir(exist_ok=True)
        write_midi(tmp_path / split / f"{k}.mid", pieces[k], 2)
    data = MusicDataModule(path=str(tmp_path))
    assert data.pieces("valid")[0].equal(pieces[3])
    assert [len(data.pieces(name)) for name in ("train", "valid", "test")] == [3, 1, 2]
    predict = MusicDataModule(path=str(tmp_path), predict=str(tmp_path / "test"))
    assert [len(piece) for piece in predict.pieces_to_predict()] == [len(piece) for piece in pieces[4:]]


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on a few generated pieces."""
    folder = tmp_path_factory.mktemp("music")
    pieces = chorales(30, 0)
    path = save_splits(folder / "pieces.npz", train=pieces[:20], valid=pieces[20:25], test=pieces[25:])
    options = (f"--data.path={path}", f"--runs={folder}", "--trainer.max_epochs=2", "--data.batch_size=4")
    assert main(["fit", "-c", "music", *SMALL, *options]) == 0
    return folder / "music" / "version_0"


def test_a_run_leaves_its_figures_and_a_sample(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["data"]["pieces"] == {"train": 20, "valid": 5, "test": 5}
    assert summary["test"]["test_nll"] == pytest.approx(summary["test"]["test_loss"])
    assert summary["test"]["test_nll"] < 88 * np.log(2)  # a new model's
    assert (run / "sample.png").stat().st_size > 5_000
    pytest.importorskip("mido")
    assert read_midi(run / "sample.mid", 2).sum() > 0


def test_predictions_cost_what_the_test_says(run: Path, command: Callable[..., Result], tmp_path: Path) -> None:
    result = command("predict", "-c", run, "--ckpt_path", "best")
    assert result.code == 0, result.err
    summary = json.loads((run / "summary.json").read_text())
    pieces = chorales(30, 0)[25:]
    with np.load(run / "predictions.npz") as found:
        probability, following, lengths = found["probability"], found["next"], found["len"]
    assert lengths.tolist() == [len(piece) for piece in pieces]
    assert following.shape == (5, KEYS)
    truth = torch.cat(pieces).numpy().astype(bool)
    nll = -np.log(np.where(truth, probability, 1 - probability).astype(np.float64)).sum(1).mean()
    assert nll == pytest.approx(summary["test"]["test_nll"], rel=1e-4)
    assert (run / "predictions.png").stat().st_size > 10_000

    write_npz(tmp_path / "new.npz", pieces[3:])
    assert command("predict", "-c", run, "--ckpt_path", "best", "--data.predict", tmp_path / "new.npz").code == 0
    in_memory = load_run(run).predict(pieces[3:])
    with np.load(run / "predictions.npz") as found:
        assert torch.cat([piece[:-1] for piece in in_memory]).numpy() == pytest.approx(found["probability"], abs=1e-5)
        assert torch.stack([piece[-1] for piece in in_memory]).numpy() == pytest.approx(found["next"], abs=1e-5)


def test_samples_are_a_function_of_the_seed_and_begin_with_the_prompt(
    run: Path, command: Callable[..., Result], tmp_path: Path
) -> None:
    task = load_run(run).task
    piece = chorales(1, 9)[0]
    state = torch.get_rng_state()
    first, again, other = (task.draw(piece[:5], 20, seed=seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(state)
    assert first.equal(again)
    assert not first.equal(other)
    assert first.shape == (25, KEYS)
    assert first[:5].equal(piece[:5])
    assert (first.dtype, int(first.max())) == (torch.uint8, 1)
    # Drawn step by step, the probabilities are those of the whole piece at once.
    certain = task.draw(piece[:5], 20, temperature=0)
    whole = load_run(run).predict([certain])[0]
    assert certain[5:].equal((whole[5:-1] > 0.5).to(torch.uint8))

    write_npz(tmp_path / "prompt.npz", [piece])
    options = ("--length", 6, "--prompt", tmp_path / "prompt.npz", "--prompt-frames", 4, "--seed", 1)
    result = command("sample", run, *options, "--output", tmp_path / "out" / "mine")
    assert result.code == 0, result.err
    assert "10 frames" in result.out
    assert (tmp_path / "out" / "mine.png").is_file()
    for option, message in (
        (("--length", 0), "length must be at least 1, got 0"),
        (("--temperature", -1), "temperature must be at least 0, got -1.0"),
        (("--tempo", 0), "tempo must be in [4, 60000000], got 0.0"),
        (("--tempo", "inf"), "tempo must be in [4, 60000000], got inf"),
        (("--seed", 2**64), f"seed must be in [-2**63, 2**64), got {2**64}"),
    ):
        assert command("sample", run, *option).error == message


def test_without_mido_a_sample_is_an_npz_file(
    run: Path, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mido", None)
    result = command("sample", run, "--length", 6, "--seed", 1, "--output", tmp_path / "mine")
    assert result.code == 0, result.err
    assert "MIDI files need the package 'mido': pip install 'lstm-fused[music]'" in result.out
    assert len(read_npz(tmp_path / "mine.npz")[None][0]) == 6


def test_the_config_runs_and_with_other_layers(command: Callable[..., Result]) -> None:
    for layer in ("fused", "torch", "gru", "rnn"):
        result = command("fit", "-c", "music", "--trainer.fast_dev_run=1", f"--model.recurrent={layer}")
        assert result.code == 0, result.err


def test_a_run_goes_on_exactly_in_the_middle_of_an_epoch(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    path = save_splits(tmp_path / "pieces.npz", train=chorales(10, 0), valid=chorales(2, 1))
    options = {"recurrent_dropout": 0.1, "dropout": 0.2, "lr": 1e-2}

    def data() -> MusicDataModule:
        return MusicDataModule(path=str(path), batch_size=3, max_length=20)

    check_exact_resume(lambda: new_task(**options), data, make_trainer, tmp_path / "resume", step=3)
