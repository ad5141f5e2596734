"""The experiments on the engine of plans: their variants, and what they make of figures."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_plan import make_plan
from small_runs import SHORT_SAMPLE, SMALL, Result, undrawn

from lightning_modules.cli import main
from lightning_modules.experiments.base import Config, count_parameters
from lightning_modules.experiments.command import new_experiment
from lightning_modules.experiments.compare import CELLS, Compare, size_for
from lightning_modules.experiments.memory import CELLS as CELLS_OF_MEMORY
from lightning_modules.experiments.memory import Memory, remembered
from lightning_modules.experiments.open_gates import OpenGates, which_matters
from lightning_modules.experiments.plan import Plan, Variants
from lightning_modules.experiments.report import Report
from lightning_modules.experiments.statistics import Difference

TINY = ("--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2")


@pytest.fixture
def experiment(command: Callable[..., Result], text_file: Path) -> Callable[..., str]:
    """Runs two variants of an experiment on one seed, each as it is listed; the page of the report."""

    def run(verb: str, *variants: str) -> str:
        given = [verb, "-c", "char_lm", "--data.path", text_file, *SMALL[:-1], *TINY, SHORT_SAMPLE]
        listed = command(*given, "--seeds", 1, "--variants", *variants, "--list")
        assert listed.code == 0, listed.err
        with undrawn() as drawn:
            for line in listed.out.splitlines():
                assert main(shlex.split(line)[1:]) == 0
            report = command(verb, "-c", "char_lm", "--report")
        assert drawn[-2:] == ["curves.png", "differences.png"]
        assert report.code == 0, report.err
        return Path(f"runs/{verb}/char_lm/report.md").read_text(encoding="utf-8")

    return run


def test_cells_are_compared_at_the_same_size_and_at_equal_parameters(experiment: Callable[..., str]) -> None:
    page = experiment("compare", "lstm", "gru_equal")
    plan = Plan.read(Path("runs/compare/char_lm"))
    shapes = ["deeper", "peepholes"]  # a language model has no bidirectional one
    equal = ["lstm_layer_norm", "gru", "rnn", "deeper"]  # peepholes are fewer than a unit
    assert list(plan.variants) == [*CELLS, *shapes, *(f"{name}_equal" for name in equal)]
    assert Compare().default(plan.variants) == [*CELLS, *(f"{name}_equal" for name in equal[:3])]
    lstm, gru = (r.figures["parameters"] for r in Report(Compare(), plan).results)
    assert lstm == pytest.approx(gru, rel=0.03)  # the nearest that a whole number of units comes to
    assert "A step takes" in page
    assert "gru_equal:\n\n~~~text\n" in page
    # Nothing is on that only one of them has; what all have is the config's.
    of_lstm = Config([*plan.arguments, *plan.variants["lstm"]])
    task = of_lstm.task
    assert (task.hparams.layer_norm, task.hparams.recurrent_dropout, task.hparams.dropout) == (False, 0, 0.2)
    # The counts of other sizes are those of the nets of that size.
    deeper = Config([*plan.arguments, *plan.variants["deeper_equal"]]).task
    assert (deeper.hparams.num_layers, deeper.hparams.hidden_size < 12) == (2, True)
    built = of_lstm.built_task
    assert count_parameters(built) == sum(p.numel() for p in built.net.parameters()) == lstm


@pytest.mark.parametrize("target", [1, 700, 2 * 10**6, 2 * 10**6 + 1999])
def test_a_size_for_so_many_parameters_is_found_with_few_nets(target: int) -> None:
    asked: list[int] = []

    def count(size: int) -> int:
        asked.append(size)
        return 8 * size * size + 600 * size + 65

    found = size_for(count, target, guess=200)
    assert len(set(asked)) < 8
    assert found == min(range(1, 1000), key=lambda size: abs(count(size) - target))


def test_a_gate_is_held_open(experiment: Callable[..., str]) -> None:
    page = experiment("open-gates", "whole", "f_open")
    assert "steps_to_loss" in page
    results = Report(OpenGates(), Plan.read(Path("runs/open-gates/char_lm"))).results
    assert ["open_gates" in result.summary["recurrent"] for result in results] == [False, True]


def test_the_steps_to_a_loss_that_all_reach(tmp_path: Path) -> None:
    """All made-up runs come to their least loss after 20 steps; the better one is at that of the other after 10."""
    figures = {"whole": {1: {"val_loss": 0.35}}, "f_open": {1: {"val_loss": 0.5}}}
    report = Report(OpenGates(), make_plan(tmp_path / "plan", figures))
    assert [report.row(v, "steps_to_loss").mean for v in figures] == [10, 20]


def difference(mean: float, half: float = 0.01) -> Difference:
    return Difference(mean, mean - half, mean + half, 3)


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        (
            {"f": 0.3, "i": 0.1, "o": 0.05},
            "by far, as Jozefowicz et al. (2015) and Greff et al. (2017) found (the former not in",
        ),
        ({"f": 0.1, "i": 0.05, "o": 0.3}, "The output gate matters most by val_loss, by far, while Jozefowicz"),
        ({"f": 0.1, "i": 0.095, "o": 0.0}, "though the intervals overlap, as Jozefowicz"),
        ({"f": 0.005, "i": -0.2, "o": 0.0}, "No gate's loss can be told from the whole cell by val_loss: f +0.0050"),
    ],
)
def test_which_gate_matters(costs: dict[str, float], words: str) -> None:
    assert words in which_matters({gate: difference(mean) for gate, mean in costs.items()}, -1, "val_loss")


def test_time_and_parameters_in_words(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan", {"lstm": {1: {}}, "gru": {1: {}}})
    path = next(tmp_path.glob("plan/gru/seed_1/version_0/summary.json"))
    path.write_text(path.read_text().replace('"ms_a_step": 3.25', '"ms_a_step": 6.5').replace('"a": 100', '"a": 2000'))
    time, parameters = Compare().findings(Report(Compare(), plan))[-2:]
    assert time.startswith("A step takes 3.2 ms with lstm, gru 6.5 ms (2.00 times)")
    assert parameters == "Parameters: lstm 110, gru 2,010."


def test_a_gate_of_which_nothing_is_known_is_not_said_to_cost_nothing() -> None:
    """The forget gate's interval has 0 in it, the input gate's has not: no gate is named, and not that none matters."""
    costs = {"f": difference(0.3, half=0.5), "i": difference(0.1), "o": difference(0.0)}
    said = which_matters(costs, -1, "val_loss")
    assert said.startswith("Which gate matters most by val_loss cannot be told: the forget gate costs most in the mean")


# As a user begins: minutes of each, on the config that its help names.
QUICK = {
    ("ablate", "sentiment"): ["curves.png", "differences.png"],
    ("compare", "char_lm"): ["curves.png", "differences.png"],
    ("open-gates", "char_lm"): ["curves.png", "differences.png"],
    ("memory", "remember"): ["accuracy_over_distance.png"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "config"), QUICK)
def test_quick_is_a_whole_experiment(verb: str, config: str, command: Callable[..., Result], tmp_path: Path) -> None:
    result = command(verb, "-c", config, "--quick", "--jobs", 2)
    folder = tmp_path / f"runs/{verb}/{config}-quick"
    assert result.code == 0, result.err + "".join(path.read_text() for path in folder.glob("*/**/log.txt"))
    plan, page = Plan.read(folder), (folder / "report.md").read_text(encoding="utf-8")
    report = Report(new_experiment(verb), plan)
    assert report.missing == []
    assert list(report.variants) == [name for name in plan.chosen if name not in {r.variant for r in report.needless}]
    assert plan.seeds == 2
    for picture in QUICK[verb, config]:
        assert f"({picture})" in page
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    findings = report.experiment.findings(report)
    assert findings
    assert all(finding in page and finding in result.out for finding in findings)
    told = {name.partition("/")[0] for name in report.variants}  # of memory, the cell
    assert all(name in "".join(findings) for name in told)


# Memory ---------------------------------------------------------------------------------------------------------------


def accuracy(value: float, validated: float | None = None) -> dict[int, dict[str, float]]:
    return {1: {"val_accuracy": value if validated is None else validated, "test_accuracy": value}}


@pytest.mark.parametrize(
    ("rnn_at_20", "words"),
    [
        (
            0.5,
            ["rnn falls below 90 % at 20 steps (50.0%); the longest distance before it is 10.", "20 times the plain"],
        ),
        (
            0.95,
            ["rnn falls below 90 % at 200 steps (13.0%); the longest distance before it is 20.", "10 times the plain"],
        ),
    ],
)
def test_the_distance_at_which_a_cell_forgets(tmp_path: Path, rnn_at_20: float, words: list[str]) -> None:
    """The learning rate is that of the validation split, whatever the test split says of another."""
    figures = {
        "lstm/distance_20/lr_0.01": accuracy(0.99),
        "lstm/distance_200/lr_0.01": accuracy(0.97, validated=0.96),
        "lstm/distance_200/lr_0.001": accuracy(1.0, validated=0.5),
        "rnn/distance_10/lr_0.01": accuracy(1.0),
        "rnn/distance_20/lr_0.01": accuracy(rnn_at_20),
        "rnn/distance_200/lr_0.01": accuracy(0.13),
    }
    figures |= {f"{cell}/distance_20/lr_0.01": accuracy(0.4) for cell in CELLS_OF_MEMORY if cell not in ("lstm", "rnn")}
    report = Report(Memory(), make_plan(tmp_path / "plan", figures))
    told = report.write()
    assert "lstm is right in 97.0% after 200 steps, the most that was tried." in told
    assert all(word in told for word in words)
    assert "97.0% (lr 0.01)" in told
    assert (tmp_path / "plan/accuracy_over_distance.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_a_plan_of_cells_distances_and_learning_rates(command: Callable[..., Result]) -> None:
    small = ["--data.train_size=64", "--data.valid_size=32", "--data.test_size=32", "--model.hidden_size=4", *TINY]
    given = ["memory", "-c", "remember", "--quick", "--seeds", 1, *small]
    lines = command(*given, "--list").out.splitlines()
    assert len(lines) == 4
    with undrawn():
        for line in lines[:2]:
            assert main(shlex.split(line)[1:]) == 0
    told = command("memory", "-c", "remember", "--quick", "--report")
    assert told.code == 0, told.err
    for cell in ("lstm", "rnn"):
        assert f"1 not needed, because {cell} is right in" in told.out or f"{cell}/distance_50/lr_0.01" in told.out
    assert "rnn falls below 90 % at 5 steps" in told.out
    assert not [line for line in command(*given, "--list").out.splitlines() if "rnn/" in line]  # as memory would run it
    assert "needs data over a distance" in command("memory", "-c", "adding", "--list").error
    plan = Plan.read(Path("runs/memory/remember-quick"))
    assert len(plan.variants) == 6 * 8 * 2


def test_memory_tries_no_distance_beyond_the_one_that_a_cell_fails_at(tmp_path: Path) -> None:
    """Whatever the learning rate, and not before all runs of that distance have ended."""
    below = {1: accuracy(0.95)[1], 2: accuracy(0.7)[1]}
    figures = {
        "lstm/distance_20/lr_0.01": accuracy(0.99) | {2: accuracy(0.99)[1]},
        "rnn/distance_20/lr_0.003": accuracy(0.3) | {2: accuracy(0.4)[1]},
        "rnn/distance_20/lr_0.01": below,
        "gru/distance_20/lr_0.003": below,
        "gru/distance_20/lr_0.01": {1: accuracy(0.3)[1]},
    }
    made = make_plan(tmp_path / "plan", figures, seeds=2)
    longer: Variants = {f"{cell}/distance_50/lr_0.01": [] for cell in ("lstm", "rnn", "gru")}
    plan = Plan(**vars(made) | {"variants": made.variants | longer, "chosen": (*longer, *made.chosen)})
    looks = remembered.cache_info().misses
    report = Report(Memory(), plan)
    assert remembered.cache_info().misses == looks + 1  # not one for each run that is missing
    reason = "rnn is right in 82.5% after 20 steps"
    assert {run.name: why for run, why in report.needless.items()} == {
        f"rnn/distance_50/lr_0.01/seed_{seed}": reason for seed in (1, 2)
    }
    page = report.markdown()
    assert f"2 not needed, because {reason}" in page
    assert "5 not begun: lstm" in page
    runs = sorted(plan.runs(), key=Memory().turn)
    assert [run.name for run in runs[:2]] == ["lstm/distance_20/lr_0.01/seed_1", "rnn/distance_20/lr_0.003/seed_1"]
    assert [run.seed for run in runs[5:7]] == [2, 2]
    assert runs[10].variant == "lstm/distance_50/lr_0.01"
