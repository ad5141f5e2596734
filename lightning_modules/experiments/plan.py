"""A plan: variants of a config x seeds, each an ordinary run in a folder of its own."""

import fcntl
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_modules.files import replaced
from lightning_modules.runs import config_file, read_summary

Variants = dict[str, list[str]]  # of each variant, by name, the arguments that its runs have and others have not
State = Literal["finished", "failed", "unfinished", "missing"]
ERROR = "lstm-fused: error: "  # begins the last line of a command that fails


@dataclass(frozen=True)
class Run:
    """One run of a plan.

    Args:
        folder: the plan's.
        variant: its name.
        seed: of the run.
        arguments: of ``lstm-fused fit``, but for the folder and the seed.
    """

    folder: Path
    variant: str
    seed: int
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.variant}/seed_{self.seed}"

    @property
    def log(self) -> Path:
        """What its processes have printed, one after another, each after a line with its command."""
        return self.folder / self.name / "log.txt"

    def end_of_log(self, size: int = 4096) -> str:
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def versions(self) -> list[Path]:
        """The folders that have been made for it, the newest first: a resumed run has several."""
        found = {
            int(match[1]): path
            for path in (self.folder / self.name).glob("version_*")
            if (match := re.fullmatch(r"version_(\d+)", path.name))
        }
        return [found[number] for number in sorted(found, reverse=True)]

    def result(self) -> Path | None:
        """The folder to read: the newest one that is finished, which knows all epochs back to the first."""
        return next((path for path in self.versions() if read_summary(path).get("finished")), None)

    @property
    def state(self) -> State:
        if self.result() is not None:
            return "finished"
        if self.failure is not None:
            return "failed"
        return "unfinished" if self.versions() else "missing"

    @property
    def failure(self) -> str | None:
        """The error that ended its last process; ``None`` where none did: it was stopped, or it is running."""
        lines = self.end_of_log().split("\n")
        if (last := next((line for line in reversed(lines) if line.strip()), "")).startswith(ERROR):
            return last.removeprefix(ERROR).strip()
        if last:
            return None
        versions = self.versions()  # without a log, another program has run it
        return read_summary(versions[0]).get("error") if versions else None

    def command(self) -> list[str]:
        """What runs it from where it is: ``lstm-fused`` and its arguments."""
        place = [f"--runs={self.folder}", f"--name={self.name}"]
        for version in self.versions():
            if (version / "checkpoints" / "last.ckpt").is_file():  # explicit: the folder may have moved
                return ["lstm-fused", "fit", "-c", str(version), "--ckpt_path", "last", *place]
        seed = f"--seed_everything={self.seed}"
        return ["lstm-fused", "fit", *self.arguments, *place, seed, "--trainer.enable_progress_bar=false"]


