"""Plans of runs: what is run, in which folder, what is not run again, and how all of it ends."""

import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from made_up_plan import make_plan, write_run
from small_runs import Result, make_reviews, undrawn
from testing import PATIENCE

from lightning_modules.callbacks import RunSummary
from lightning_modules.cli import main
from lightning_modules.experiments import VERBS, running
from lightning_modules.experiments.ablate import REGULARIZERS, Ablate
from lightning_modules.experiments.base import Config
from lightning_modules.experiments.command import new_experiment, new_parser, parse
from lightning_modules.experiments.plan import Plan, Run, Variants, digest, logs_to_wandb, name_of_configs
from lightning_modules.experiments.running import Runner
from lightning_modules.injection import is_off
from lightning_modules.runs import config_file

TINY = (
    "--data.path=reviews.tsv",
    "--model.hidden_size=8",
    "--model.embedding_size=8",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.max_epochs=2",
)
TWO = ("ablate", "-c", "sentiment", "--variants", "baseline", "regularized", "--seeds", "1")


# An experiment --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_pictures() -> Iterator[None]:
    with undrawn():
        yield


class InThisProcess:
    """Stands for a process of lstm-fused, without new imports: it has ended when it is created."""

    def __init__(self, command: list[str], stdout: TextIO, **options: Any) -> None:
        program, arguments = command[: len(running.PROGRAM)], command[len(running.PROGRAM) :]
        assert tuple(program) == running.PROGRAM
        with redirect_stdout(stdout), redirect_stderr(stdout):
            self.returncode = main(arguments)

    def poll(self) -> int:
        return self.returncode


def test_a_run_is_a_process_of_this_command() -> None:
    result = subprocess.run([*running.PROGRAM, "ablate", "--seeds"], capture_output=True, text=True, check=False)
    assert result.stderr == "lstm-fused: error: argument --seeds: expected at least one argument\n"


