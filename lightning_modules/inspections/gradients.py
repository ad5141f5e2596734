"""``lstm-fused gradients``: how the gradient fades as it flows back through time, by cell, depth and direction."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.arguments import CommandParser
from lightning_modules.injection import CLASS_OPTIONS, RECURRENT, Spec, import_class, takes_option, to_spec
from lightning_modules.inspections.inside import at_work, initial_weights, layer_of, valid_batch
from lightning_modules.inspections.report import (
    COLORS,
    GRAY,
    STYLES,
    format_table,
    legend_below,
    new_figure,
    save_figure,
)
from lightning_modules.loading import load_run
from lightning_modules.models.recurrent import build_recurrent, num_directions
from lightning_modules.pictures import log_y, plain_names
from lightning_modules.runs import run_folder
from lstm_fused import FusedLSTM

# Words for cells beside those of --model.recurrent: options of FusedLSTM.
CELLS = {
    "lstm": {},
    "layer_norm": {"layer_norm": True},
    "peepholes": {"peephole": True},
    "bidirectional": {"bidirectional": True},
    "two_layers": {"num_layers": 2},
}
TRAINED, AT_START = "trained", "at the start"
FADED = 0.01  # of the gradient at the loss
DISTANCES = (1, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass
class Line:
    """The gradients of one kind of layer, over the distance from the loss or over the position."""

    label: str
    norms: Tensor  # [seeds, steps]: ||dL/dh|| in shares of that at the loss, or ||dL/dx||

    @property
    def mean(self) -> Tensor:
        """The geometric mean over the seeds, by step."""
        return self.norms.log().mean(0).exp()

    @property
    def faded_at(self) -> int | None:
        """The first distance at which it is below :data:`FADED`."""
        below = (self.mean < FADED).nonzero()
        return int(below[0]) if len(below) else None

    @property
    def factor(self) -> float:
        """What a step multiplies it by, over all steps (geometric mean)."""
        return float(self.mean[-1] ** (1 / (len(self.mean) - 1)))


@dataclass
class Flow:
    """Norms of a gradient as it flows back, means over the sequences of a batch, [T] each."""

    hidden: dict[str, Tensor]  # of each layer and direction, by its name, ||dL/dh|| over the distance from the loss
    input: Tensor  # ||dL/dx_t|| over the position t


def flow_back(parts: list[list[nn.Module]], input: Tensor, seed: int = 0) -> Flow:
    """The gradient of a loss L: a random projection of the last h, in both directions of the one that each ends with.

    A projection has unit length, so that the norm at distance 0 of the topmost layer is 1. The layers run step by step,
    since their own backward pass returns no gradients of intermediate states; h and c are the state between two steps,
    and the gradient is that of h.

    Args:
        parts: of :func:`parts_of`.
        input: [T, B, I].
        seed: of the projection.
    """
    below = input = input.clone().requires_grad_()
    all_hidden: dict[str, list[Tensor]] = {}
    for number, row in enumerate(parts, 1):
        outputs = []
        for part, way in zip(row, ("forward", "backward"), strict=False):
            state, hidden = None, []
            for x in below.flip(0) if way == "backward" else below:
                _, state = part(x[None], state)
                h = state[0] if isinstance(state, tuple) else state
                h.retain_grad()
                hidden.append(h)
            words = [f"layer {number}"] * (len(parts) > 1) + [way] * (len(row) > 1)
            all_hidden[" ".join(words)] = hidden
            output = torch.cat(hidden)
            outputs.append(output.flip(0) if way == "backward" else output)
        below = torch.cat(outputs, dim=-1)
    generator, loss = torch.Generator().manual_seed(seed), torch.zeros((), dtype=input.dtype)
    for hidden in list(all_hidden.values())[-len(parts[-1]) :]:
        direction = torch.randn(hidden[-1].shape, generator=generator, dtype=torch.float64).to(input)
        loss = loss + (hidden[-1] * direction / direction.norm(dim=-1, keepdim=True)).sum()
    loss.backward()

    def norms(gradients: list[Tensor]) -> Tensor:
        """Where a layer's gradient is exactly nothing the logarithm would be infinite."""
        return torch.stack([x.norm(dim=-1).mean() for x in gradients]).double().clamp(min=1e-300)

    of_hidden = {name: norms([_grad(h) for h in reversed(hidden)]) for name, hidden in all_hidden.items()}
    return Flow(of_hidden, norms(list(_grad(input))))