@dataclass(frozen=True)
class Plan:
    """Variants x seeds, in a folder that keeps what it was made of, as ``plan.json``.

    Args:
        folder: ``RUNS/EXPERIMENT/NAME``.
        experiment: the verb.
        arguments: of every run.
        configs: a digest of each config file named in them.
        variants: all that the experiment has for these arguments.
        chosen: those that are run; the first is what the others are compared with.
        seeds: 1 to this number.
    """

    folder: Path
    experiment: str
    arguments: tuple[str, ...]
    configs: dict[str, str]
    variants: Variants
    chosen: tuple[str, ...]
    seeds: int

    def runs(self) -> list[Run]:
        """Seed after seed, so that what there is early compares all variants."""
        return [
            Run(self.folder, variant, seed, (*self.arguments, *self.variants[variant]))
            for seed in range(1, self.seeds + 1)
            for variant in self.chosen
        ]

    def write(self) -> None:
        self._make_folder()
        kept = {name: value for name, value in vars(self).items() if name != "folder"}
        with replaced(self.folder / "plan.json") as path:
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """The plan of a folder. Raises FileNotFoundError where there is none, ValueError where it cannot be read."""
        path = folder / "plan.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            for name in ("arguments", "chosen"):
                kept[name] = tuple(kept[name])
            return cls(folder, **kept)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no experiment in '{folder}': no plan.json") from None
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"'{path}' must be the plan of an experiment, as it was written, and is not") from None

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"--runs and --name must make a folder to write to, got '{self.folder}': {error.strerror}"
            ) from error

    @classmethod
    def make(
        cls,
        folder: Path,
        experiment: str,
        arguments: Sequence[str],
        new_variants: Callable[[], Variants],
        default: Callable[[Variants], Sequence[str]],
        chosen: Sequence[str] | None,
        seeds: int,
    ) -> "Plan":
        """The plan of these options, which must be those that the folder was made with, if it is there.

        Args:
            new_variants: returns the variants; called if the folder does not have them yet.
            default: which of them are run where none are ``chosen``.

        Raises:
            ValueError: the folder was made with other options; there is no such variant.
        """
        arguments = tuple(arguments)
        configs = {given: digest(config_file(given)) for given in config_names(arguments)}
        if (folder / "plan.json").is_file():
            before = cls.read(folder)
            before.check_same(experiment, arguments, configs)
            variants = before.variants
        else:
            variants = new_variants()
        chosen = tuple(chosen or default(variants))
        for name in chosen:
            if name not in variants:
                raise ValueError(f"--variants must be among {', '.join(variants)}, got '{name}'")
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"--variants must be different ones, got {' '.join(chosen)}")
        return cls(folder, experiment, arguments, configs, variants, chosen, seeds)

    def check_same(self, experiment: str, arguments: tuple[str, ...], configs: Mapping[str, str]) -> None:
        """Raises ValueError where a plan of these would not be this one."""
        advice = f"give another --name, or remove '{self.folder}'"
        if experiment != self.experiment:
            raise ValueError(f"'{self.folder}' is of the experiment {self.experiment}, not {experiment}: {advice}")
        if arguments != self.arguments:
            now, then = set(arguments) - set(self.arguments), set(self.arguments) - set(arguments)
            differing = f"with {shlex.join(self.arguments)}, and now it is {shlex.join(arguments)}"
            if now or then:
                words = [shlex.join(word for word in given if word in these) or "nothing" for given, these in
                         ((self.arguments, then), (arguments, now))]  # fmt: skip
                differing = f"with {words[0]} where there is now {words[1]}"
            raise ValueError(f"the runs in '{self.folder}' were made {differing}: {advice}")
        for name, value in configs.items():
            if self.configs.get(name) != value:
                raise ValueError(f"the config '{name}' is not what it was when '{self.folder}' was made: {advice}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises ValueError where another process runs the plan at the same time."""
        self._make_folder()
        with open(self.folder / ".lock", "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which ends with the process, in any way
            except BlockingIOError:
                raise ValueError(
                    f"another process runs the experiment in '{self.folder}'; --list shares one among several"
                ) from None
            yield


def config_names(arguments: Sequence[str]) -> list[str]:
    """What is given with ``-c`` and ``--config``, in this order."""
    return [name for name, _ in _configs(arguments)]


def end_of_configs(arguments: Sequence[str]) -> int:
    """The position after the last config."""
    return max((end for _, end in _configs(arguments)), default=0)


def _configs(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each config, and the position after it."""
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in ("-c", "--config") and equals:
            yield value, position + 1
        elif name in ("-c", "--config") and position + 1 < len(arguments):
            yield arguments[position + 1], position + 2


def name_of_configs(arguments: Sequence[str]) -> str:
    """The ``name`` of the last config that has one."""
    names = [config["name"] for config in _read_configs(arguments) if config.get("name")]
    return str(names[-1]) if names else "run"


def logs_to_wandb(arguments: Sequence[str]) -> bool:
    """Whether the last logger that is given is the one of W&B, which takes a group then."""
    trainers = [config.get("trainer") for config in _read_configs(arguments)]
    loggers = [trainer["logger"] for trainer in trainers if isinstance(trainer, dict) and "logger" in trainer]
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == "--trainer.logger":
            loggers.append(value if equals else "".join(arguments[position + 1 : position + 2]))
    logger = loggers[-1] if loggers else None
    return str(logger.get("class_path") if isinstance(logger, dict) else logger).endswith("WandbLogger")


def _read_configs(arguments: Sequence[str]) -> list[dict[str, Any]]:
    configs = [yaml.safe_load(config_file(given).read_text(encoding="utf-8")) for given in config_names(arguments)]
    return [config for config in configs if isinstance(config, dict)]


def digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
