"""Classes that a task is given by name: its recurrent layer, its optimizer, its learning rate schedule.

A *spec* says which class, and with which arguments: ``{"class_path": "lstm_fused.FusedLSTM", "init_args": {"zoneout":
0.1}}``. It is plain data, so it goes into configs and checkpoints as it is; the class is imported, and the arguments
are checked against its signature, when an object is built. A word may stand for a spec: an alias, a class name of the
module where such classes usually are, or a class path.

On the command line and in YAML every argument of the class is reachable, with no list of them anywhere::

    --model.recurrent lstm_fused.FusedLSTM --model.recurrent.layer_norm carry --model.optimizer SGD

Some of these arguments have a *short form*, an argument of the task itself (``--model.hidden_size``). The two are one
setting: :func:`merge_specs` brings the long form into the short one, a later source wins over an earlier one, and one
source that gives both with different values is in error.
"""

import difflib
import functools
import importlib
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader
from torch import nn

from lstm_fused._options import CELL_OPTIONS

Spec = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What may be chosen by a class path.

    Args:
        name: the task's argument.
        first: what the class takes first, which the task gives: no argument of the spec.
        modules: where a bare class name is looked up, in this order.
        aliases: other words, each for a class path.
        short: the task's argument that stands for an argument of the class, by the name of the latter.
        keeps_arguments: whether arguments given for one class go on to another that is chosen in its place and has
            them too.
    """

    name: str
    first: str
    modules: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    short: Mapping[str, str] = field(default_factory=dict)
    keeps_arguments: bool = False


RECURRENT = Kind(
    "recurrent",
    first="input_size",
    modules=("lstm_fused", "torch.nn"),
    aliases={
        "fused": "lstm_fused.FusedLSTM",
        "torch": "torch.nn.LSTM",
        "gru": "torch.nn.GRU",
        "rnn": "torch.nn.RNN",
    },
    short={
        "hidden_size": "hidden_size",
        "num_layers": "num_layers",
        "dropout": "layer_dropout",
        "variational": "variational",
        "layer_norm": "layer_norm",
        "recurrent_dropout": "recurrent_dropout",
        "zoneout": "zoneout",
        "forget_bias": "forget_bias",
    },
    keeps_arguments=True,
)
OPTIMIZER = Kind(
    "optimizer",
    first="params",
    modules=("torch.optim",),
    short={"lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum"},
)
LR_SCHEDULER = Kind("lr_scheduler", first="optimizer", modules=("torch.optim.lr_scheduler",))
KINDS = {kind.name: kind for kind in (RECURRENT, OPTIMIZER, LR_SCHEDULER)}


# Specs ----------------------------------------------------------------------------------------------------------------


def to_spec(kind: Kind, value: Any) -> Spec:
    """The spec that ``value`` means: a word, a mapping, a class, or a ``functools.partial`` of a class.

    Raises ValueError or TypeError, naming the argument.
    """
    if isinstance(value, functools.partial):
        if value.args:
            raise ValueError(f"{kind.name} must be a partial with keyword arguments alone, got {value}")
        return {"class_path": class_path(value.func), "init_args": dict(value.keywords)}
    if isinstance(value, type):
        return {"class_path": class_path(value), "init_args": {}}
    if isinstance(value, str):
        return {"class_path": class_path(import_class(kind, value)), "init_args": {}}
    if isinstance(value, Mapping):
        unknown = set(value) - {"class_path", "init_args"}
        if "class_path" not in value or unknown:
            raise ValueError(f"{kind.name} must have the keys class_path and init_args, got {sorted(value)}")
        path = class_path(import_class(kind, value["class_path"]))
        return {"class_path": path, "init_args": dict(value.get("init_args") or {})}
    raise TypeError(
        f"{kind.name} must be a class, its path, or a mapping with class_path and init_args, got {type(value).__name__}"
    )


def class_path(cls: Any) -> str:
    """Where to import ``cls`` from: the shortest public module that has it."""
    parts, name = cls.__module__.split("."), cls.__qualname__
    for count in range(1, len(parts)):
        module = importlib.import_module(".".join(parts[:count]))
        if getattr(module, name, None) is cls:
            return f"{module.__name__}.{name}"
    return f"{cls.__module__}.{name}"


def import_class(kind: Kind, word: Any) -> type:
    """The class that ``word`` names. Raises ValueError where there is none."""
    path = kind.aliases.get(word, word)
    module_name, _, name = path.rpartition(".")
    if not module_name:
        names: dict[str, type] = {}
        for module in map(importlib.import_module, reversed(kind.modules)):
            names |= {name: value for name, value in vars(module).items() if isinstance(value, type)}
        by_lower_case = {name.lower(): value for name, value in names.items()}
        if (found := names.get(name) or by_lower_case.get(name.lower())) is not None:
            return found
        close = difflib.get_close_matches(name, [*kind.aliases, *names], n=1)
        words = ", ".join([*kind.aliases, *(f"a class of {module}" for module in kind.modules)])
        raise ValueError(
            f"{kind.name} must be {words} or a class path, got {word!r}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{kind.name} must be a class that can be imported, got {word!r}: {error}") from None
    if not isinstance(found, type):
        raise ValueError(f"{kind.name} must be a class, got {word!r}, which is of type {type(found).__name__}")
    return found


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """The arguments of ``cls(...)`` by name, those that ``**kwargs`` hand on to a base class among them."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found |= {p.name: p for p in named if p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    if issubclass(cls, nn.RNNBase) and cls.__module__ == "torch.nn.modules.rnn":  # they hide theirs behind *args
        found.pop("mode", None)
        if cls is not nn.LSTM:
            found.pop("proj_size", None)
        if cls is nn.RNN:
            parameter = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
            found["nonlinearity"] = parameter
    return found