def _grad(x: Tensor) -> Tensor:
    """After a backward pass that has reached it."""
    assert x.grad is not None
    return x.grad


def parts_of(layer: Any, spec: Spec, **options: Any) -> list[list[nn.Module]]:
    """A layer taken apart: of each layer of its stack that of each direction, with its weights; in float64, in eval.

    One whose weights have other names than torch's stays whole.

    Args:
        layer: built of ``spec`` and ``options``.
        spec: see :mod:`lightning_modules.injection`.
        options: of :func:`build_recurrent`.
    """
    state, directions = layer.state_dict(), num_directions(layer)
    count = getattr(layer, "num_layers", 1)
    if count * directions == 1 or "weight_ih_l0" not in state:
        return [[copy.deepcopy(layer).double().eval()]]
    own = {name: value for name, value in spec["init_args"].items() if name not in ("bidirectional", "num_layers")}
    parts = []
    for number in range(count):
        row = []
        for suffix in (f"_l{number}", f"_l{number}_reverse")[:directions]:
            size = state[f"weight_ih{suffix}"].shape[1]
            with torch.random.fork_rng():
                part = build_recurrent(
                    spec | {"init_args": own}, size, hidden_size=layer.hidden_size, num_layers=1, **options
                )
            part.load_state_dict({name: state[name.removesuffix("_l0") + suffix] for name in part.state_dict()})
            row.append(part.double().eval())
        parts.append(row)
    return parts


def fresh_parts(
    cell: str, input_size: int, hidden_size: int, forget_bias: float | None, seed: int
) -> list[list[nn.Module]]:
    """A new layer, taken apart; torch's random numbers are left as they were."""
    spec = to_spec(RECURRENT, {"class_path": "fused", "init_args": CELLS[cell]} if cell in CELLS else cell)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = build_recurrent(spec, input_size, hidden_size=hidden_size, forget_bias=forget_bias)
    return parts_of(layer, spec, forget_bias=forget_bias)


def fresh_lines(
    cells: list[str], forget_biases: list[float], length: int, input_size: int, hidden_size: int, seeds: int
) -> tuple[list[Line], list[Line]]:
    """Of new layers on random numbers: over the distance, and over the position."""
    over_distance: list[Line] = []
    over_position: list[Line] = []
    for cell in cells:
        cls = FusedLSTM if cell in CELLS else import_class(RECURRENT, cell)
        for bias in forget_biases if takes_option(cls, "forget_bias") else [None]:
            flows = []
            for seed in range(1, seeds + 1):
                generator = torch.Generator().manual_seed(seed)
                input = torch.randn(length, 8, input_size, generator=generator, dtype=torch.float64)
                flows.append(flow_back(fresh_parts(cell, input_size, hidden_size, bias, seed), input, seed))
            add_lines(over_distance, over_position, cell, flows, None if bias is None else f"forget bias {bias:g}")
    return over_distance, over_position


def add_lines(
    over_distance: list[Line], over_position: list[Line], name: str, flows: list[Flow], setting: str | None
) -> None:
    """Adds a line for each layer and direction, and one for the input."""
    for part in flows[0].hidden:
        label = ", ".join(word for word in (name, part, setting) if word)
        over_distance.append(Line(label, torch.stack([flow.hidden[part] for flow in flows])))
    label = ", ".join(word for word in (name, setting) if word)
    over_position.append(Line(label, torch.stack([flow.input for flow in flows])))


def lines_of_run(folder: str, checkpoint: str, length: int) -> tuple[list[Line], list[Line], list[str]]:
    """Of a run's layers on its own valid data, trained and at the start; and what there is to note."""
    loaded, notes = load_run(folder, checkpoint), []
    run, task = run_folder(loaded.checkpoint), loaded.task
    name = f"{run.parent.name}/{run.name}"
    work = at_work(task, valid_batch(loaded))
    longest = work.input.shape[0] if work.lengths is None else int(work.lengths.max())
    whole = work.input[:longest] if work.lengths is None else work.input[:longest, work.lengths == longest]
    input = whole[:length].double()
    if len(input) < 2:
        raise ValueError(f"the run's sequences must have at least 2 steps, got {len(input)}")
    if len(input) < length:
        notes.append(f"The run's sequences have {len(input)} steps, fewer than --length {length}.")
    spec = to_spec(RECURRENT, task.hparams.recurrent)
    options = {option: task.hparams[option] for option in CLASS_OPTIONS}

    def flow() -> list[Flow]:
        return [flow_back(parts_of(layer_of(task), spec, **options), input)]

    over_distance: list[Line] = []
    over_position: list[Line] = []
    add_lines(over_distance, over_position, name, flow(), TRAINED)
    try:
        task.load_state_dict(initial_weights(folder, checkpoint), strict=False)
    except (ValueError, OSError) as error:
        notes.append(f"The gradients before training cannot be had: {' '.join(str(error).split())}")
    else:
        add_lines(over_distance, over_position, name, flow(), AT_START)
    return over_distance, over_position, notes


