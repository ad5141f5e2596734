"""Piano rolls: from npz files and MIDI, to MIDI, and made by rule."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEYS = 88  # of a piano
LOWEST = 21  # the MIDI number of the lowest, A0
MIDI_SUFFIXES = (".mid", ".midi")
DRUMS = 9  # the channel whose notes are no pitches


def import_mido() -> Any:
    """The package that reads and writes MIDI. Raises ModuleNotFoundError, in one sentence, where it is missing."""
    try:
        import mido
    except ImportError:
        raise ModuleNotFoundError(
            "MIDI files need the package 'mido': pip install 'lstm-fused[music]', or give piano rolls as .npz"
        ) from None
    return mido


# npz ------------------------------------------------------------------------------------------------------------------


def read_npz(file: Path) -> dict[str | None, list[Tensor]]:
    """The pieces of an npz file by split; of arrays that name no split, under ``None``.

    ``{split}_roll`` [sum T, 88] holds the pieces one after another, ``{split}_len`` how many frames each has; ``roll``
    and ``len`` are pieces of no split.

    Returns:
        Piano rolls, uint8 [T, 88] each, 1 where a key sounds.

    Raises:
        ValueError: the file is none of these, or its arrays do not fit.
    """
    try:
        with zipfile.ZipFile(file):
            pass  # NumPy would say of any other file that it might be a pickle
        with np.load(file, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise ValueError(f"'{file}' is not an npz file of arrays: {reason_of(error)}") from None
    found: dict[str | None, list[Tensor]] = {}
    for name in arrays:
        split = name.removesuffix("roll").removesuffix("_") or None
        if name.endswith("roll") and split in (None, "train", "valid", "test"):
            found[split] = _pieces(file, name, arrays)
    if not found:
        raise ValueError(
            f"'{file}' must have arrays train_roll and train_len (valid, test), or roll and len, got "
            f"{', '.join(arrays) or 'none'}"
        )
    return found


def _pieces(file: Path, name: str, arrays: dict[str, np.ndarray]) -> list[Tensor]:
    roll, length_name = arrays[name], name.removesuffix("roll") + "len"
    if roll.ndim != 2 or roll.shape[1] != KEYS:
        raise ValueError(f"'{file}', {name}: must be [frames, {KEYS}], got {list(roll.shape)}")
    if length_name not in arrays:
        raise ValueError(f"'{file}' has {name}, and no {length_name} that says how many frames each piece has")
    lengths = arrays[length_name]
    if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer):
        raise ValueError(f"'{file}', {length_name}: must be whole numbers, got {lengths.dtype} {list(lengths.shape)}")
    if not len(lengths):
        raise ValueError(f"'{file}', {length_name}: there are no pieces")
    if lengths.min() < 1:
        piece = int(lengths.argmin())
        raise ValueError(f"'{file}', {length_name}: piece {piece} must have at least 1 frame, got {lengths[piece]}")
    if lengths.sum() != len(roll):
        raise ValueError(
            f"'{file}', {length_name}: must sum to the {len(roll):,} frames of {name}, got {lengths.sum():,}"
        )
    if wrong := np.argwhere(~np.isin(roll, (0, 1))).tolist():  # NaN too
        (frame, key), *_ = wrong
        raise ValueError(f"'{file}', {name}: must be 0 or 1, got {roll[frame, key]} at frame {frame}, key {key}")
    return list(torch.from_numpy(roll.astype(np.uint8)).split(lengths.tolist()))


def write_npz(file: Path, pieces: Sequence[Tensor]) -> None:
    """Pieces as ``roll`` and ``len``, which :func:`read_npz` reads."""
    lengths = np.array([len(piece) for piece in pieces], np.int32)
    np.savez_compressed(file, roll=torch.cat(list(pieces)).to(torch.uint8).numpy(), len=lengths)


# MIDI -----------------------------------------------------------------------------------------------------------------


def read_midi(file: Path, frames_per_beat: int) -> Tensor:
    """The piano roll of a MIDI file, uint8 [T, 88].

    A note sounds in the frames from the one next to its beginning to the one next to its end, at least in one. Drums
    (channel 10) and notes outside the 88 keys are left out, and so is the silence before the first note.

    Args:
        frames_per_beat: frames of a quarter note, whatever the tempo.

    Raises:
        ValueError: the file is no MIDI, or has no notes.
    """
    mido = import_mido()
    try:
        midi = mido.MidiFile(file, clip=True)
        messages = list(mido.merge_tracks(midi.tracks))
    except Exception as error:
        raise ValueError(f"'{file}' is not a MIDI file that can be read: {reason_of(error)}") from None
    ticks_per_frame = midi.ticks_per_beat / frames_per_beat
    notes: list[tuple[int, int, int]] = []  # key, first frame, frame after the last
    sounding: dict[tuple[int, int], list[int]] = {}
    now = 0
    for message in messages:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == DRUMS:
            continue
        note = message.channel, message.note
        if message.type == "note_on" and message.velocity:
            sounding.setdefault(note, []).append(now)
        elif sounding.get(note):
            notes.append(_frames(message.note, sounding[note].pop(0), now, ticks_per_frame))
    for (_, key), starts in sounding.items():  # notes that never end do so with the piece
        notes += [_frames(key, start, now, ticks_per_frame) for start in starts]
    notes = [note for note in notes if 0 <= note[0] < KEYS]
    if not notes:
        raise ValueError(f"'{file}' has no notes of the {KEYS} keys of a piano")
    first = min(start for _, start, _ in notes)
    roll = torch.zeros(max(end for *_, end in notes) - first, KEYS, dtype=torch.uint8)
    for key, start, end in notes:
        roll[start - first : end - first, key] = 1
    return roll


def _frames(note: int, start: int, end: int, ticks_per_frame: float) -> tuple[int, int, int]:
    first = round(start / ticks_per_frame)
    return note - LOWEST, first, max(round(end / ticks_per_frame), first + 1)


def write_midi(file: Path, roll: Tensor, frames_per_beat: int, beats_per_minute: float = 100.0) -> None:
    """A piano roll [T, 88] as a MIDI file; a key that sounds in frames one after another is one long note."""
    mido = import_mido()
    ticks = 480 // frames_per_beat
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_per_minute))])
    padded = torch.nn.functional.pad(roll.to(torch.int8), (0, 0, 1, 1))
    silent = 0
    for change in padded.diff(dim=0):
        for value, kind in ((-1, "note_off"), (1, "note_on")):
            for key in (change == value).nonzero().flatten().tolist():
                track.append(mido.Message(kind, note=key + LOWEST, velocity=80, time=silent))
                silent = 0
        silent += ticks
    midi = mido.MidiFile(ticks_per_beat=ticks * frames_per_beat)
    midi.tracks.append(track)
    midi.save(file)


# Made by rule ---------------------------------------------------------------------------------------------------------

_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# What chord of the scale may follow which, counted from 0 (I): falls of a fifth, and the cadences of common practice.
_NEXT = {0: (3, 4, 5, 1), 1: (4,), 3: (0, 4, 1), 4: (0, 0, 5), 5: (1, 3)}


def chorales(count: int, seed: int) -> list[Tensor]:
    """Pieces in four voices over a walk through the chords of a key: uint8 [T, 88] each.

    Each piece is in one of 12 major or minor keys, of 4 to 8 bars of four chords of two frames; the bass has the root,
    the middle voices the nearest notes of the chord, the upper voice a note of it and, in the second frame, perhaps the
    next of the scale. It ends on the tonic.
    """
    rng = np.random.default_rng([seed, KEYS])
    return [_chorale(rng) for _ in range(count)]


def _chorale(rng: np.random.Generator) -> Tensor:
    tonic = int(rng.integers(12))
    scale = _SCALES["major" if rng.random() < 0.5 else "minor"]

    def pitch(degree: int) -> int:
        """The key of a degree of the scale, 0 being the tonic next above C3."""
        return 48 - LOWEST + tonic % 12 + 12 * (degree // 7) + scale[degree % 7]

    bars, chords = int(rng.integers(4, 9)), [0]
    while len(chords) < 4 * bars - 2:
        chords.append(int(rng.choice(_NEXT[chords[-1]])))
    upper, frames = 7 + int(rng.choice((0, 2, 4))), []
    for chord in [*chords, 4, 0]:
        tones = [chord % 7 + third for third in (0, 2, 4)]
        near = sorted(7 * octave + tone % 7 for octave in (0, 1, 2) for tone in tones)
        upper = int(rng.choice(sorted(near[2:], key=lambda degree: abs(degree - upper))[:2]))
        inner = [degree for degree in near if degree < upper][-2:]
        passing = upper + int(rng.choice((-1, 1))) if rng.random() < 0.4 else upper
        for top in (upper, passing):
            frame = torch.zeros(KEYS, dtype=torch.uint8)
            frame[[pitch(chord - 7), *map(pitch, inner), pitch(top)]] = 1
            frames.append(frame)
    return torch.stack(frames)


def reason_of(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or f"{type(error).__name__}, perhaps it is cut off"
