"""``lstm-fused ablate`` and similar commands: make a plan, run it and report on it."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lightning_modules.arguments import CommandParser
from lightning_modules.cli import INTERRUPTED, TERMINATED
from lightning_modules.experiments import VERBS
from lightning_modules.experiments.base import Config, Experiment
from lightning_modules.experiments.plan import (
    Plan,
    Run,
    Variants,
    config_names,
    end_of_configs,
    logs_to_wandb,
    name_of_configs,
)
from lightning_modules.experiments.running import Runner

# Options of a fit that an experiment sets for each of its runs.
OURS = {
    "--seed_everything": "the seeds are 1 to N: --seeds N",
    "--seed": "the seeds are 1 to N: --seeds N",
    "--ckpt_path": "a run that was stopped goes on by itself",
}


def new_experiment(verb: str) -> Experiment:
    module, name = VERBS[verb]
    experiment: Experiment = getattr(import_module(module), name)()
    return experiment


def new_parser(experiment: Experiment) -> CommandParser:
    parser = CommandParser(
        experiment.verb,
        experiment.help,
        usage=f"lstm-fused {experiment.verb} -c CONFIG [options] [options of every fit, such as --data.path FILE]",
        epilog="Runs that are finished are not run again, those that were stopped go on. All other options go to every "
        f"'lstm-fused fit'. Results lie in RUNS/{experiment.verb}/NAME: report.md, *.csv, *.png.",
    )
    parser.add_argument("--name", help="of the folder; that of the config if not given")
    parser.add_argument("--runs", default="runs", help="the folder that holds all runs")
    parser.add_argument(
        "--seeds", nargs="+", metavar="N", help=f"how many: they are 1 to N, never chosen ({experiment.seeds})"
    )
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="these alone; the first is the baseline")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="minutes: few steps and 2 seeds")
    parser.add_argument("--list", action="store_true", help="print a shell command for every run that is to be run")
    parser.add_argument("--only", nargs="+", metavar="VARIANT/seed_N", help="run these alone, without a report")
    parser.add_argument("--report", action="store_true", help="run nothing, report on what is there")
    return parser


def run(verb: str, arguments: list[str]) -> int:
    experiment = new_experiment(verb)
    parser = new_parser(experiment)
    options, of_fit = parse(parser, arguments)
    if options.report and options.only is not None:
        raise ValueError("--only is of what is run, and --report runs nothing: --variants are what is reported on")
    plan = _plan(experiment, options, of_fit)
    runs = _runs(experiment, plan, options.only)
    from lightning_modules.experiments.report import Report

    if options.list:
        plan.write()
        needless = Report(experiment, plan).needless
        for run in runs:
            if run.state != "finished" and run not in needless:
                print(shlex.join(run.command()))
        return 0
    code = 0
    if not options.report:
        code = _run(experiment, plan, runs, options)
    if options.only is None:
        report = Report(experiment, plan)
        if report.results or options.report:
            print(report.write())
    return code


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The experiment's own options, and the others in their order.

    (argparse takes an unknown ``--data.path=my file.csv`` for a value, because of the space: of ``--variants``, say.)
    """
    ours = {f"--{name}" for name in vars(parser.parse_args([]))}
    hidden = [
        word.replace(" ", "\0") if word.startswith("--") and word.partition("=")[0] not in ours else word
        for word in arguments
    ]
    options, others = parser.parse_known_args(hidden)
    return options, [word.replace("\0", " ") for word in others]


def number_of_seeds(words: Sequence[str] | None) -> int | None:
    if words is None:
        return None
    if len(words) > 1 or not words[0].isdecimal() or int(words[0]) < 1:
        raise ValueError(f"--seeds must be a number from 1, how many: the seeds are 1 to N, got {' '.join(words)}")
    return int(words[0])


def _plan(experiment: Experiment, options: argparse.Namespace, of_fit: list[str]) -> Plan:
    seeds = number_of_seeds(options.seeds)
    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    given = [word.partition("=")[0] for word in of_fit]
    for name, instead in OURS.items():
        if name in given:
            raise ValueError(f"{name} is not an option of '{experiment.verb}': {instead}")
    name = options.name or name_of_configs(of_fit) + ("-quick" if options.quick else "")
    folder = Path(options.runs) / experiment.verb / name
    if options.report:
        plan = Plan.read(folder)
        chosen = tuple(options.variants or plan.chosen)
        if unknown := [name for name in chosen if name not in plan.variants]:
            raise ValueError(f"--variants must be among {', '.join(plan.variants)}, got '{unknown[0]}'")
        return Plan(**vars(plan) | {"chosen": chosen, "seeds": seeds or plan.seeds})
    if not config_names(of_fit):
        raise ValueError(f"'{experiment.verb}' needs a config: -c sentiment, or a YAML file of your own")
    ours = [*experiment.common, *(experiment.quick if options.quick else ())]
    end = end_of_configs(of_fit)  # a config would win over what stands before it
    of_all = [*of_fit[:end], *ours, *of_fit[end:]]
    if logs_to_wandb(of_fit) and "--trainer.logger.group" not in given:
        of_all.append(f"--trainer.logger.group={experiment.verb}/{name}")

    def new_variants() -> Variants:
        experiment.check(of_fit)
        return experiment.variants(Config(of_all))

    return Plan.make(
        folder,
        experiment.verb,
        of_all,
        new_variants,
        lambda variants: experiment.default(variants, options.quick),
        options.variants,
        seeds or (2 if options.quick else experiment.seeds),
    )


def _runs(experiment: Experiment, plan: Plan, only: Sequence[str] | None) -> list[Run]:
    """In the order in which they are to be run; of ``only`` these names, if there are any."""
    runs = sorted(plan.runs(), key=experiment.turn)
    if only is None:
        return runs
    by_name = {run.name: run for run in runs}
    if unknown := [name for name in only if name not in by_name]:
        raise ValueError(f"--only must name runs such as {runs[0].name}, got '{unknown[0]}'")
    return [by_name[name] for name in dict.fromkeys(only)]


def _run(experiment: Experiment, plan: Plan, runs: Sequence[Run], options: argparse.Namespace) -> int:
    """Runs what is not finished of ``runs``; the exit code."""
    from lightning_modules.experiments.report import Report

    if options.only is not None:
        plan.write()
        runner = Runner(runs, options.jobs)
        runner.run()
    else:
        with plan.alone():
            plan.write()
            runner = Runner(runs, options.jobs, lambda run: experiment.needless(run, Report(experiment, plan)))
            runner.run()
    if runner.stopped_by is not None:
        print(f"{sum(run.state == 'finished' for run in runs)} of {len(runs)} runs are finished; "
              "the same command goes on.")  # fmt: skip
        return INTERRUPTED if runner.stopped_by == 2 else TERMINATED
    for name, line in runner.failed.items():
        print(f"lstm-fused: error: {name} failed: {line} ({plan.folder / name / 'log.txt'})", file=sys.stderr)
    return 1 if runner.failed else 0