# Words and picture ----------------------------------------------------------------------------------------------------


def table(lines: list[Line]) -> str:
    longest = max(len(line.mean) for line in lines)
    distances = [d for d in DISTANCES if d < longest]
    rows = [
        (line.label, *(float(line.mean[d]) if d < len(line.mean) else None for d in distances), line.factor,
         "never" if line.faded_at is None else str(line.faded_at))
        for line in lines
    ]  # fmt: skip
    header = ("layer", *(f"at {d}" for d in distances), "a step", f"below {FADED:.0%} at")
    return format_table(header, rows)


def findings(lines: list[Line]) -> list[str]:
    """Where the gradient lasts longest and fades soonest, and what forget bias and training change."""
    said = []
    if len(lines) > 1:
        last = min(len(line.mean) for line in lines) - 1
        at_end = {line.label: float(line.mean[last]) for line in lines}
        best, worst = max(at_end, key=at_end.__getitem__), min(at_end, key=at_end.__getitem__)
        said.append(
            f"Over {last} steps most of the gradient is left in {best}, {at_end[best]:.3g} of it, least in {worst}, "
            f"{at_end[worst]:.3g}: {at_end[best] / at_end[worst]:.3g} times less."
        )
    for line in lines:
        where = (
            f"is still {float(line.mean[-1]):.3g} of its size after {len(line.mean) - 1} steps"
            if line.faded_at is None
            else f"is below {FADED:.0%} after {line.faded_at} steps"
        )
        grows = "grows" if line.factor > 1 else "shrinks"
        said.append(f"{line.label}: the gradient {where}; a step back it {grows} by the factor {line.factor:.3g}.")
    by_cell: dict[str, dict[str, Line]] = {}
    for line in lines:
        cell, comma, bias = line.label.partition(", forget bias ")
        if comma:
            by_cell.setdefault(cell, {})[bias] = line
    for cell, of_bias in by_cell.items():
        if len(of_bias) > 1:
            low, high = min(of_bias, key=float), max(of_bias, key=float)
            n = min(10, len(of_bias[low].mean) - 1)
            ratio = float(of_bias[high].mean[n] / of_bias[low].mean[n])
            said.append(f"{cell}: forget bias {high} instead of {low} leaves {ratio:.3g} times as much over {n} steps.")
    by_label = {line.label: line for line in lines}
    for label, trained in by_label.items():
        name, comma, setting = label.rpartition(", ")
        start = by_label.get(f"{name}{comma}{AT_START}")
        if setting == TRAINED and start is not None:
            n = len(trained.mean) - 1
            ratio = float(trained.mean[n] / start.mean[n])
            said.append(
                f"{name}: training made the gradient over {n} steps {ratio if ratio >= 1 else 1 / ratio:.3g} times "
                f"{'larger' if ratio >= 1 else 'smaller'}."
            )
    return said


def finding_of_inputs(lines: list[Line]) -> str:
    """How much of the gradient the beginning of the sequences has."""
    shares = []
    for line in lines:
        half = len(line.mean) // 2
        shares.append(f"{100 * float(line.mean[:half].sum() / line.mean.sum()):.2g}% in {line.label}")
    return f"Of the gradient at the input the first half of the steps has {'; '.join(shares)}."


