"""A piece of the model's own when training has ended, as MIDI and as a picture."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_modules.data.piano_rolls import LOWEST, write_midi, write_npz
from lightning_modules.pictures import plain_names
from lightning_modules.runs import folder_of
from lightning_modules.trainer_parts import datamodule_of


class MusicSample(Callback):
    """Writes ``sample.mid`` and ``sample.png`` to the run's folder: how the model goes on from a valid piece.

    Args:
        prompt_frames: frames of the valid split's first piece that it begins with.
        length: frames to draw.
    """

    def __init__(self, prompt_frames: int = 16, length: int = 112) -> None:
        self.prompt_frames, self.length = prompt_frames, length

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        folder = folder_of(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        data = datamodule_of(trainer)
        prompt = data.pieces("valid")[0][: self.prompt_frames]
        try:
            roll = pl_module.draw(prompt, self.length, seed=0)
        except ValueError as error:
            print(f"No sample: {error}.")
            return
        written = write_sample(folder / "sample", roll, data.hparams.frames_per_beat, prompt_frames=len(prompt))
        print(f"A sample: {written}")


def write_sample(
    path: Path, roll: Tensor, frames_per_beat: int, beats_per_minute: float = 100.0, prompt_frames: int = 0
) -> str:
    """Writes a piece as ``.mid``, or as ``.npz`` where there is no mido, and as ``.png``; says what and where.

    Args:
        path: where, without the suffix.
        roll: [T, 88].
        prompt_frames: those that were given and not drawn, which the picture marks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    midi, picture, note = path.with_name(f"{path.name}.mid"), path.with_name(f"{path.name}.png"), ""
    try:
        write_midi(midi, roll, frames_per_beat, beats_per_minute)
    except ModuleNotFoundError as error:
        midi, note = midi.with_suffix(".npz"), f" ({error})"
        write_npz(midi, [roll])
    draw_rolls(picture, {"": roll}, prompt_frames)
    return f"{midi}{note}, {picture}"


@plain_names()
def draw_rolls(path: Path, rolls: dict[str, Tensor], prompt_frames: int = 0, most: int = 256) -> None:
    """Piano rolls one above another, by title: [T, 88] each, of 0 to 1; the first ``most`` frames."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + 2.6 * len(rolls)), layout="constrained")
    sounding = torch.cat([roll[:most] > 0.2 for roll in rolls.values()]).any(0).nonzero().flatten().tolist() or [39]
    low, high = max(min(sounding) - 3, 0), min(max(sounding) + 3, 87)
    for axes, (title, roll) in zip(
        figure.subplots(len(rolls), sharex=True, squeeze=False)[:, 0], rolls.items(), strict=True
    ):
        image = axes.imshow(
            roll[:most].T,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",
            vmin=0,
            vmax=1,
            extent=(0, min(len(roll), most), LOWEST - 0.5, LOWEST + 87.5),
        )
        axes.set(ylabel="key", ylim=(LOWEST + low - 0.5, LOWEST + high + 0.5))
        octaves = [key for key in range(24, 109, 12) if LOWEST + low <= key <= LOWEST + high]
        axes.set_yticks(octaves, [f"C{key // 12 - 1}" for key in octaves])
        axes.grid(alpha=0.3)
        if title:
            axes.set_title(title, fontsize="medium")
        if not bool(((roll == 0) | (roll == 1)).all()):
            figure.colorbar(image, ax=axes, pad=0.01)
        if prompt_frames:
            axes.axvline(prompt_frames, color="tab:orange", linewidth=1.5, label="the model's own from here")
            axes.legend(loc="upper right", fontsize="small")
    axes.set_xlabel("frame")
    FigureCanvasAgg(figure).print_png(path)
