"""``lstm-fused weights RUN...``: the weights of runs beside one another, and what dropout and layer norm do in them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.arguments import CommandParser
from lightning_modules.inspections.inside import AtWork, at_work, initial_weights, valid_batch
from lightning_modules.inspections.report import COLORS, STYLES, format_table, legend_below, new_figure, save_figure
from lightning_modules.loading import LoadedRun, load_run
from lightning_modules.pictures import plain_names
from lightning_modules.regularization import dropout, layer_norm
from lightning_modules.runs import run_folder

STEPS, UNITS = 20, 50  # of the picture of dropout
MOST_PANELS = 6
AT_START = "at the start"


@dataclass
class Weights:
    """The weights of one run, or those that it began with, by group."""

    label: str
    groups: dict[str, Tensor]  # flat
    decayed: set[str]  # groups that weight decay acts on
    weight_decay: float | None = None


def group_of(name: str) -> str:
    """A parameter's group: all layers and directions of a recurrent layer are one."""
    return re.sub(r"_l\d+(_reverse)?$", "", name.removeprefix("net."))


def by_group(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of each group as one vector."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(group_of(name), []).append(parameter.detach().flatten().float())
    return {group: torch.cat(parts) for group, parts in groups.items()}


def weights_of(run: LoadedRun, label: str) -> Weights:
    decayed = {group_of(name) for name in run.task.decay_partition().decayed}
    return Weights(label, by_group(dict(run.task.named_parameters())), decayed, run.task.hparams.weight_decay)


def names_of_folders(folders: list[Path]) -> list[str]:
    """The end of each path: two parts, and as many more as tell different folders apart."""
    paths = [folder.resolve().parts for folder in folders]
    count = 2
    while count < max(map(len, paths)) and len({path[-count:] for path in paths}) < len(set(paths)):
        count += 1
    return ["/".join(path[-count:]) for path in paths]


def labels_of(runs: list[LoadedRun]) -> list[str]:
    """Labels that distinguish the runs: the model options in which they differ, or their folders."""
    names = names_of_folders([run_folder(run.checkpoint) for run in runs])
    options = [dict(run.task.hparams) for run in runs]
    differing = [name for name in options[0] if len({str(some.get(name)) for some in options}) > 1]
    if not differing or len(differing) > 3:
        return names
    labels = [", ".join(f"{name} {some.get(name)}" for name in differing) for some in options]
    return labels if len(set(labels)) == len(labels) else names


# In figures and words -------------------------------------------------------------------------------------------------


def figures_of(all_weights: list[Weights]) -> list[tuple[Any, ...]]:
    """A row for every group and run: how many, mean, deviation, least, most."""
    groups = list(dict.fromkeys(group for some in all_weights for group in some.groups))
    return [
        (group, some.label, len(w), float(w.mean()), float(w.std(correction=0)), float(w.min()), float(w.max()))
        for group in groups
        for some in all_weights
        if (w := some.groups.get(group)) is not None
    ]


def findings_of(all_weights: list[Weights]) -> list[str]:
    """What the weights say: how far each run moved them from the start, and how the runs differ."""
    findings = []
    start = next((some for some in all_weights if some.label == AT_START), None)
    runs = [some for some in all_weights if some is not start]
    at_start = {} if start is None else start.groups
    for some in runs if start else []:
        ratios = {
            group: float(w.std(correction=0) / at_start[group].std(correction=0))
            for group, w in some.groups.items()
            if group in some.decayed
            and len(at_start.get(group, ())) == len(w)  # a layer of another size began elsewhere
            and float(at_start[group].std()) > 0
        }
        if ratios:
            most, least = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
            grown = sum(ratio > 1 for ratio in ratios.values())
            findings.append(
                f"{some.label}: of {len(ratios)} groups of decayed weights {grown} became wider in training; "
                f"{most} {_changed(ratios[most])}, {least} {_changed(ratios[least])}."
            )
    norms = {some.label: _norm(some, runs[0].decayed) for some in all_weights}
    told = ", ".join(f"{label} {norm:.4g}" for label, norm in norms.items())
    findings.append(f"The norm of all decayed weights: {told}.")
    if len(runs) > 1:
        of_runs = {some.label: norms[some.label] for some in runs}
        small, large = min(of_runs, key=of_runs.__getitem__), max(of_runs, key=of_runs.__getitem__)
        difference = 1 - of_runs[small] / of_runs[large]
        decays = {some.label: some.weight_decay for some in runs}
        more = max(decays, key=lambda label: decays[label] or 0)
        agrees = ""
        if len(set(decays.values())) > 1:
            agrees = (
                ", as its weight decay, the largest, would have it"
                if more == small
                else f", although the weight decay of {more} is the largest"
            )
        findings.append(f"The smallest weights are those of {small}: {difference:.1%} below those of {large}{agrees}.")
    return findings


def _changed(ratio: float) -> str:
    return f"by {ratio - 1:+.0%}" if abs(ratio - 1) >= 0.005 else "hardly at all"


def _norm(some: Weights, groups: set[str]) -> float:
    return float(sum(some.groups[group].square().sum() for group in groups if group in some.groups) ** 0.5)


# Pictures -------------------------------------------------------------------------------------------------------------


@plain_names()
def draw_weights(path: Path, all_weights: list[Weights]) -> None:
    """Histograms of the groups that weight decay acts on, the largest of them, and of the embedding."""
    sizes = {group: len(w) for some in all_weights for group, w in some.groups.items()}
    decayed = {group for some in all_weights for group in some.decayed}
    matrices = [group for group in sizes if group in decayed or group.endswith("embedding.weight")]
    chosen = sorted(matrices, key=lambda group: -sizes[group])[:MOST_PANELS]
    chosen = [group for group in sizes if group in chosen]
    columns = min(2 if len(chosen) in (2, 4) else 3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(max(6.6, 3.1 * columns + 0.4), 2.5 * rows + 0.8)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, group in zip(all_axes, chosen, strict=False):
        shown = [(k, some.label, some.groups[group]) for k, some in enumerate(all_weights) if group in some.groups]
        reach = max(float(_quantile(w.abs(), 0.999)) for _, _, w in shown) or 1.0
        bins = torch.linspace(-reach, reach, 61)
        for k, label, w in shown:
            share = torch.histc(w.clamp(-reach, reach), bins=60, min=-reach, max=reach) / len(w)
            axes.stairs(
                100 * share,
                bins,
                color=COLORS[k % len(COLORS)],
                linestyle=STYLES[k % len(STYLES)],
                linewidth=1.4,
                label=label,
            )
        counts = sorted({len(w) for _, _, w in shown})
        axes.set_title(f"{group} ({' or '.join(f'{count:,}' for count in counts)})", fontsize="small")
        axes.set(xlabel="weight", ylabel="share (% a bin)")
        axes.grid(alpha=0.3)
    for axes in all_axes[len(chosen) :]:
        axes.set_axis_off()
    if len(chosen) < len(matrices):
        figure.suptitle(f"the {len(chosen)} largest of {len(matrices)} groups of weights", fontsize="medium")
    legend_below(figure)
    save_figure(figure, path)


def _quantile(values: Tensor, share: float) -> Tensor:
    """torch's own takes no more than 16 million."""
    return values.kthvalue(max(1, round(share * len(values)))).values


def draw_dropout(path: Path, activations: Tensor, rate: float, seed: int = 0) -> tuple[float, str]:
    """Activations [steps, units] without and with dropout; dropped cells are black. Returns the share dropped."""
    from matplotlib.colors import ListedColormap

    dropped = dropout(activations, rate, seed=seed)
    assert dropped.mask is not None  # the rate is above 0
    off = ~dropped.mask
    largest = float(dropped.output.abs().max()) or 1.0
    figure = new_figure(8.4, 5.2)
    for axes, values, title in zip(
        figure.subplots(2, 1, sharex=True),
        (activations, dropped.output),
        ("without dropout", f"with dropout {rate:g}: black was dropped ({off.float().mean():.1%}), the rest is scaled"),
        strict=True,
    ):
        picture = axes.imshow(
            values.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest"
        )
        axes.set(title=title, ylabel="step")
    axes.imshow(
        torch.where(off, 1.0, torch.nan).numpy(), cmap=ListedColormap(["black"]), aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axes.set_xlabel("unit of the recurrent layer")
    figure.colorbar(picture, ax=figure.axes, label="activation", shrink=0.8)
    save_figure(figure, path)
    share = float(off.float().mean())
    change = float(dropped.output.mean()), float(activations.mean())
    return share, (
        f"Dropout {rate:g} of {len(activations)} steps x {activations.shape[1]} units dropped {share:.1%}; the mean "
        f"went from {change[1]:.4g} to {change[0]:.4g}, since what is kept is scaled by {1 / (1 - rate):.4g}."
    )


@dataclass
class Normalization:
    """Activations before and after layer norm, [N, features]."""

    what: str
    before: Tensor
    after: Tensor

    def rows(self) -> list[tuple[Any, ...]]:
        return [
            (name, float(x.mean()), float(x.std(correction=0)), float(x.min()), float(x.max()),
             float(x.mean(-1).abs().max()), float(x.std(-1, correction=0).min()), float(x.std(-1, correction=0).max()))
            for name, x in (("before", self.before), ("after", self.after))
        ]  # fmt: skip


LAYER_NORM_HEADER = (
    "layer norm", "mean", "deviation", "min", "max",
    "largest mean of a step", "least deviation of a step", "largest deviation of a step",
)  # fmt: skip


def normalization(work: AtWork) -> Normalization:
    """What layer norm does in the run's layer, or would do where it has none.

    In a layer that has it this is its norm of the recurrent product ``W_hh h``, without the learned gain; elsewhere the
    layer's output is normalized.
    """
    layer: Any = work.layer
    real = work.real_steps()
    gain = getattr(layer, "weight_ln_hh_l0", None)
    if gain is None:
        before = work.output[real]
        what = f"the output of {type(layer).__name__}, which has no layer norm of its own"
    else:
        hidden = layer.trace(work.input, work.state, lengths=work.lengths).hidden[0]
        before = F.linear(hidden[real], layer.weight_hh_l0.detach())
        what = "the product W_hh h in the recurrent layer, without the learned gain"
    size = before.shape[-1]
    after = layer_norm(before.float(), torch.ones(size), torch.zeros(size)).output
    return Normalization(what, before.float(), after)


def draw_normalization(path: Path, found: Normalization) -> None:
    figure = new_figure(8.4, 3.6)
    for axes, (when, values), row, color in zip(
        figure.subplots(1, 2), (("before", found.before), ("after", found.after)), found.rows(), COLORS, strict=False
    ):
        values = values.flatten()
        axes.hist(values.numpy(), bins=60, weights=torch.full_like(values, 100 / len(values)).numpy(), color=color)
        shown = zip(("mean", "deviation", "min", "max"), row[1:5], strict=True)
        text = "\n".join(f"{name} {value if abs(value) > 1e-6 else 0:.3g}" for name, value in shown)
        axes.text(0.97, 0.95, text, transform=axes.transAxes, ha="right", va="top", fontsize="small")
        axes.set(title=f"{when} layer norm", xlabel="activation", ylabel="share (% a bin)")
        axes.grid(alpha=0.3)
    figure.suptitle(found.what, fontsize="medium")
    save_figure(figure, path)


# The command ----------------------------------------------------------------------------------------------------------


def run(command: str, arguments: list[str]) -> int:
    parser = CommandParser(
        command,
        "Histograms of the weights of runs beside one another, such as one with and one without weight "
        "decay, and of those they began with, with mean and deviation; and of the first run's activations with and "
        "without dropout, before and after layer norm. Writes weights.png, dropout.png, layer_norm.png and weights.md.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, such as runs/char_lm/version_0")
    parser.add_argument("--checkpoint", default="best", help="which of each run's: best, last or interrupted")
    parser.add_argument("--rate", type=float, help="of the dropout that is shown; the first run's own, or 0.2")
    parser.add_argument("--output", help="the folder to write to; the first run's if not given")
    options = parser.parse_args(arguments)
    if options.rate is not None and not 0 < options.rate < 1:
        raise ValueError(f"rate must be above 0 and below 1, got {options.rate}")
    runs = [load_run(folder, options.checkpoint) for folder in options.runs]
    output = run_folder(runs[0].checkpoint) if options.output is None else Path(options.output).expanduser()
    all_weights = [weights_of(run, label) for run, label in zip(runs, labels_of(runs), strict=True)]
    notes = []
    try:
        start = by_group(initial_weights(options.runs[0], options.checkpoint))
        all_weights.insert(0, Weights(AT_START, start, all_weights[0].decayed))
    except (ValueError, OSError) as error:
        notes.append(f"The weights at the start cannot be had: {' '.join(str(error).split())}")
    draw_weights(output / "weights.png", all_weights)
    header = ("group", "run", "weights", "mean", "deviation", "min", "max")
    said = [format_table(header, figures_of(all_weights)), *(f"- {line}" for line in findings_of(all_weights))]
    pictures = ["weights.png"]
    try:
        batch = valid_batch(runs[0])
    except (ValueError, OSError) as error:
        notes.append(f"There are no activations to show: {' '.join(str(error).split())}")
    else:
        work = at_work(runs[0].task, batch)
        own = runs[0].task.hparams.dropout
        rate = options.rate or own or 0.2
        some = work.output.transpose(0, 1)[work.real_steps().T][:STEPS, :UNITS].float()
        said.append(f"- {draw_dropout(output / 'dropout.png', some, rate)[1]}")
        if options.rate is None and not own:
            notes.append(f"{all_weights[-len(runs)].label} was trained without dropout; {rate} is shown.")
        found = normalization(work)
        draw_normalization(output / "layer_norm.png", found)
        said += ["", f"Layer norm of {found.what}:", "", format_table(LAYER_NORM_HEADER, found.rows())]
        pictures += ["dropout.png", "layer_norm.png"]
    text = "\n".join((*said, *notes))
    print(text)
    (output / "weights.md").write_text(f"# {', '.join(options.runs)}\n\n{text}\n", encoding="utf-8")
    print(f"\nThe pictures are {', '.join(str(output / name) for name in pictures)}")
    return 0