@plain_names()
def draw(path: Path, lines: list[Line], xlabel: str, ylabel: str, threshold: float | None = None) -> None:
    """The lines over their steps, what differs in color differs in style too; and a gray one at the threshold."""
    figure = new_figure(8, 4.8)
    axes = figure.subplots()
    for k, line in enumerate(lines):
        x, color = range(len(line.mean)), COLORS[k % len(COLORS)]
        style = STYLES[(k + k // len(COLORS)) % len(STYLES)]
        axes.plot(x, line.mean, color=color, linestyle=style, linewidth=1.8, label=line.label)
        if len(line.norms) > 1:
            axes.fill_between(x, line.norms.amin(0), line.norms.amax(0), color=color, alpha=0.15, linewidth=0)
    if threshold is not None:
        axes.axhline(threshold, color=GRAY, linewidth=1, linestyle=":", label=f"{threshold:.0%}")
    log_y(axes)
    locator: Any = axes.xaxis.get_major_locator()
    locator.set_params(integer=True)
    lowest = min(float(line.mean.min()) for line in lines)
    axes.set_ylim(bottom=max(lowest / 3, 1e-12))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    seeds = max(len(line.norms) for line in lines)
    if seeds > 1:
        axes.set_title(f"geometric mean and range of {seeds} seeds", fontsize="medium")
    legend_below(figure)
    save_figure(figure, path)


def write_csv(path: Path, lines: list[Line], step: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"layer,seed,{step},norm\n")
        for line in lines:
            for seed, norms in enumerate(line.norms.tolist(), 1):
                file.writelines(f'"{line.label}",{seed},{k},{norm:.9g}\n' for k, norm in enumerate(norms))


# The command ----------------------------------------------------------------------------------------------------------


def run(command: str, arguments: list[str]) -> int:
    parser = CommandParser(
        command,
        "The norm of dL/dh_t over the distance from t to the loss, which is a random projection of the "
        "last hidden state of each direction, and that of dL/dx_t over the position: of new layers by cell and forget "
        "bias, or of a run's layers before and after training on its own data; of several layers and directions each. "
        "Writes gradients.png, gradients_input.png, a .csv of each, and gradients.md.",
    )
    parser.add_argument("run", nargs="?", help="a run's folder; without one the layers are new")
    parser.add_argument("--checkpoint", default="best", help="which of the run's: best, last or interrupted")
    parser.add_argument(
        "--cells", nargs="+", metavar="CELL",
        help=f"new layers: {', '.join(CELLS)}, or a word for --model.recurrent such as gru, rnn, my.Layer; lstm, "
        "layer_norm, gru and rnn if not given, and none beside a run",
    )  # fmt: skip
    parser.add_argument("--forget-bias", nargs="+", type=float, default=[0.0, 1.0, 3.0], help="of new LSTMs")
    parser.add_argument("--length", type=int, default=100, help="steps")
    parser.add_argument("--hidden-size", type=int, default=64, help="of new layers")
    parser.add_argument("--input-size", type=int, default=16, help="of new layers")
    parser.add_argument("--seeds", type=int, default=3, help="new layers of each kind")
    parser.add_argument("--output", help="the folder to write to; the run's, or runs/gradients")
    options = parser.parse_args(arguments)
    for name, least in {"length": 2, "hidden_size": 1, "input_size": 1, "seeds": 1}.items():
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(options, name)}")
    cells = options.cells or ([] if options.run else ["lstm", "layer_norm", "gru", "rnn"])
    lines: list[Line] = []
    inputs: list[Line] = []
    notes: list[str] = []
    output = Path("runs/gradients")
    if options.run is not None:
        lines, inputs, notes = lines_of_run(options.run, options.checkpoint, options.length)
        path = Path(options.run).expanduser()
        output = run_folder(path) if path.is_file() else path
    fresh = fresh_lines(
        cells, options.forget_bias, options.length, options.input_size, options.hidden_size, options.seeds
    )
    lines, inputs = lines + fresh[0], inputs + fresh[1]
    output = output if options.output is None else Path(options.output).expanduser()
    draw(
        output / "gradients.png", lines,
        "distance from the loss (steps)", "norm of dL/dh\n(share of that at the last hidden state)", FADED,
    )  # fmt: skip
    draw(output / "gradients_input.png", inputs, "position t in the sequence (steps)", "norm of dL/dx at t")
    said = [*findings(lines), finding_of_inputs(inputs)]
    text = "\n".join((table(lines), "", *(f"- {line}" for line in said), *notes))
    (output / "gradients.md").write_text(f"# The gradient over time\n\n{text}\n", encoding="utf-8")
    write_csv(output / "gradients.csv", lines, "distance")
    write_csv(output / "gradients_input.csv", inputs, "position")
    print(text)
    print(f"\nThe pictures are {output / 'gradients.png'} and {output / 'gradients_input.png'}")
    return 0
