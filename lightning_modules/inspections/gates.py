"""``lstm-fused gates RUN``: what the gates of a trained LSTM do on the run's own data."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.arguments import CommandParser
from lightning_modules.inspections.inside import AtWork, at_work, initial_weights, layer_of, valid_batch
from lightning_modules.inspections.report import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    format_table,
    listed,
    new_figure,
    save_figure,
)
from lightning_modules.loading import LoadedRun, load_run
from lightning_modules.pictures import plain_names
from lightning_modules.runs import run_folder
from lightning_modules.tasks import RecurrentTask
from lstm_fused import FusedLSTM, Trace

GATES = ("i", "f", "g", "o")  # the order of a trace
NAMES = {"i": "input gate", "f": "forget gate", "g": "candidate", "o": "output gate"}
COLORS = {"i": BLUE, "f": RED, "g": GREEN, "o": ORANGE}
CLOSED, OPEN = 0.1, 0.9  # a gate below or above is saturated (Karpathy, Johnson & Fei-Fei 2015)
RARE = 5  # a token must be there, and be something else, so often to be correlated with
MOST_TOKENS = 100


@dataclass
class Gates:
    """One layer and direction at work: ``values`` are those of all real steps of a batch, ``shown`` of a sequence."""

    values: Tensor  # [N, 4, H]
    shown: Tensor  # [T, 4, H]

    def of(self, gate: str) -> Tensor:
        """[N, H]."""
        return self.values[:, GATES.index(gate)]

    def always(self, gate: str, on: bool) -> list[int]:
        """Units whose gate is open at every step, or closed at every step."""
        values = self.of(gate)
        units = (values > OPEN).all(0) if on else (values < CLOSED).all(0)
        return units.nonzero()[:, 0].tolist()

    def saturation(self, gate: str) -> tuple[Tensor, Tensor]:
        """Of each unit the share of steps at which its gate is closed, and at which it is open; of g near -1, 1."""
        values = self.of(gate)
        lower = -OPEN if gate == "g" else CLOSED
        return (values < lower).float().mean(0), (values > OPEN).float().mean(0)


@dataclass
class Followed:
    """What a gate of a unit goes with."""

    gate: str
    unit: int
    what: str
    correlation: float
    by_chance: float  # what the best of as many would correlate with noise
    there: float | None = None  # the gate's mean where the token is, and elsewhere
    elsewhere: float | None = None


def as_lstm(layer: nn.Module) -> FusedLSTM:
    """The layer as one that can be traced.

    Raises ValueError for a layer without the gates of an LSTM.
    """
    if isinstance(layer, FusedLSTM):
        return layer
    if type(layer) is nn.LSTM:
        return FusedLSTM.from_torch(layer).eval()
    raise ValueError(
        f"the run must be of an LSTM to have the gates i, f, g and o, and its recurrent layer is a "
        f"{type(layer).__module__.partition('.')[0]} {type(layer).__name__}"
    )


def trace(task: RecurrentTask, batch: Any) -> tuple[AtWork, Trace]:
    """The task's recurrent layer at work on a batch, and its gates."""
    lstm = as_lstm(layer_of(task))
    work = at_work(task, batch)
    return work, lstm.trace(work.input, work.state, lengths=work.lengths)


def gates_of(work: AtWork, found: Trace, layer: int, sequence: int) -> Gates:
    real = work.real_steps()
    values = found.gates[layer].float()
    return Gates(values[real], values[: int(real[:, sequence].sum()), sequence])


def name_of_layer(lstm: FusedLSTM, layer: int) -> str:
    """Of its place in a trace."""
    number, direction = divmod(layer, 2 if lstm.bidirectional else 1)
    return f"layer {number + 1}" + (("", " backward")[direction] if lstm.bidirectional else "")


# Figures and words ----------------------------------------------------------------------------------------------------


def followed(gates: Gates, inputs: dict[str, Tensor], tokens: bool) -> list[Followed]:
    """Of all units' gates the one that goes best with any of ``inputs``, [N] each, gate by gate, the best first.

    Args:
        gates: [N, 4, H] values.
        inputs: by name.
        tokens: they are 0 and 1: whether the token is there.
    """
    if not inputs:
        return []
    values = gates.values.flatten(1).double()
    signals = torch.stack(list(inputs.values()), dim=1).double()
    correlation = _standardized(values).T @ _standardized(signals) / len(values)  # [4H, K]
    H = gates.values.shape[2]
    # The largest of M correlations of N independent numbers with noise is about this.
    by_chance = math.sqrt(2 * math.log(max(2, H * len(inputs))) / len(values))
    found = []
    for k, gate in enumerate(GATES):
        part = correlation[k * H : (k + 1) * H]
        unit, which = divmod(int(part.abs().argmax()), len(inputs))
        entry = Followed(gate, unit, list(inputs)[which], float(part[unit, which]), by_chance)
        if tokens:
            there, series = signals[:, which] > 0, gates.of(gate)[:, unit]
            entry.there, entry.elsewhere = float(series[there].mean()), float(series[~there].mean())
        found.append(entry)
    return sorted(found, key=lambda entry: -abs(entry.correlation))