@pytest.mark.usefixtures("no_pictures")
def test_runs_are_listed_run_anywhere_skipped_and_reported_on(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reviews.tsv").write_text(make_reviews(), encoding="utf-8")
    listed = command(*TWO, *TINY, "--list")
    assert listed.code == 0, listed.err
    first, second = listed.out.splitlines()
    assert "--name=baseline/seed_1" in first
    assert "--seed_everything=1" in first
    assert "--model.layer_norm=false" in first
    assert "--model.layer_norm" not in second
    folder = tmp_path / "runs/ablate/sentiment"

    # One of them as any scheduler would run it; before there are both, the report says which is missing.
    assert main(shlex.split(second)[1:]) == 0
    report = command("ablate", "-c", "sentiment", "--report")
    assert report.code == 0, report.err
    assert "1 not begun: baseline/seed_1" in report.out

    # The other one by the experiment itself.
    popen = SimpleNamespace(Popen=InThisProcess, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(running, "subprocess", popen)
    result = command(*TWO, *TINY)
    assert result.code == 0, result.err + (folder / "baseline/seed_1/log.txt").read_text()
    assert "1 of 2 runs are finished already" in result.out
    assert "[2/2] baseline/seed_1: val_accuracy 0." in result.out
    with open(folder / "runs.csv", newline="", encoding="utf-8") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    for variant, row in rows.items():
        summary = json.loads((folder / variant / "seed_1/version_0/summary.json").read_text())
        assert float(row["val_accuracy"]) == summary["best"]["val_accuracy"]
        best = summary["best"]
        assert float(row["gap"]) == pytest.approx(best["val_loss"] - best["val_loss_on_train"])
    assert rows.keys() == {"baseline", "regularized"}
    assert {"report.md", "table.csv", "curves.png", "differences.png"} <= {path.name for path in folder.iterdir()}

    # All is done: nothing is run again, and another experiment is not mixed with this one.
    assert command(*TWO, *TINY, "--list").out == ""  # no empty line either, which would be one more job
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed_1/version_*/*")}
    assert "2 of 2 runs are finished already" in command(*TWO, *TINY).out
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/seed_1/version_*/*")}
    error = command(*TWO, *TINY, "--trainer.max_epochs=3").error
    assert error.startswith("the runs in 'runs/ablate/sentiment' were made with nothing where there is now --trainer.m")
    assert "give another --name" in error


@pytest.mark.parametrize("verb", VERBS)
def test_a_plan_that_is_there_is_listed_at_once(verb: str, tmp_path: Path) -> None:
    """What takes seconds is not imported: a scheduler may list each of a hundred runs."""
    experiment = new_experiment(verb)
    variants: Variants = {"lstm/distance_5/lr_0.01": [], "lstm/distance_10/lr_0.01": []}
    given = ("-c", "sentiment", *experiment.common)
    path = config_file("sentiment")
    Plan(tmp_path / f"runs/{verb}/x", verb, given, {"sentiment": digest(path)}, variants, tuple(variants), 1).write()
    hide = "import sys; sys.modules['torch'] = sys.modules['lightning'] = sys.modules['matplotlib'] = None; "
    asked = [verb, "-c", "sentiment", "--name=x", "--seeds=2", f"--variants={next(iter(variants))}", "--list"]
    result = subprocess.run(
        [sys.executable, "-c", f"{hide}from lightning_modules.cli import main; sys.exit(main({asked!r}))"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, cwd=tmp_path,
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert [line.partition("seed_everything=")[2][:2] for line in result.stdout.splitlines()] == ["1 ", "2 "], (
        result.stderr
    )


def test_the_variants_are_the_configs_regularizers(command: Callable[..., Result]) -> None:
    """The baseline has none of them, each alone has its own, and an option of the command line is one more."""
    given = ["-c", "word_lm", "--model.zoneout=0.1", "--model.recurrent.weight_dropout=0.3", "--model.l2=1e-5"]
    variants = Ablate().variants(Config(given))
    alone = [
        "dropout",
        "recurrent_dropout",
        "zoneout",
        "weight_dropout",
        "layer_norm",
        "weight_decay",
        "l2",
        "clipping",
    ]
    assert Ablate().default(variants) == ["baseline", *alone, "regularized"]
    assert [name for name in variants if name.startswith("without_")] == [f"without_{name}" for name in alone]
    assert variants["regularized"] == []
    assert variants["clip_0.1"] == ["--trainer.gradient_clip_val=0.1"]

    def on(variant: str) -> set[str]:
        config = Config([*given, *variants[variant]])
        hparams = config.task.hparams
        values = {**hparams, **hparams.recurrent["init_args"]}
        found = {name for name, options in REGULARIZERS.items() for o in options if not is_off(values.get(o))}
        return found | ({"clipping"} if config.parsed.trainer.gradient_clip_val else set())

    assert on("baseline") == set()
    assert on("zoneout") == {"zoneout"}
    assert on("without_weight_dropout") == set(alone) - {"weight_dropout"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ablate"], "'ablate' needs a config: -c sentiment"),
        (["ablate", "-c", "sentiment", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["ablate", "-c", "sentiment", "--seeds", "0"], "the seeds are 1 to N, got 0"),
        (["ablate", "-c", "sentiment", "--seeds", "1,2"], "--seeds must be a number from 1, how many: the seeds are 1"),
        (["ablate", "-c", "sentiment", "--seeds", "1", "2", "3"], "the seeds are 1 to N, got 1 2 3"),
        (["ablate", "-c", "sentiment", "--seed", "3"], "--seed is not an option of 'ablate': the seeds are 1 to N"),
        (["memory", "-c", "char_lm"], "'memory' needs data over a distance, as '-c remember' has it, got TextData"),
        (["ablate", "-c", "sentiment", "--seed_everything=3"], "the seeds are 1 to N: --seeds N"),
        (["ablate", "-c", "sentiment", "--ckpt_path", "last"], "goes on by itself"),
        (["ablate", "-c", "sentiment", "--report"], "there is no experiment in 'runs/ablate/sentiment'"),
        (["ablate", "-c", "made_up"], "there is no config 'made_up'"),
        (["ablate", "--report", "--only", "baseline/seed_1"], "--only is of what is run, and --report runs nothing"),
    ],
)
def test_what_is_wrong_is_one_sentence(command: Callable[..., Result], arguments: list[str], message: str) -> None:
    assert message in command(*arguments).error


def test_what_is_wrong_with_the_fits_is_told_before_any_is_run(command: Callable[..., Result], tmp_path: Path) -> None:
    assert "did you mean 'dropout'" in command(*TWO, "--model.dropuot=0.1").error
    assert not (tmp_path / "runs").exists()


def test_an_option_with_a_space_is_no_value_of_the_option_before_it() -> None:
    given = ["--variants", "a", "b", "--data.path=my file.csv", "--name=my name", "-c", "x", "--model.l2", "1e-5"]
    options, others = parse(new_parser(Ablate()), given)
    assert (options.variants, options.name) == (["a", "b"], "my name")
    assert others == ["--data.path=my file.csv", "-c", "x", "--model.l2", "1e-5"]


def test_names_and_loggers_are_those_of_the_last_config_that_has_one(tmp_path: Path) -> None:
    logger = {"class_path": "lightning_modules.loggers.WandbLogger"}
    for name, config in {"a": {"name": "x", "trainer": {"logger": logger}}, "b": {"trainer": {"logger": True}}}.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
    a, b = (str(tmp_path / f"{name}.yaml") for name in "ab")
    assert name_of_configs(["-c", "sentiment", f"--config={a}", "-c", b]) == "x"
    assert name_of_configs(["-c", b]) == "run"
    assert logs_to_wandb(["-c", "sentiment", "-c", a])
    assert logs_to_wandb(["-c", "wandb", "-c", "sentiment"])
    assert logs_to_wandb(["-c", b, "--trainer.logger", "lightning_modules.loggers.WandbLogger"])
    assert not logs_to_wandb(["-c", a, "-c", b])
    assert not logs_to_wandb(["-c", a, "--trainer.logger=false"])


# The plan -------------------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan", {"baseline": {1: None}})
    [run] = plan.runs()
    assert run.state == "unfinished"
    assert run.command()[:4] == ["lstm-fused", "fit", "-c", "sentiment"]  # it had not come to a checkpoint
    folder = tmp_path / "plan/baseline/seed_1"
    for number in (2, 10, 11):
        write_run(folder / f"version_{number}", None)
    for number in (2, 10):
        (folder / f"version_{number}/checkpoints").mkdir()
        (folder / f"version_{number}/checkpoints/last.ckpt").touch()
    goes_on = ["lstm-fused", "fit", "-c", str(folder / "version_10"), "--ckpt_path", "last"]
    # Its folder is passed explicitly, because the plan's folder may have been moved since.
    assert run.command() == [*goes_on, f"--runs={tmp_path / 'plan'}", "--name=baseline/seed_1"]


def test_a_plan_is_the_one_that_its_folder_was_made_with(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("name: mine\n")

    def make(*arguments: str, chosen: list[str] | None = None, seeds: int = 1) -> Plan:
        variants = {"a": [], "b": ["--x=1"], "c": ["--x=2"]}
        given = ["-c", str(config), *arguments]
        two = lambda names: list(names)[:2]  # noqa: E731
        plan = Plan.make(tmp_path / "p", "ablate", given, lambda: variants, two, chosen, seeds)
        plan.write()
        return plan

    assert [run.name for run in make("--y=1").runs()] == ["a/seed_1", "b/seed_1"]
    # More seeds and other variants of it are the same plan.
    names = ["c/seed_1", "a/seed_1", "c/seed_2", "a/seed_2"]
    assert [run.name for run in make("--y=1", chosen=["c", "a"], seeds=2).runs()] == names
    assert Plan.read(tmp_path / "p") == make("--y=1", chosen=["c", "a"], seeds=2)
    with pytest.raises(ValueError, match=r"made with --y=1 where there is now --y=2: give another --name"):
        make("--y=2")
    with pytest.raises(ValueError, match=r"--variants must be among a, b, c, got 'd'"):
        make("--y=1", chosen=["d"])
    config.write_text("name: mine\nseed_everything: 3\n")
    with pytest.raises(ValueError, match=r"the config '.*my.yaml' is not what it was"):
        make("--y=1")


@pytest.mark.parametrize(
    "text", ["", '{"experiment": "abl', "[]", '{"arguments": []}', '{"arguments": 1, "chosen": 2}']
)
def test_a_plan_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"plan.json' must be the plan of an experiment, as it was written"):
        Plan.read(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--runs and --name must make a folder to write to, got '.*file/x': Not a dir"):
        new_plan(tmp_path / "file/x", ["a"], 1)


def test_the_summary_of_a_fit_that_fails_has_the_error(
    make_data: Callable[..., Any], make_task: Callable[..., Any], make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """By which a scheduler detects a failed run."""

    class Fails(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("no space\nleft")

    data = make_data()
    data.setup("fit")
    logger = CSVLogger(tmp_path / "plan", "a/seed_1")
    trainer = make_trainer(callbacks=[RunSummary(), Fails()], logger=logger, enable_checkpointing=False)
    with pytest.raises(RuntimeError):
        trainer.fit(make_task(vocab_size=len(data.vocabulary)), datamodule=data)
    [run] = new_plan(tmp_path / "plan", ["a"], 1).runs()
    assert (run.state, run.failure) == ("failed", "no space left")


def test_one_process_runs_a_plan(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "plan", {"baseline": {1: None}})
    with plan.alone(), pytest.raises(ValueError, match="another process runs the experiment"), plan.alone():
        pass
    with plan.alone():
        pass


# The processes --------------------------------------------------------------------------------------------------------

# Stands for lstm-fused: a run that ends as its variant says, and as a fit does at SIGTERM.
FIT = """
import json, os, pathlib, signal, sys, time
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
folder = pathlib.Path(words["--runs"]) / words["--name"] / "version_0"
variant = words["--name"].split("/")[0]
def end(finished, code):
    summary = {"finished": finished, "stop_reason": "", "seconds": 1, "best": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    sys.exit(code)
signal.signal(signal.SIGTERM, lambda *_: end(False, 143))
folder.mkdir(parents=True)
with open("alive.txt", "a") as file:
    file.write(f"+{os.getpid()}\\n")
if variant == "fails":
    sys.exit("lstm-fused: error: it is not to be")
time.sleep(60 if variant.startswith("long") else 0.3)
with open("alive.txt", "a") as file:
    file.write(f"-{os.getpid()}\\n")
end(True, 0)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    Path("fit.py").write_text(FIT)
    program = (sys.executable, "fit.py")
    monkeypatch.setattr(running, "PROGRAM", program)
    return program


def new_plan(folder: Path, variants: list[str], seeds: int) -> Plan:
    plan = Plan(folder, "ablate", (), {}, {name: [] for name in variants}, tuple(variants), seeds)
    plan.write()
    return plan


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def begun() -> list[int]:
    text = Path("alive.txt").read_text() if Path("alive.txt").exists() else ""
    return [int(line[1:]) for line in text.split() if line.startswith("+")]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_so_many_runs_at_a_time_as_there_are_jobs(program: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    plan = new_plan(Path("plan"), ["a", "b"], 3)
    Runner(plan.runs(), jobs=3).run()
    at_a_time, most = 0, 0
    for line in Path("alive.txt").read_text().split():
        at_a_time += 1 if line[0] == "+" else -1
        most = max(most, at_a_time)
    assert most <= 3
    assert all(run.state == "finished" for run in plan.runs())
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("begins") for line in lines[:4]] == [True, True, True, False]
    assert len(lines) == 12  # each run's beginning and end, and nothing that only a terminal shows well
    assert lines[-1].startswith("[6/6] ")


def test_a_run_that_fails_is_told_and_the_others_go_on(program: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    plan = new_plan(Path("plan"), ["a", "fails", "b"], 1)
    runner = Runner(plan.runs())
    runner.run()
    assert runner.failed == {"fails/seed_1": "it is not to be"}
    assert [run.state for run in plan.runs()] == ["finished", "failed", "finished"]
    assert plan.runs()[1].failure == "it is not to be"
    assert plan.runs()[1].log.read_text().startswith("$ lstm-fused fit --runs=plan --name=fails/seed_1 ")
    assert "fails/seed_1 failed: it is not to be" in capsys.readouterr().out
    # What fails from the first run on would fail a hundred times.
    other = new_plan(Path("other"), ["fails", "a"], 2).runs()
    runner = Runner(other)
    runner.run()
    assert list(runner.failed) == ["fails/seed_1"]
    assert len(begun()) == 4
    # But one that has succeeded in an earlier process is a success too.
    Runner(other[1:2]).run()
    shutil.rmtree("other/fails")
    runner = Runner(other)
    runner.run()
    assert list(runner.failed) == ["fails/seed_1", "fails/seed_2"]
    assert other[3].state == "finished"


def test_what_a_signal_has_ended_is_said_to_be(program: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what it printed last, which is that all is well."""
    kills_itself = "import os, signal; print('epoch 3: fine', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(running, "PROGRAM", (sys.executable, "-c", kills_itself))
    [run] = new_plan(Path("plan"), ["a"], 1).runs()
    runner = Runner([run])
    runner.run()
    assert runner.failed == {"a/seed_1": "a signal ended it: Killed"}
    assert (run.state, run.failure) == ("failed", "a signal ended it: Killed")  # for a report of later


def test_jobs_share_the_cpus_that_they_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler gives a process a few of a machine's CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    assert running.usable_cpus() == 3


def test_a_process_that_is_being_made_when_all_are_stopped_is_told_too(
    program: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(subprocess.Popen):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            os.kill(os.getpid(), signal.SIGINT)  # before the runner knows this process

    monkeypatch.setattr(running.subprocess, "Popen", Slow)
    [run] = new_plan(Path("plan"), ["long"], 1).runs()
    runner = Runner([run])
    runner.run()
    assert runner.stopped_by == signal.SIGINT
    assert run.state != "finished"


def test_a_run_that_others_have_made_needless_is_not_run(
    program: tuple[str, str], capsys: pytest.CaptureFixture
) -> None:
    plan = new_plan(Path("plan"), ["a", "b", "c"], 1)
    states: dict[str, str] = {run.variant: run.state for run in plan.runs()}

    def needless(run: Run) -> str | None:
        states.update((other.variant, other.state) for other in plan.runs())
        return "a has told" if run.variant == "b" and states["a"] == "finished" else None

    Runner(plan.runs(), needless=needless).run()
    assert [run.state for run in plan.runs()] == ["finished", "missing", "finished"]
    lines = capsys.readouterr().out.splitlines()
    assert "[2/3] b/seed_1 is not needed: a has told" in lines
    assert lines[-1].startswith("[3/3] c/seed_1")


def test_a_run_that_another_process_has_finished_meanwhile_is_not_run(program: tuple[str, str]) -> None:
    plan = new_plan(Path("plan"), ["a", "b"], 1)

    def needless(run: Run) -> None:  # asked when it is a's turn
        write_run(plan.folder / "b/seed_1/version_0", {})

    Runner(plan.runs(), needless=needless).run()
    assert len(begun()) == 1
    assert [run.state for run in plan.runs()] == ["finished", "finished"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_is_stopped_its_processes_end(program: tuple[str, str], signum: int) -> None:
    if signum == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("a process that is killed takes its children with it on Linux alone")
    new_plan(Path("plan"), ["long", "long_too", "a"], 1)
    code = (
        "from pathlib import Path; from lightning_modules.experiments import running; "
        "from lightning_modules.experiments.plan import Plan; "
        f"running.PROGRAM = {program!r}; runner = running.Runner(Plan.read(Path('plan')).runs(), 2); runner.run(); "
        "print('stopped by', int(runner.stopped_by))"
    )
    path = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(begun()) == 2)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=PATIENCE)
    wait_for(lambda: not any(map(is_alive, begun())))
    assert len(begun()) == 2  # none was begun after it
    assert ("stopped by" in out) == (signum != signal.SIGKILL)
    assert [run.state for run in Plan.read(Path("plan")).runs()] == ["unfinished", "unfinished", "missing"]
    for name in ("long", "long_too"):
        summary = Path(f"plan/{name}/seed_1/version_0/summary.json")
        wait_for(lambda summary=summary: json.loads(summary.read_text())["finished"] is False)


@pytest.mark.slow
def test_a_plan_that_is_killed_again_and_again_ends_with_the_same_table(tmp_path: Path) -> None:
    """SIGKILL to it and to its runs, at random moments of these; the tables are the undisturbed ones, bit for bit."""
    (tmp_path / "reviews.tsv").write_text(make_reviews(), encoding="utf-8")
    options = [*TWO[:-1], "3", *TINY, "--jobs", "2", "--trainer.max_epochs=12", "--last_checkpoint.every_minutes=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start(folder: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "lightning_modules", *options, "--runs", str(tmp_path / folder)]
        with open(tmp_path / f"{folder}.log", "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)

    moments = random.Random(1)
    for _ in range(3):
        begin, process = time.time(), start("killed")
        files = "ablate/sentiment/*/seed_*/version_*/checkpoints/last.ckpt"
        while not any(path.stat().st_mtime > begin for path in (tmp_path / "killed").glob(files)):
            assert time.time() < begin + PATIENCE
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 2))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for pid in children.read_text().split() if children.exists() else ():
            os.kill(int(pid), signal.SIGKILL)
        process.kill()
        process.wait()
    for folder in ("killed", "undisturbed"):
        assert start(folder).wait(10 * PATIENCE) == 0, (tmp_path / f"{folder}.log").read_text()
    for name in ("table.csv", "runs.csv"):
        undisturbed, killed = (tmp_path / folder / "ablate/sentiment" / name for folder in ("undisturbed", "killed"))
        assert undisturbed.read_bytes() == killed.read_bytes()
    assert len(list((tmp_path / "killed").glob("ablate/sentiment/*/seed_*/version_*"))) > 6  # runs were resumed
