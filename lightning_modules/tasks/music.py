"""Training a model of music: what a frame costs, samples as MIDI, and pictures of both."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from lightning_modules.callbacks.music_sample import MusicSample, draw_rolls, write_sample
from lightning_modules.data.music import MusicBatch, MusicDataModule, read_pieces
from lightning_modules.data.piano_rolls import KEYS, LOWEST
from lightning_modules.generation import seeded_generator
from lightning_modules.models.metrics import Mean
from lightning_modules.models.music import PianoRollModel
from lightning_modules.tasks.base import RecurrentTask
from lightning_modules.tasks.exported import Exported, WithLengths

# Of ``lstm-fused export``: the keys likeliest after a chord, given by the MIDI numbers of its notes.
EXAMPLE = """\
notes = [int(note) for note in sys.argv[1:]] or [48, 60, 64, 67]
roll = np.zeros((2, 1, about["keys"]), np.float32)  # [T, B, keys]: a piece begins from silence
roll[1, 0, np.array(notes) - about["lowest"]] = 1
(probabilities,) = model(inputs=roll, lengths=np.array([len(roll)]))
for key in np.argsort(-probabilities[-1, 0])[:6]:
    print(f"note {key + about['lowest']}: {probabilities[-1, 0, key]:.3f}")
"""


class FrameProbabilities(NamedTuple):
    """What a model says of the pieces of a batch."""

    roll: Tensor  # float32 [T, B, 88], the pieces
    probabilities: Tensor  # [T + 1, B, 88]: of each frame given those before it, and of the one after the last
    lengths: Tensor  # int64 [B], of the pieces


class MusicTask(RecurrentTask[MusicDataModule]):
    """Trains a :class:`PianoRollModel`: it predicts each frame from those before it, the first from silence.

    The loss, and ``nll`` with it, is the negative log-likelihood of a frame in nats: summed over its 88 keys, as
    Boulanger-Lewandowski et al. (2012) and Bai et al. (2018) report it, and the mean over real frames alone, not over
    padding. ``dropout`` acts on the layer's output.

    Args:
        num_keys: keys of a frame; taken from the data if not given.
        shared: those of :class:`RecurrentTask`.
    """

    loss_unit = "nats a frame"

    def __init__(self, num_keys: int | None = None, **shared: Any) -> None:
        super().__init__(**shared)

    # The model ------------------------------------------------------------------------------------------------------

    @classmethod
    def size_names(cls) -> tuple[str, ...]:
        return ("num_keys",)

    def data_sizes(self, data: MusicDataModule) -> dict[str, Any]:
        return {"num_keys": KEYS}

    def new_net(self) -> PianoRollModel:
        return PianoRollModel(
            self.hparams.num_keys, self.new_layer, dropout=self.hparams.dropout, variational=self.hparams.variational
        )

    def new_metrics(self, data: MusicDataModule) -> dict[str, Metric]:
        return {"nll": Mean()}

    def own_callbacks(self) -> list[Callback]:
        return [MusicSample()]

    def to_export(self, data: MusicDataModule) -> Exported:
        roll, lengths = next(iter(data.val_dataloader()))
        return Exported(
            WithLengths(self.net, "sigmoid"),
            {"inputs": (roll, ("T", "B", None)), "lengths": (lengths, ("B",))},
            ["probabilities"],
            {"keys": self.hparams.num_keys, "lowest": LOWEST, "frames_per_beat": data.hparams.frames_per_beat},
            EXAMPLE,
        )

    # The steps ------------------------------------------------------------------------------------------------------

    def batch_loss(
        self, batch: MusicBatch, batch_idx: int, metrics: MetricCollection | None = None
    ) -> tuple[Tensor, Tensor]:
        roll, lengths = batch
        logits = self(torch.cat((torch.zeros_like(roll[:1]), roll[:-1])), lengths)
        real = torch.arange(len(roll), device=roll.device)[:, None] < lengths
        loss = F.binary_cross_entropy_with_logits(logits[real], roll[real], reduction="none").sum(-1).mean()
        if metrics is not None:
            metrics["nll"].update(loss, weight=lengths.sum())
        return loss, lengths.sum()

    # Predictions ----------------------------------------------------------------------------------------------------

    def predict_step(self, batch: MusicBatch, batch_idx: int = 0) -> FrameProbabilities:
        roll, lengths = batch
        logits = self(torch.cat((torch.zeros_like(roll[:1]), roll)), lengths + 1)
        return FrameProbabilities(roll, logits.sigmoid(), lengths)

    def write_predictions(self, batches: list[FrameProbabilities], data: MusicDataModule, folder: Path) -> str:
        """The keys' probabilities in every frame, as ``predictions.npz``, and a picture of the first piece.

        ``probability`` (float32 [sum T, 88]) has those of each frame given the frames before it, ``len`` the frames of
        each piece, ``next`` ([pieces, 88]) those of the frame after the last.
        """
        path = folder / "predictions.npz"
        pieces = [piece for batch in batches for piece in _unpadded(batch)]
        probabilities = [probability for _, probability in pieces]
        np.savez_compressed(
            path,
            probability=torch.cat([probability[:-1] for probability in probabilities]).numpy(),
            next=torch.stack([probability[-1] for probability in probabilities]).numpy(),
            len=np.array([len(roll) for roll, _ in pieces], np.int32),
        )
        roll, probability = pieces[0]
        picture = folder / "predictions.png"
        draw_rolls(picture, {"the piece": roll, "probability of each key, given the frames before": probability[:-1]})
        return f"{len(pieces):,} pieces in {path}; a picture of the first in {picture}"

    @torch.inference_mode()
    def predict_examples(self, examples: Any, data: MusicDataModule) -> list[Tensor]:
        """For each piano roll [T, 88] of a list the keys' probabilities, [T + 1, 88]: of each frame given those before
        it, and of the frame after the last."""
        batch = data.collate([torch.as_tensor(example) for example in examples])
        batch = self.transfer_batch_to_device(batch, self.device, 0)
        return [probability for _, probability in _unpadded(self.predict_step(batch))]

    # Samples --------------------------------------------------------------------------------------------------------

    @classmethod
    def add_sample_arguments(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--prompt", help="a MIDI or npz file whose first piece is gone on from; silence by default")
        parser.add_argument("--prompt-frames", type=int, default=16, help="how many of its frames to take")
        parser.add_argument("--length", type=int, default=128, help="how many frames to draw")
        parser.add_argument(
            "--temperature", type=float, default=1.0, help="below 1 is more careful, 0 takes the likely"
        )
        parser.add_argument("--tempo", type=float, default=100.0, help="quarter notes a minute, in the MIDI file")
        parser.add_argument("--seed", type=int, help="the same seed gives the same piece")
        parser.add_argument(
            "--output", help="where to write, without a suffix; by default 'sample' in the run's folder"
        )

    def sample(self, data: MusicDataModule, options: Namespace, folder: Path) -> str:
        for name in ("prompt_frames", "length"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
        if not 4 <= options.tempo <= 60_000_000:  # MIDI writes microseconds a quarter, a number of three bytes
            raise ValueError(f"tempo must be in [4, 60000000], got {options.tempo}")
        prompt = torch.zeros(0, KEYS)
        if options.prompt is not None:
            pieces = read_pieces(Path(options.prompt).expanduser(), data.hparams.frames_per_beat)
            prompt = next(iter(pieces.values()))[0][: options.prompt_frames]
        roll = self.draw(prompt, options.length, options.temperature, options.seed)
        path = folder / "sample" if options.output is None else Path(options.output).expanduser()
        written = write_sample(path, roll, data.hparams.frames_per_beat, options.tempo, len(prompt))
        return f"{len(roll)} frames: {written}"

    @torch.inference_mode()
    def draw(self, prompt: Tensor, length: int, temperature: float = 1.0, seed: int | None = None) -> Tensor:
        """The prompt and ``length`` frames more, each key drawn by its probability after the frames before.

        Args:
            prompt: [T, 88]; without frames the piece begins from silence, as in training.
            temperature: the logits are divided by it; 0 is the limit, in which keys of more than a half sound.
            seed: the same seed gives the same piece; ``None`` draws one. torch's own generator is left alone.

        Returns:
            uint8 [T + length, 88].

        Raises:
            ValueError: for a temperature below 0, a seed that is no 64-bit number, or probabilities that are not
                finite.
        """
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        generator = seeded_generator(seed)
        was_training = self.training
        self.eval()
        frames, dtype = list(prompt.float()), next(self.parameters()).dtype
        state = None
        for frame in (torch.zeros(KEYS), *frames):
            logits, state = self.net.step(frame[None].to(self.device, dtype), state)
        for _ in range(length):
            scores = logits[0].double().cpu()
            if not scores.isfinite().all():
                raise ValueError("the model's predictions are not finite: its training has diverged")
            uniform = torch.rand(KEYS, generator=generator, dtype=torch.float64)
            frames.append((uniform < (scores / temperature).sigmoid() if temperature else scores > 0).float())
            logits, state = self.net.step(frames[-1][None].to(self.device, dtype), state)
        self.train(was_training)
        return torch.stack(frames).to(torch.uint8)


def _unpadded(batch: FrameProbabilities) -> list[tuple[Tensor, Tensor]]:
    """Each piece, [T, 88], with the probabilities, [T + 1, 88], on the CPU."""
    columns = enumerate(batch.lengths.tolist())
    return [(batch.roll[:n, b].float().cpu(), batch.probabilities[: n + 1, b].float().cpu()) for b, n in columns]
