"""Pictures of digits, read pixel by pixel: sequential and permuted MNIST, from files in the idx format."""

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.data.base import SPLITS
from lightning_modules.data.memory import Example, MemoryDataModule, Target, check_at_least
from lightning_modules.pictures import plain_names

_IMAGES, _LABELS = 0x803, 0x801  # magic numbers of idx files: unsigned bytes in three dimensions, in one
_FILES = {"train": "train-images*", "test": "t10k-images*"}  # as the data set's own files are called
_FONTS = [
    {"family": family, "style": style, "weight": weight}
    for family in ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")
    for style, weight in (("normal", "normal"), ("oblique", "normal"), ("normal", "bold"))
]  # those that matplotlib ships


class SequentialMNISTDataModule(MemoryDataModule):
    """A digit is recognized from the pixels of its picture, one per step.

    The pixels come row after row (Le et al. 2015), or, with ``permuted``, in a fixed random order that is the same for
    all pictures; values are in [0, 1].

    Files are those of MNIST (LeCun et al. 1998) and whatever has its format, packed by gzip or not: of each images file
    ``...images-idx3-ubyte`` the labels lie beside it as ``...labels-idx1-ubyte``. Without a valid file, valid is the
    last ``valid_size`` pictures of train. Without any file the pictures are generated: digits in matplotlib's fonts,
    turned, sheared, scaled and shifted at random - a stand-in that is easier than handwriting.

    Args:
        path: a folder with MNIST's files, of which those of the test set may be missing.
        train: an images file; instead of that of ``path``.
        valid: the same of the valid split.
        test: the same of the test split.
        predict: an images file to predict, whose labels may be missing; by default the test split is predicted.
        permuted: a fixed random order of the pixels.
        pool: how many pixels each way become one, their mean; 1 is the published task, 2 gives sequences of a quarter
            of the length.
        train_size: train pictures to use, the first ones; all by default. The generated are 2,000 by default.
        valid_size: the last train pictures, which are valid where there is no valid file.
        batch_size: pictures of a batch, over all processes.
        seed: of the order of the pixels, and of the generated pictures.
    """

    target: Target = "class"
    input_size, output_size = 1, 10

    def __init__(
        self,
        path: str | None = None,
        train: str | None = None,
        valid: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        permuted: bool = False,
        pool: int = 1,
        train_size: int | None = None,
        valid_size: int = 5_000,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, pool=pool, valid_size=valid_size, **{} if train_size is None else {"train_size": train_size})
        check_at_least(0, seed=seed)
        if valid is not None and train is None and path is None:
            raise ValueError("valid needs the train split beside it: give train or path")
        self.save_hyperparameters()
        self._pictures: dict[str, tuple[Tensor, Tensor]] = {}
        self._permutations: dict[int, list[int]] = {}  # by the number of pixels

    # The pictures ----------------------------------------------------------------------------------------------------

    def pictures(self, split: str) -> tuple[Tensor, Tensor]:
        """The pictures of a split, uint8 [N, rows, columns], and their labels, int64 [N]; read once."""
        if split not in self._pictures:
            self._pictures |= self._read(split)
        if split not in self._pictures:
            raise ValueError(f"there are no {split} pictures; name a file with --data.{split}")
        return self._pictures[split]

    def _read(self, split: str) -> dict[str, tuple[Tensor, Tensor]]:
        if self._is_generated:
            return self._cut(drawn_digits(3_000, self.hparams.seed), generated=True)
        if (file := self._file(split)) is not None:
            pictures = read_pictures(file)
            return self._cut(pictures) if split == "train" else {split: pictures}
        return self._read("train") if split == "valid" else {}

    @property
    def _is_generated(self) -> bool:
        return all(self.hparams[name] is None for name in ("path", *SPLITS))

    def _file(self, split: str) -> Path | None:
        """The images file of a split; ``None`` where it has none."""
        if (given := self.hparams[split]) is not None:
            return Path(given).expanduser()
        if self.hparams.path is None or split not in _FILES or (split == "train" and self.hparams.train is not None):
            return None
        folder = Path(self.hparams.path).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"data.path must name a folder with MNIST's files, got '{folder}'")
        files = sorted(folder.glob(_FILES[split]))
        if not files and split == "train":
            raise FileNotFoundError(f"the folder '{folder}' has no file '{_FILES[split]}' of train pictures")
        return files[0] if files else None

    def _cut(self, pictures: tuple[Tensor, Tensor], generated: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
        """Train alone, or with the valid split that is cut from it; of the generated pictures all three."""
        images, labels = pictures
        held_out = {"valid": 500, "test": 500} if generated else {}
        if not generated and self.hparams.valid is None:
            held_out = {"valid": self.hparams.valid_size}
        count = len(images) - sum(held_out.values())
        if count < 1:
            raise ValueError(
                f"valid_size must be less than the {len(images):,} train pictures it is cut from, "
                f"got {self.hparams.valid_size:,}"
            )
        found: dict[str, Any] = {}
        for split, size in {"train": count, **held_out}.items():
            start = sum(len(part[0]) for part in found.values())
            found[split] = images[start : start + size], labels[start : start + size]
        if (size := self.hparams.train_size) is not None:
            found["train"] = tuple(part[:size] for part in found["train"])
        return found

    # The sequences ---------------------------------------------------------------------------------------------------

    def make(self, rng: np.random.Generator, length: int) -> Example:
        raise NotImplementedError("pictures are made all at once: see drawn_digits")

    def lengths(self, split: str) -> list[int]:
        _, rows, columns = self.pictures(split)[0].shape
        return [rows // self.hparams.pool * (columns // self.hparams.pool)]

    def has_test(self) -> bool:
        return self._is_generated or self._file("test") is not None

    def examples(self, split: str) -> Sequence[Example]:
        return _PixelExamples(self, *self.pictures(split))

    def content(self, split: str) -> Any:
        return self.pictures(split)

    def examples_to_predict(self) -> Sequence[Example]:
        if self.hparams.predict is None:
            return self.examples("test")
        return _PixelExamples(self, read_idx(Path(self.hparams.predict).expanduser(), _IMAGES), None)

    def read(self, file: Path) -> list[Tensor]:
        return [self.to_inputs(picture) for picture in read_idx(file, _IMAGES)]

    def to_inputs(self, sequence: Any) -> Tensor:
        """Of one picture, uint8 or 0 to 255, [rows, columns]."""
        picture = torch.as_tensor(np.asarray(sequence)).float()
        if picture.ndim != 2 or min(picture.shape) < self.hparams.pool:
            raise ValueError(f"a picture must be [rows, columns], each at least pool, got {list(picture.shape)}")
        if not (picture.isfinite().all() and picture.min() >= 0 and picture.max() <= 255):
            raise ValueError("the pixels of a picture must be from 0 to 255")
        pixels = F.avg_pool2d(picture[None] / 255, self.hparams.pool).flatten()
        return pixels[self.order(len(pixels))][:, None]

    def order(self, size: int) -> list[int]:
        """The order of the pixels of a picture of ``size``."""
        if not self.hparams.permuted:
            return list(range(size))
        if size not in self._permutations:
            self._permutations[size] = np.random.default_rng([self.hparams.seed, size]).permutation(size).tolist()
        return self._permutations[size]

    # The run ---------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads what ``stage`` needs, so that errors in the data are raised before anything else begins."""
        if stage == "fit":
            train, valid = (self.pictures(split)[0].shape[1:] for split in ("train", "valid"))
            if train != valid:
                raise ValueError(
                    f"all pictures must be of one size, got {list(train)} in train and {list(valid)} in valid"
                )
        elif stage == "predict":
            self.examples_to_predict()
        else:
            self.pictures({"validate": "valid"}.get(stage, stage))

    def state_dict(self) -> dict[str, Any]:
        steps = self.lengths("train")[0] if "train" in self._pictures else None
        if steps is not None:
            self.order(steps)
        options = {"permuted": self.hparams.permuted, "pool": self.hparams.pool}
        permutations = [[size, order] for size, order in self._permutations.items()]
        return super().state_dict() | options | {"permutations": permutations}

    @classmethod
    def options_of_state(cls, state: dict[str, Any]) -> dict[str, Any]:
        return {"permuted": state["permuted"], "pool": state["pool"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for name in ("permuted", "pool"):
            if state_dict[name] != self.hparams[name]:
                raise ValueError(
                    f"data.{name} must be that of the checkpoint, {state_dict[name]}, got {self.hparams[name]}"
                )
        self._permutations = {size: list(order) for size, order in state_dict["permutations"]}

    def describe(self) -> list[str]:
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.summary()["sequences"].items())
        source = f"generated, by the seed {self.hparams.seed}, in matplotlib's fonts" if self._is_generated else "read"
        steps = self.lengths("train")[0]
        order = "in a fixed random order" if self.hparams.permuted else "row after row"
        return [f"pictures of digits, {source}: {sizes}; {steps} pixels each, {order}; chance is 10%"]


class _PixelExamples(Sequence[Example]):
    """Pictures as sequences of pixels, created on access."""

    def __init__(self, data: SequentialMNISTDataModule, images: Tensor, labels: Tensor | None) -> None:
        self.data, self.images, self.labels = data, images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Any) -> Any:  # by a number alone; a Sequence takes slices too
        target = None if self.labels is None else self.labels[position]
        return Example(self.data.to_inputs(self.images[position]), target)


# Files ----------------------------------------------------------------------------------------------------------------


def read_pictures(images: Path) -> tuple[Tensor, Tensor]:
    """The pictures of an images file and the labels of the file beside it.

    Returns:
        uint8 [N, rows, columns] and int64 [N].

    Raises:
        FileNotFoundError: one of the two is not there.
        ValueError: one is no idx file of its kind, or they do not fit together.
    """
    pictures = read_idx(images, _IMAGES)
    name = re.sub("images([-.])idx3", r"labels\1idx1", images.name)
    labels = images.with_name(name)
    if name == images.name:
        raise ValueError(f"'{images}' must be called ...images-idx3..., so that its labels can be found beside it")
    if not labels.is_file() and (other := _gzipped_or_not(labels)).is_file():
        labels = other
    classes = read_idx(labels, _LABELS).long()
    if len(classes) != len(pictures):
        raise ValueError(f"'{images}' has {len(pictures):,} pictures and '{labels}' {len(classes):,} labels")
    if classes.max() > 9:
        position = int((classes > 9).nonzero()[0])
        raise ValueError(f"'{labels}', label {position + 1}: must be from 0 to 9, got {int(classes[position])}")
    return pictures, classes


def _gzipped_or_not(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path.with_name(path.name + ".gz")


def read_idx(file: Path, magic: int) -> Tensor:
    """The bytes of an idx file, packed by gzip or not: uint8 in the file's shape.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no idx file with this magic number, is empty, or is cut off.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file '{file}'")
    content = file.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"'{file}' is damaged: {error}") from None
    dimensions = magic & 0xFF
    start = 4 * (1 + dimensions)
    numbers = np.frombuffer(content[:start][: len(content[:start]) // 4 * 4], ">u4").tolist()
    if len(numbers) <= dimensions or numbers[0] != magic:
        kind = "images" if magic == _IMAGES else "labels"
        begins = f"{numbers[0]:#010x}" if numbers else "nothing"
        raise ValueError(
            f"'{file}' must be an idx file of {kind}, which begins with {magic:#010x}, and begins with {begins}"
        )
    shape = numbers[1:]
    if len(content) - start != int(np.prod(shape)):
        raise ValueError(
            f"'{file}' must have {np.prod(shape):,} bytes after its head, and has {len(content) - start:,}"
        )
    if 0 in shape:
        raise ValueError(f"'{file}' is empty: its shape is {shape}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


# The stand-in ---------------------------------------------------------------------------------------------------------


def drawn_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Digits in matplotlib's fonts, turned, sheared, scaled and shifted at random.

    Returns:
        uint8 [count, 28, 28], white on black as in MNIST, and the labels, int64 [count].
    """
    rng = np.random.default_rng([seed, 28])
    glyphs = torch.stack([_glyph(str(digit), font) for digit in range(10) for font in _FONTS])  # [10 * fonts, 56, 56]
    labels = rng.integers(10, size=count)
    chosen = torch.from_numpy(labels * len(_FONTS) + rng.integers(len(_FONTS), size=count))
    turn = rng.uniform(-0.25, 0.25, count)  # radians
    scale, shear = rng.uniform(0.85, 1.15, count), rng.uniform(-0.25, 0.25, count)
    shift = rng.uniform(-0.15, 0.15, (2, count))
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    affine = np.stack([np.stack([cos, shear - sin, shift[0]], -1), np.stack([sin, cos, shift[1]], -1)], 1)
    pictures = []
    for rows, some in zip(torch.from_numpy(affine).float().split(500), chosen.split(500), strict=True):
        grid = F.affine_grid(rows, [len(rows), 1, 56, 56], align_corners=False)
        pictures.append(F.avg_pool2d(F.grid_sample(glyphs[some][:, None], grid, align_corners=False), 2)[:, 0])
    return (torch.cat(pictures) * 255).round().to(torch.uint8), torch.from_numpy(labels)


@plain_names()
def _glyph(digit: str, font: dict[str, Any]) -> Tensor:
    """A digit in the middle of a picture, float32 [56, 56], 0 to 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1), dpi=56, facecolor="black")
    figure.text(0.5, 0.5, digit, color="white", size=64, ha="center", va="center_baseline", **font)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., 0].copy()).float() / 255