def _standardized(x: Tensor) -> Tensor:
    """A constant becomes zeros: it goes with nothing."""
    x = x - x.mean(0)
    deviation = x.std(0, correction=0)
    return x / deviation.where(deviation > 1e-9, torch.inf)


def inputs_of(work: AtWork, names: list[list[str]] | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What gates may follow, at all real steps: tokens (or, without names, the input's numbers), and the position."""
    real = work.real_steps()
    T, B = real.shape
    position = {"the position": torch.arange(T, dtype=torch.float).unsqueeze(1).expand(T, B)[real]}
    if names is None:
        x = work.input[real].float()
        return {f"input {k}": x[:, k] for k in range(min(x.shape[1], MOST_TOKENS))}, position
    at = [names[b][t] for t in range(T) for b in range(B) if real[t, b]]
    counts = {token: n for token, n in Counter(at).most_common(MOST_TOKENS) if RARE <= n <= len(at) - RARE}
    return {token: torch.tensor([float(other == token) for other in at]) for token in counts}, position


def table(by_layer: dict[str, Gates]) -> str:
    """Openness and saturation of each gate, and the units that are always on or off."""
    rows = []
    for name, gates in by_layer.items():
        for gate in GATES:
            values, (low, high) = gates.of(gate), gates.saturation(gate)
            on, off = (len(gates.always(gate, on)) for on in (True, False)) if gate != "g" else (None, None)
            rows.append((name, NAMES[gate], float(values.mean()), float(values.std(correction=0)), float(low.mean()),
                         float(high.mean()), on, off))  # fmt: skip
    header = ("layer", "gate", "mean", "deviation", "share closed", "share open", "units always on", "units always off")
    return format_table(header, rows)


def findings(
    gates: Gates, name: str, by_token: list[Followed], by_position: list[Followed], stages: dict[str, Gates]
) -> list[str]:
    """What the figures say of one layer.

    Args:
        gates: of the layer.
        name: of the layer.
        by_token: of :func:`followed`.
        by_position: likewise.
        stages: the layer's gates earlier and later in training, in this order, by the name of the moment.
    """
    count, H = gates.values.shape[0], gates.values.shape[2]
    means = {gate: float(gates.of(gate).mean()) for gate in "ifo"}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    said = [
        f"Of the gates of {name} the {NAMES[most]} is the most open, {means[most]:.2f} on average over {count:,} steps "
        f"and {H} units, and the {NAMES[least]} the least, {means[least]:.2f}."
    ]
    saturated = {gate: float(torch.stack(list(gates.saturation(gate))).sum(0).mean()) for gate in "ifo"}
    told = ", ".join(f"{NAMES[gate]} {share:.0%}" for gate, share in saturated.items())
    said.append(f"Below {CLOSED} or above {OPEN}, so that it hardly learns, a gate is for this share of steps: {told}.")
    held = []
    for gate in "ifo":
        for on, word in ((True, f"always on (above {OPEN})"), (False, f"always off (below {CLOSED})")):
            if units := gates.always(gate, on):
                held.append(f"{NAMES[gate]} {word}: {len(units)} of {H} units ({listed(units)})")
    said.append(
        f"At all steps alike: {'; '.join(held)}." if held else "No unit's gate is open, or closed, at every step."
    )
    forget = gates.of("f").double().clamp(1e-6, 1 - 1e-9).log().mean(0)  # its mean logarithm is what a product sees
    lives = math.log(0.5) / forget
    said.append(
        f"A cell left alone is halved by its forget gate in {float(lives.median()):.1f} steps in the median unit, in "
        f"{float(lives.max()):.1f} in unit {int(lives.argmax())}, which remembers longest."
    )
    for found in by_token[:3]:
        if abs(found.correlation) > found.by_chance:
            where = f"goes with {found.what}"
            if found.there is not None and found.elsewhere is not None:
                verb = "opens" if found.there > found.elsewhere else "closes"
                verb = ("rises" if verb == "opens" else "falls") if found.gate == "g" else verb
                where = f"{verb} at {shown(found.what)!r} ({found.there:.2f}, elsewhere {found.elsewhere:.2f})"
            said.append(
                f"The {NAMES[found.gate]} of unit {found.unit} {where}: correlation {found.correlation:+.2f}, by "
                f"chance {found.by_chance:.2f}."
            )
    if by_position and abs(by_position[0].correlation) > by_position[0].by_chance:
        found = by_position[0]
        said.append(
            f"The {NAMES[found.gate]} of unit {found.unit} follows the position in the sequence: correlation "
            f"{found.correlation:+.2f}, by chance {found.by_chance:.2f}."
        )
    if len(stages) > 1:
        early, *_, late = stages
        first, last = stages[early], stages[late]
        changes = {gate: float(last.of(gate).mean() - first.of(gate).mean()) for gate in "ifo"}
        gate = max(changes, key=lambda gate: abs(changes[gate]))
        spread = [float(some.of(gate).mean(0).std(correction=0)) for some in (first, last)]
        said.append(
            f"In training, from {early} to {late}, the {NAMES[gate]} changed most: its mean went from "
            f"{float(first.of(gate).mean()):.2f} to {float(last.of(gate).mean()):.2f}, and the deviation between units "
            f"from {spread[0]:.3f} to {spread[1]:.3f}."
        )
    return said


# Pictures -------------------------------------------------------------------------------------------------------------


def shown(token: str) -> str:
    """A token as it is written under a picture."""
    return {" ": "␣", "\n": "↵", "\t": "⇥"}.get(token, token)


@plain_names()
def draw_heatmaps(path: Path, gates: Gates, title: str, names: list[str] | None, steps: int) -> None:
    """The four gates of one sequence: units over steps, the tokens under them."""
    values = gates.shown[:steps]
    figure = new_figure(10, 8.4)
    all_axes = figure.subplots(4, 1, sharex=True)
    for k, (gate, axes) in enumerate(zip(GATES, all_axes, strict=True)):
        scale = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"} if gate == "g" else {"vmin": 0, "vmax": 1, "cmap": "viridis"}
        picture = axes.imshow(values[:, k].T.numpy(), aspect="auto", interpolation="nearest", **scale)
        axes.set(ylabel="unit", title=f"{NAMES[gate]} {gate}")
        figure.colorbar(picture, ax=axes, label="activation", pad=0.01)
    axes.set_xlabel("step" if names is None else "token")
    if names is not None:
        labels = [shown(name) for name in names[: len(values)]]
        long, every = max(map(len, labels)) > 1, -(-len(labels) // 80)  # no more than can be read
        axes.set_xticks(
            range(0, len(labels), every), labels[::every], rotation=90 if long else 0,
            fontsize=10 if len(labels) <= 40 else 8, family="monospace",
        )  # fmt: skip
    figure.suptitle(title, fontsize="medium")
    save_figure(figure, path)


@plain_names()
def draw_units(path: Path, gates: Gates, title: str) -> None:
    """Each unit's gates: how often closed, how often open, and its mean openness."""
    figure = new_figure(9.6, 3.7)
    for axes, gate in zip(figure.subplots(1, 3, sharey=True), "ifo", strict=True):
        low, high = gates.saturation(gate)
        means = gates.of(gate).mean(0)
        picture = axes.scatter(
            100 * low, 100 * high, c=means, cmap="viridis", vmin=0, vmax=1, s=26, edgecolors="black", linewidths=0.4
        )
        axes.plot([0, 100], [100, 0], color="gray", linewidth=0.8, linestyle=":")
        axes.set(title=f"{NAMES[gate]} {gate}", xlabel=f"steps below {CLOSED} (%)", xlim=(-4, 104), ylim=(-4, 104))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"steps above {OPEN} (%)")
    figure.colorbar(picture, ax=figure.axes, label="mean of the unit's gate")
    figure.suptitle(f"{title}: a point is a unit", fontsize="medium")
    save_figure(figure, path)


@plain_names()
def draw_stages(path: Path, stages: dict[str, Gates], title: str) -> None:
    """The units' mean gates earlier and later in training, as boxes."""
    figure = new_figure(9.6, 3.7)
    for axes, gate in zip(figure.subplots(1, 3, sharey=True), "ifo", strict=True):
        boxes = axes.boxplot(
            [some.of(gate).mean(0).numpy() for some in stages.values()], whis=(10, 90), patch_artist=True, widths=0.6
        )
        for box in boxes["boxes"]:
            box.set_facecolor(COLORS[gate])
            box.set_alpha(0.6)
        for line in boxes["medians"]:
            line.set_color("black")
        axes.set_xticks(range(1, 1 + len(stages)), [name.replace(" (", "\n(") for name in stages], fontsize="small")
        axes.set(title=f"{NAMES[gate]} {gate}", ylim=(0, 1))
        axes.grid(alpha=0.3, axis="y")
    figure.axes[0].set_ylabel("mean of a unit's gate")
    figure.supxlabel("moment of training", fontsize="medium")
    figure.suptitle(f"{title}: units' median, quartiles, 10 to 90 %, units beyond", fontsize="medium")
    save_figure(figure, path)


# The command ----------------------------------------------------------------------------------------------------------


def stages_of(run: LoadedRun, given: str, batch: Any, layer: int) -> tuple[dict[str, Gates], str | None]:
    """The layer's gates at the start of training and in each checkpoint that was kept, in the order of training.

    Also why there are none of the start, where that is so.
    """
    found: dict[int, tuple[str, Gates]] = {}
    for file in sorted((run_folder(run.checkpoint) / "checkpoints").glob("*.ckpt")):
        other = load_run(file)
        step = int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"])
        found.setdefault(step, (f"{file.stem} (step {step})", gates_of(*trace(other.task, batch), layer, 0)))
    why = None
    try:
        start = initial_weights(given)
    except (ValueError, OSError) as error:
        why = f"The gates at the start of training cannot be had: {' '.join(str(error).split())}"
    else:
        task = load_run(run.checkpoint).task
        task.load_state_dict(start, strict=False)
        found[-1] = ("start (step 0)", gates_of(*trace(task, batch), layer, 0))
    return dict(found[step] for step in sorted(found)), why


def run(command: str, arguments: list[str]) -> int:
    parser = CommandParser(
        command,
        "The gates of a run's LSTM on its own valid data, or on a text: heatmaps, openness and saturation "
        "of every unit, units that follow a token or the position, before against after training, in words. Writes "
        "gates.png, gates_units.png, gates_training.png and gates.md.",
    )
    parser.add_run()
    parser.add_argument("--text", help="instead of the valid data, for tasks that read text; '\\n' is a line end")
    parser.add_argument("--layer", type=int, default=0, help="which layer; of a bidirectional one 1 is backward")
    parser.add_argument("--sequence", type=int, default=0, help="which sequence of the batch is drawn")
    parser.add_argument("--steps", type=int, default=70, help="how many of its steps are drawn")
    parser.add_argument("--output", help="the folder to write to; the run's if not given")
    options = parser.parse_args(arguments)
    loaded = load_run(options.run, options.checkpoint)
    output = run_folder(loaded.checkpoint) if options.output is None else Path(options.output).expanduser()
    lstm = as_lstm(layer_of(loaded.task))
    text = None if options.text is None else options.text.replace("\\n", "\n")
    batch = valid_batch(loaded) if text is None else loaded.task.text_batch(text, loaded.data)
    work, found = trace(loaded.task, batch)
    limits = {"layer": len(found.gates), "sequence": work.input.shape[1]}
    for name, limit in limits.items():
        if not 0 <= getattr(options, name) < limit:
            raise ValueError(f"{name} must be from 0 to {limit - 1}, got {getattr(options, name)}")
    if options.steps < 1:
        raise ValueError(f"steps must be at least 1, got {options.steps}")
    all_gates = {name_of_layer(lstm, k): gates_of(work, found, k, options.sequence) for k in range(len(found.gates))}
    name = name_of_layer(lstm, options.layer)
    gates = all_gates[name]
    names = loaded.task.step_names(batch, loaded.data)
    inputs, position = inputs_of(work, names)
    stages, why = stages_of(loaded, options.run, batch, options.layer)
    said = findings(gates, name, followed(gates, inputs, names is not None), followed(gates, position, False), stages)
    title = f"{run_folder(loaded.checkpoint).parent.name}/{run_folder(loaded.checkpoint).name}, {name}"
    of_sequence = None if names is None else names[options.sequence]
    draw_heatmaps(output / "gates.png", gates, title, of_sequence, options.steps)
    draw_units(output / "gates_units.png", gates, title)
    pictures = ["gates.png", "gates_units.png"]
    if len(stages) > 1:
        draw_stages(output / "gates_training.png", stages, title)
        pictures.append("gates_training.png")
    text = "\n".join((table(all_gates), "", *(f"- {line}" for line in said), *([why] if why else [])))
    print(text)
    (output / "gates.md").write_text(f"# {options.run}\n\n{text}\n", encoding="utf-8")
    print(f"\nThe pictures are {', '.join(str(output / name) for name in pictures)}")
    return 0
