"""Going on from a checkpoint: which options stay as they were, which act, and whether anything is left to train."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch.callbacks import Timer

from lightning_modules.callbacks import EarlyStopping

# Options of the model that say how it is trained on from here: given on the command line they act. The others say what
# the model is, and stay as in the checkpoint.
OF_TRAINING = ("lr", "weight_decay", "momentum", "lr_schedule", "warmup_steps")


def settle_options(
    options: Any, saved: Mapping[str, Any], prefix: str, acting: Collection[str] = ()
) -> tuple[list[str], set[str]]:
    """Changes options to those that will be in force when a run goes on from a checkpoint.

    Args:
        options: of the model or the data, by name; changed in place.
        saved: the checkpoint's.
        prefix: what goes before their names on the command line.
        acting: names of those that are not to be as in the checkpoint.

    Returns:
        A line for every option that has two values, and the names of those that act.
    """
    lines, act = [], set()
    for name, value in saved.items():
        value = _plain(value)
        if name not in options or options[name] == value:
            continue
        if name in acting:
            act.add(name)
            lines.append(f"{prefix}{name} is {options[name]!r} from here on, {value!r} in the checkpoint")
            continue
        if options[name] is not None:
            lines.append(f"{prefix}{name} is {value!r}, as in the checkpoint, not {options[name]!r}")
        options[name] = value
    return lines, act


def why_ended(checkpoint: Mapping[str, Any], trainer: Mapping[str, Any], stopping: EarlyStopping) -> str | None:
    """Why there is nothing left to train after a checkpoint, as what would have to be given; ``None`` where there is.

    Args:
        checkpoint: of a fit.
        trainer: the trainer's arguments.
        stopping: the early stopping's present arguments; its state is the checkpoint's.
    """
    if not (loops := checkpoint.get("loops")):
        return None
    epochs, steps = loops["fit_loop"]["epoch_progress"]["current"]["processed"], checkpoint["global_step"]
    for name, limit, done in (("epochs", trainer["max_epochs"], epochs), ("steps", trainer["max_steps"], steps)):
        if limit is not None and 0 <= limit <= done:
            return f"trainer.max_{name} must be more than the {done} that the checkpoint's run has had, got {limit}"
    states = checkpoint.get("callbacks", {})
    if trainer["max_time"] is not None and "Timer" in states:
        timer = Timer(trainer["max_time"])
        timer.load_state_dict(states["Timer"])
        if (left := timer.time_remaining()) is not None and left <= 0:
            had = timedelta(seconds=round(timer.time_elapsed()))
            return f"trainer.max_time must be more than the {had} that the checkpoint's run has had"
    state = states.get(stopping.state_key)
    may_stop = epochs >= (trainer["min_epochs"] or 0) and steps >= (trainer["min_steps"] or 0)
    if state is not None and may_stop and stopping.would_stop(state):
        reason = (state["stopping_reason_message"] or "").removesuffix("Signaling Trainer to stop.").strip()
        return f"the checkpoint's run was stopped early, and early_stopping.* must be such that it was not: {reason}"
    return None


def counts_anew(checkpoint: Mapping[str, Any], stopping: EarlyStopping) -> str | None:
    """A line, where early stopping watches another figure than in the checkpoint's run; ``None`` where it does not."""
    states = checkpoint.get("callbacks", {})
    if stopping.state_key in states or not any(key.startswith("EarlyStopping") for key in states):
        return None
    return f"early stopping counts anew: {stopping.monitor} ({stopping.mode}) is not what the checkpoint's run watched"


def other_options(saved: Mapping[str, Any] | None, given: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of the options that differ from a checkpoint's."""
    pairs = [(name, value, given.get(name, value)) for name, value in (saved or {}).items()]
    return [(name, old, new) for name, old, new in pairs if not name.startswith("_") and _plain(old) != _plain(new)]


def _plain(value: Any) -> Any:
    """A tuple is a list in a file."""
    return tuple(value) if isinstance(value, list) else value