def has_argument(cls: type, name: str) -> bool:
    """Whether ``cls`` can be built with an argument of this name."""
    return name in parameters_of(cls)


def build(kind: Kind, spec: Spec, first: Any, **arguments: Any) -> Any:
    """The object of a spec, whose first argument is ``first``; ``arguments`` are added to those of the spec.

    Raises:
        ValueError: the class lacks an argument or refuses its value.
    """
    cls = import_class(kind, spec["class_path"])
    given = {**spec["init_args"], **arguments}
    known = parameters_of(cls)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"{kind.name}: {class_path(cls)} has no argument '{name}'"
                + (f"; did you mean '{close[0]}'?" if close else "")
            )
    return cls(first, **given | _typed(kind, cls, spec["init_args"]))


def _typed(kind: Kind, cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, brought to the types of the signature (a number written as text, a list for a tuple)."""
    if not arguments or issubclass(cls, nn.RNNBase):
        return dict(arguments)
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(cls, skip=set(parameters_of(cls)) - set(arguments), fail_untyped=False)
    except Exception:  # a signature that jsonargparse cannot read: the class checks its arguments itself
        return dict(arguments)
    try:
        parsed: dict[str, Any] = parser.parse_object(dict(arguments), defaults=False).as_dict()
        return parsed
    except Exception as error:
        raise ValueError(f"{kind.name}: {class_path(cls)}: {' '.join(str(error).split())}") from None


def describe(kind: Kind, word: str) -> str:
    """The arguments of a class with their types, defaults and explanations: what ``--model.KIND.help CLASS`` prints."""
    cls = import_class(kind, word)
    parser = ArgumentParser(prog=class_path(cls), add_help=False, usage=f"--model.{kind.name}.ARGUMENT VALUE")
    if issubclass(cls, nn.RNNBase):
        for name, parameter in parameters_of(cls).items():
            if name != kind.first:
                default = None if parameter.default is parameter.empty else parameter.default
                parser.add_argument(f"--{name}", default=default, help=f"as in torch.nn.{cls.__name__}")
    else:
        parser.add_class_arguments(cls, skip={next(iter(parameters_of(cls)))}, fail_untyped=False)
    return parser.format_help()


# The command line -----------------------------------------------------------------------------------------------------


def parse_value(text: str) -> Any:
    """A value as it is written on the command line."""
    try:
        return get_loader("yaml")(text)
    except Exception:  # no YAML: a text
        return text


def is_off(value: Any) -> bool:
    """Whether an option with this value does nothing."""
    return not any(value) if isinstance(value, (tuple, list)) else not value


@dataclass
class _Choice:
    """What has been said so far of one kind."""

    word: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    said: bool = False  # whether anything was, perhaps that there is to be none


class SpecSources:
    """Collects what configs and the command line say of the specs, source after source, the later over the earlier."""

    def __init__(self, defaults: Mapping[str, str | None]) -> None:
        """``defaults``: the class of each kind where no source names one."""
        self.defaults = defaults
        self.choices = {name: _Choice() for name in KINDS}
        self.short: dict[str, Any] = {}
        self.long_given: set[str] = set()  # short forms whose long form has been given
        self.notes: list[str] = []
        self._cell_given = False
        self._words_by_source: dict[tuple[str, str], tuple[str, str | None]] = {}
        self._by_source: dict[str, dict[str, tuple[str, Any]]] = {}

    def add_model(self, source: str, model: Mapping[str, Any]) -> None:
        """The ``model`` section of a config."""
        arguments = model["init_args"] if isinstance(model.get("init_args"), Mapping) else model
        for name, value in arguments.items():
            self.add(source, (name,), value)

    def add(self, source: str, name: tuple[str, ...], value: Any) -> None:
        """One setting: ``("lr",)``, ``("recurrent",)`` or ``("recurrent", "zoneout")``."""
        spelling = f"model.{name[0]}"
        if name[0] == "cell":
            if value is None:
                return
            warnings.warn("model.cell is now model.recurrent, which takes the same words", FutureWarning, stacklevel=2)
            self._cell_given = True
            name = ("recurrent", *name[1:])
        if name[0] not in KINDS:
            if len(name) == 1 and name[0] in _SHORT_NAMES:
                self._set_short(source, name[0], f"model.{name[0]}", value)
            return
        kind = KINDS[name[0]]
        if len(name) == 2 and name[1] != "class_path":
            if name[1] in kind.short:
                self.long_given.add(kind.short[name[1]])
                self._set_short(source, kind.short[name[1]], f"model.{kind.name}.{name[1]}", value)
            else:
                self.choices[kind.name].said = True
                self.choices[kind.name].arguments[name[1]] = value
        elif isinstance(value, Mapping):
            spec = {"class_path": value["class_path"]} if "class_path" in value else {}
            arguments = {name: given for name, given in value.items() if name not in ("class_path", "init_args")}
            arguments |= value.get("init_args") or {}
            if spec:
                self.add(source, (kind.name,), spec["class_path"])
            for argument, given in arguments.items():
                self.add(source, (kind.name, argument), given)
        else:
            self._refuse_two_words(source, kind, spelling, value)
            self._choose(kind, value)

    def _refuse_two_words(self, source: str, kind: Kind, spelling: str, word: str | None) -> None:
        before, chosen = self._words_by_source.setdefault((source, kind.name), (spelling, word))
        if before != spelling and chosen != word:
            raise ValueError(
                f"{before} and {spelling} are one setting and must not differ, got {chosen!r} and {word!r} in {source}"
            )

    def _choose(self, kind: Kind, word: str | None) -> None:
        choice = self.choices[kind.name]
        choice.word, choice.said = word, True
        if word is None:
            choice.arguments = {}
            return
        cls = import_class(kind, word)
        dropped = [name for name in choice.arguments if not kind.keeps_arguments or not has_argument(cls, name)]
        for name in dropped:
            del choice.arguments[name]
        if dropped:
            self.notes.append(
                f"model.{kind.name} is now {class_path(cls)}: {', '.join(dropped)} of the class before it "
                f"{'is' if len(dropped) == 1 else 'are'} left out"
            )

    def _set_short(self, source: str, name: str, spelling: str, value: Any) -> None:
        given = self._by_source.setdefault(source, {})
        if name in given and given[name][0] != spelling and given[name][1] != value:
            raise ValueError(
                f"{given[name][0]} and {spelling} are one setting and must not differ, "
                f"got {given[name][1]!r} and {value!r} in {source}"
            )
        given[name] = (spelling, value)
        self.short[name] = value

    def words(self, command_line: str) -> list[str]:
        """Arguments for the command line that say the same with one spec a kind and with short forms alone.

        Short forms that configs set for another layer, and that the chosen one lacks, are put out, with a note; those
        of the source ``command_line`` stay, for the task to refuse.
        """
        words = ["--model.cell=null"] if self._cell_given else []
        for name, choice in self.choices.items():
            kind = KINDS[name]
            word = choice.word if choice.word is not None else self.defaults.get(name)
            if not choice.said:
                continue
            if choice.word is None and not choice.arguments:
                words.append(f"--model.{name}=null")
                continue
            if word is None:
                raise ValueError(f"model.{name}.{next(iter(choice.arguments))} needs a class: give model.{name} too")
            spec = {"class_path": class_path(import_class(kind, word)), "init_args": choice.arguments}
            words.append(f"--model.{name}={json.dumps(spec)}")
        cls = import_class(RECURRENT, self.choices["recurrent"].word or self.defaults["recurrent"])
        on_command_line = self._by_source.get(command_line, {})
        left_out = []
        for argument, short in RECURRENT.short.items():
            chosen = self.choices["recurrent"].word is not None
            lacks = short in CLASS_OPTIONS and not takes_option(cls, argument)
            if chosen and lacks and not is_off(self.short.get(short)) and short not in on_command_line:
                left_out.append(short)
                words.append(f"--model.{short}=null")
        if left_out:
            self.notes.append(f"{class_path(cls)} has no {', '.join(left_out)}: what the config sets is left out")
        if self.choices["lr_scheduler"].word is not None:
            for short, off in SCHEDULE_OFF.items():
                if self.short.get(short, off) != off and short not in on_command_line:
                    words.append(f"--model.{short}={off}")
                    self.notes.append(f"model.lr_scheduler stands in place of the config's {short}")
        for short in self.long_given - set(left_out):
            value = self.short[short]
            words.append(f"--model.{short}={value if isinstance(value, str) else json.dumps(value)}")
        return words


# Short forms of options that not every recurrent layer has.
CLASS_OPTIONS = tuple(name for name in RECURRENT.short if name in CELL_OPTIONS)
# What an lr_scheduler stands in place of, and how that is put out.
SCHEDULE_OFF = {"lr_schedule": "constant", "warmup_steps": 0}
_SHORT_NAMES = {short for kind in KINDS.values() for short in kind.short.values()} | set(SCHEDULE_OFF)


def takes_option(cls: type, name: str) -> bool:
    """Whether a recurrent layer of class ``cls`` can have the option ``name``.

    ``nn.LSTM`` has no ``forget_bias``, but biases that can be set.
    """
    return has_argument(cls, name) or (name == "forget_bias" and issubclass(cls, nn.LSTM))


def merge_specs(words: list[str], defaults: Mapping[str, str | None]) -> tuple[list[str], list[str]]:
    """The command line's words with each spec said once, and notes to print.

    Every ``--model.KIND``, ``--model.KIND.ARGUMENT`` and ``--model.cell`` is taken out of ``words`` (and overlaid over
    those of the configs named with ``--config``); what they come to is added at the end.

    Raises:
        ValueError: one source gives a short form and its long form with different values; a class that is not there.
    """
    command_line = "the command line"
    sources = SpecSources(defaults)
    kept: list[str] = []
    position = 0
    while position < len(words):
        option, equals, value = words[position].partition("=")
        position += 1
        names = tuple(part for part in option.split(".") if part != "init_args")
        is_ours = names[0] == "--model" and len(names) > 1 and (names[1] in KINDS or names[1] == "cell")
        is_short = names[0] == "--model" and len(names) == 2 and names[1] in _SHORT_NAMES
        takes_value = is_ours or is_short or option in ("-c", "--config")
        if takes_value and not equals:
            if position == len(words):
                raise ValueError(f"{option} needs a value")
            value = words[position]
            position += 1
        if option in ("-c", "--config"):
            value = _take_specs(sources, value)
        elif is_ours or is_short:
            sources.add(command_line, names[1:], parse_value(value))
        if not is_ours:
            kept += (
                [f"{option}={value}"]
                if takes_value and option.startswith("--model")
                else ([option, value] if takes_value else [words[position - 1]])
            )
    return kept + sources.words(command_line), sources.notes


def _take_specs(sources: SpecSources, path: str) -> str:
    """Adds the specs of a config file to ``sources``; the config without them: its path, or itself as YAML.

    (jsonargparse would take a mapping with a class_path for a class of its own to check, whatever the type says.)
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the config '{path}' is not YAML: {' '.join(str(error).split())}") from None
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        return path
    arguments = model["init_args"] if isinstance(model.get("init_args"), dict) else model
    sources.add_model(path, get_loader("yaml")(text)["model"])  # whose numbers may be written as 1e-3
    if not {*KINDS, "cell"} & set(arguments):
        return path
    for name in (*KINDS, "cell"):
        arguments.pop(name, None)
    return yaml.safe_dump(config, sort_keys=False)
