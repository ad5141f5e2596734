"""``lstm-fused gradients``: how the gradient fades as it flows back through time, by cell and forget bias."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.arguments import CommandParser
from lightning_modules.injection import CLASS_OPTIONS, RECURRENT, import_class, takes_option, to_spec
from lightning_modules.inspections.inside import at_work, initial_weights, layer_of, valid_batch
from lightning_modules.inspections.report import COLORS, STYLES, format_table, new_figure, save_figure
from lightning_modules.loading import load_run
from lightning_modules.models.recurrent import build_recurrent
from lightning_modules.runs import run_folder
from lightning_modules.tasks import RecurrentTask

# Words for cells beside those of --model.recurrent: the class, and options that it then has.
CELLS = {"lstm": ("fused", {}), "layer_norm": ("fused", {"layer_norm": True})}
FADED = 0.01  # of the gradient at distance 0
DISTANCES = (1, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass
class Line:
    """The gradients of one kind of layer."""

    label: str
    norms: Tensor  # [seeds, distances from 0]: ||dL/dh|| in shares of that at distance 0

    @property
    def mean(self) -> Tensor:
        """The geometric mean over the seeds, by distance."""
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


def gradient_norms(layer: nn.Module, input: Tensor, seed: int = 0) -> Tensor:
    """``||dL/dh_t||`` over the distance T - t, the mean over sequences, [T]; L is a random projection of the last h.

    Of unit length, so that the norm at distance 0 is 1. The layer runs step by step, since its own backward pass tells
    no gradient of a state on the way; h and c are the state between two steps, and the gradient is that of h.

    Args:
        layer: gives an output and a state, of which the first or only tensor is h [1, B, H].
        input: [T, B, I].
        seed: of the projection.
    """
    state, hidden = None, []
    for x in input:
        _, state = layer(x[None], state)
        h = state[0] if isinstance(state, tuple) else state
        h.retain_grad()
        hidden.append(h)
    direction = torch.randn(h.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(h)
    (h * direction / direction.norm(dim=-1, keepdim=True)).sum().backward()
    # Where a layer's gradient is exactly nothing the logarithm would be infinite.
    return torch.stack([h.grad.norm(dim=-1).mean() for h in reversed(hidden)]).detach().double().clamp(min=1e-300)


def fresh_layer(cell: str, input_size: int, hidden_size: int, forget_bias: float | None, seed: int) -> nn.Module:
    """A new layer in float64; torch's random numbers are left as they were."""
    word, options = CELLS.get(cell, (cell, {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = build_recurrent(word, input_size, hidden_size=hidden_size, forget_bias=forget_bias, **options)
    return layer.double().eval()


def fresh_lines(
    cells: list[str], forget_biases: list[float], length: int, input_size: int, hidden_size: int, seeds: int
) -> list[Line]:
    """Of new layers on random numbers."""
    lines = []
    for cell in cells:
        word, _ = CELLS.get(cell, (cell, {}))
        has_gate = takes_option(import_class(RECURRENT, word), "forget_bias")
        for bias in forget_biases if has_gate else [None]:
            norms = []
            for seed in range(1, seeds + 1):
                generator = torch.Generator().manual_seed(seed)
                input = torch.randn(length, 8, input_size, generator=generator, dtype=torch.float64)
                norms.append(gradient_norms(fresh_layer(cell, input_size, hidden_size, bias, seed), input, seed))
            lines.append(Line(cell if bias is None else f"{cell}, forget bias {bias:g}", torch.stack(norms)))
    return lines


def first_layer(task: RecurrentTask) -> nn.Module:
    """The first layer of the task's recurrent layers, forward in time, with its weights: in float64, in eval."""
    layer = layer_of(task)
    if not hasattr(layer, "weight_ih_l0") or (layer.num_layers == 1 and not layer.bidirectional):
        return copy.deepcopy(layer).double().eval()
    spec = to_spec(RECURRENT, task.hparams.recurrent)
    spec["init_args"].pop("bidirectional", None)
    options = {name: task.hparams[name] for name in CLASS_OPTIONS}
    alone = build_recurrent(spec, layer.input_size, hidden_size=layer.hidden_size, num_layers=1, **options)
    alone.load_state_dict({name: layer.state_dict()[name] for name in alone.state_dict()})
    return alone.double().eval()


def lines_of_run(folder: str, checkpoint: str, length: int) -> tuple[list[Line], list[str]]:
    """Of a run's first layer on its own valid data, after training and before it; and what there is to note."""
    loaded, notes = load_run(folder, checkpoint), []
    run = run_folder(loaded.checkpoint)
    name = f"{run.parent.name}/{run.name}"
    work = at_work(loaded.task, valid_batch(loaded))
    longest = work.input.shape[0] if work.lengths is None else int(work.lengths.max())
    whole = work.input[:longest] if work.lengths is None else work.input[:longest, work.lengths == longest]
    input = whole[:length].double()
    if len(input) < 2:
        raise ValueError(f"the run's sequences must have at least 2 steps, got {len(input)}")
    if len(input) < length:
        notes.append(f"The run's sequences have {len(input)} steps, fewer than --length {length}.")
    lines = [Line(f"{name}, trained", gradient_norms(first_layer(loaded.task), input)[None])]
    try:
        loaded.task.load_state_dict(initial_weights(folder, checkpoint), strict=False)
    except (ValueError, OSError) as error:
        notes.append(f"The gradients before training cannot be had: {' '.join(str(error).split())}")
    else:
        lines.append(Line(f"{name}, at the start", gradient_norms(first_layer(loaded.task), input)[None]))
    return lines, notes


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
        best, worst = max(at_end, key=at_end.get), min(at_end, key=at_end.get)
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
    trained = [line for line in lines if line.label.endswith(", trained")]
    start = [line for line in lines if line.label.endswith(", at the start")]
    if trained and start:
        n = len(trained[0].mean) - 1
        ratio = float(trained[0].mean[n] / start[0].mean[n])
        said.append(
            f"Training made the gradient over {n} steps {ratio if ratio >= 1 else 1 / ratio:.3g} times "
            f"{'larger' if ratio >= 1 else 'smaller'}."
        )
    return said


def draw(path: Path, lines: list[Line]) -> None:
    figure = new_figure(8, 4.6)
    axes = figure.subplots()
    for k, line in enumerate(lines):
        x = range(len(line.mean))
        axes.plot(
            x,
            line.mean,
            color=COLORS[k % len(COLORS)],
            linestyle=STYLES[k % len(STYLES)],
            linewidth=1.8,
            label=line.label,
        )
        if len(line.norms) > 1:
            axes.fill_between(
                x, line.norms.amin(0), line.norms.amax(0), color=COLORS[k % len(COLORS)], alpha=0.15, linewidth=0
            )
    axes.axhline(FADED, color="gray", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    lowest = min(float(line.mean.min()) for line in lines)
    axes.set_ylim(bottom=max(lowest / 3, 1e-12))
    axes.set(xlabel="distance from the loss (steps)", ylabel="norm of dL/dh\n(share of that at distance 0)")
    axes.grid(alpha=0.3)
    seeds = max(len(line.norms) for line in lines)
    if seeds > 1:
        axes.set_title(f"geometric mean and range of {seeds} seeds", fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small")
    save_figure(figure, path)


# The command ----------------------------------------------------------------------------------------------------------


def run(command: str, arguments: list[str]) -> int:
    parser = CommandParser(
        command,
        "The norm of dL/dh_t over the distance from t to the loss, which is a random projection of the "
        "last hidden state: of new layers by cell and forget bias, or of a run's first layer before and after training "
        "on its own data. Writes gradients.png, gradients.csv and gradients.md.",
    )
    parser.add_argument("run", nargs="?", help="a run's folder; without one the layers are new")
    parser.add_argument("--checkpoint", default="best", help="which of the run's: best, last or interrupted")
    parser.add_argument(
        "--cells", nargs="+", metavar="CELL",
        help="new layers: lstm, layer_norm, or a word for --model.recurrent such as gru, rnn, my.Layer; lstm, "
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
    lines, notes, output = [], [], Path("runs/gradients")
    if options.run is not None:
        lines, notes = lines_of_run(options.run, options.checkpoint, options.length)
        path = Path(options.run).expanduser()
        output = run_folder(path) if path.is_file() else path
    lines += fresh_lines(
        cells, options.forget_bias, options.length, options.input_size, options.hidden_size, options.seeds
    )
    output = output if options.output is None else Path(options.output).expanduser()
    draw(output / "gradients.png", lines)
    text = "\n".join((table(lines), "", *(f"- {line}" for line in findings(lines)), *notes))
    (output / "gradients.md").write_text(f"# The gradient over time\n\n{text}\n", encoding="utf-8")
    with open(output / "gradients.csv", "w", encoding="utf-8") as file:
        file.write("layer,seed,distance,norm\n")
        for line in lines:
            for seed, norms in enumerate(line.norms.tolist(), 1):
                file.writelines(f'"{line.label}",{seed},{d},{norm:.9g}\n' for d, norm in enumerate(norms))
    print(text)
    print(f"\nThe picture is {output / 'gradients.png'}")
    return 0
