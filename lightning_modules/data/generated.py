"""Data that is generated, for runs without data of one's own: the same in every run."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

REVIEWS = 4000
MOVEMENTS = 1200

# Words of opinion, each with its opposite.
_ADJECTIVES = (
    ("good", "bad"), ("great", "terrible"), ("funny", "dull"), ("clever", "stupid"), ("moving", "cold"),
    ("fresh", "stale"), ("charming", "annoying"), ("honest", "fake"), ("gripping", "boring"), ("subtle", "clumsy"),
    ("beautiful", "ugly"), ("brilliant", "awful"), ("lively", "lifeless"), ("warm", "bitter"), ("rich", "empty"),
)  # fmt: skip
_VERBS = (("loved", "hated"), ("liked", "disliked"), ("enjoyed", "endured"), ("admired", "regretted"))
_NOUNS = (
    "film", "story", "plot", "cast", "ending", "script", "music", "dialogue", "acting", "opening", "pacing", "hero",
    "villain", "humor", "photography", "score", "book", "novel", "play", "song", "album", "concert", "series",
    "episode", "chapter", "performance", "direction", "idea", "premise", "style",
)  # fmt: skip
_DEGREES = ("", "very ", "rather ", "really ", "so ", "quite ")
_SYLLABLES = ("ba", "do", "ka", "li", "mar", "ne", "or", "ri", "sel", "ta", "ul", "ven", "wil", "za")


class _Draw:
    """Draws from lists with a seed that is always the same."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self._generator))

    def one(self, items: Sequence[str]) -> str:
        return items[self.below(len(items))]


def generated_reviews(count: int) -> list[tuple[str, str]]:
    """Sentences of opinion with the label ``positive`` or ``negative``, in turn.

    Single words do not tell the label: half of all statements turn a word into its opposite (``not``, ``never``,
    ``nothing``), and of two statements that contradict each other the main one counts (``although``, ``but``). Names
    make some words rare.
    """
    draw = _Draw()
    return [(_review(draw, k % 2 == 0), "positive" if k % 2 == 0 else "negative") for k in range(count)]


def _review(draw: _Draw, positive: bool) -> str:
    def statement(value: bool) -> str:
        return _statement(draw, value)

    forms: tuple[Callable[[], str], ...] = (
        lambda: statement(positive),
        lambda: f"{statement(positive)} and {statement(positive)}",
        lambda: f"{statement(not positive)} , but {statement(positive)}",
        lambda: f"although {statement(not positive)} , {statement(positive)}",
        lambda: f"{statement(positive)} , even if {statement(not positive)}",
    )
    return forms[draw.below(5)]()


def _statement(draw: _Draw, positive: bool) -> str:
    noun = f"the {draw.one(_NOUNS)}"
    if draw.below(3) == 0:
        noun += f" of {''.join(draw.one(_SYLLABLES) for _ in range(3))}"
    negated = draw.below(2) == 1
    side = 0 if positive != negated else 1
    adjective = _ADJECTIVES[draw.below(len(_ADJECTIVES))][side]
    verb = _VERBS[draw.below(len(_VERBS))][side]
    degree = draw.one(_DEGREES)
    if negated:
        return (
            f"{noun} is not {degree}{adjective}",
            f"{noun} was never {adjective}",
            f"nobody {verb} {noun}",
            f"nothing about {noun} seemed {adjective}",
        )[draw.below(4)]
    return (
        f"{noun} is {degree}{adjective}",
        f"{noun} was always {adjective}",
        f"everybody {verb} {noun}",
        f"all about {noun} seemed {degree}{adjective}",
    )[draw.below(4)]


SHAPES = ("circle left", "circle right", "eight", "line", "spiral", "zigzag")


def generated_movements(count: int) -> list[tuple[Tensor, str]]:
    """Movements of a pen that draws a shape: positions x and y, float32 [T, 2], and the shape's name, in turn.

    They differ in length (T from 20 to 60), speed, size, place, direction and where on the shape they begin; the hand
    trembles. The two circles differ in nothing but how x and y go together.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    movements = []
    for k in range(count):
        shape = SHAPES[k % len(SHAPES)]
        steps = int(uniform(20, 61))
        turns = torch.linspace(0, uniform(0.8, 1.6), steps) + uniform(0, 1)
        path = _points(shape, turns) * uniform(0.7, 1.3)
        angle = uniform(-0.3, 0.3)
        rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        place = torch.tensor([uniform(-0.5, 0.5), uniform(-0.5, 0.5)])
        movements.append((path @ rotation.T + place + 0.08 * torch.randn(steps, 2, generator=generator), shape))
    return movements


def _points(shape: str, turns: Tensor) -> Tensor:
    """The pen's place after so many turns of the shape, [T, 2]."""
    angle = 2 * math.pi * turns
    if shape == "circle left":
        x, y = angle.cos(), angle.sin()
    elif shape == "circle right":
        x, y = angle.cos(), -angle.sin()
    elif shape == "eight":
        x, y = angle.sin(), (2 * angle).sin()
    elif shape == "spiral":
        radius = 0.1 + 1.1 * (turns - turns[0]) / (turns[-1] - turns[0])
        x, y = radius * angle.cos(), radius * angle.sin()
    elif shape == "line":
        x, y = angle.cos(), 0.5 * angle.cos()
    else:
        x = (turns % 1) * 2 - 1
        y = ((4 * turns) % 1 * 2 - 1).abs() * 2 - 1
    return torch.stack((x, y), -1)
