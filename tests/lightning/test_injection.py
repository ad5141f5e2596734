"""Layers, optimizers and schedules by class path: what the command line says is what is built."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from lightning_modules.injection import (
    LR_SCHEDULER,
    OPTIMIZER,
    RECURRENT,
    build,
    class_path,
    describe,
    import_class,
    merge_specs,
    parameters_of,
    to_spec,
)
from lightning_modules.tasks import LanguageModelTask
from lstm_fused import FusedLSTM

DEFAULTS = {"recurrent": "fused", "optimizer": "adamw", "lr_scheduler": None}
SIZES = {"vocab_size": 11, "embedding_size": 4, "hidden_size": 5}


def merged(*words: str, config: dict[str, Any] | None = None, tmp_path: Path | None = None) -> dict[str, Any]:
    """What the words of a command line come to: the model's arguments, and the notes."""
    given = list(words)
    if config is not None:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"model": config}))
        given = ["--config", str(path), *given]
    kept, notes = merge_specs(given, DEFAULTS)
    model: dict[str, Any] = {"notes": notes}
    for word in kept:
        if word.startswith("--model."):
            name, _, value = word.removeprefix("--model.").partition("=")
            model[name] = yaml.safe_load(value)
    return model


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("fused", "lstm_fused.FusedLSTM"),
        ("FusedLSTM", "lstm_fused.FusedLSTM"),
        ("lstm_fused.lstm.FusedLSTM", "lstm_fused.FusedLSTM"),
        ("torch", "torch.nn.LSTM"),
        ("gru", "torch.nn.GRU"),
        ("rnn", "torch.nn.RNN"),
        ("torch.nn.RNN", "torch.nn.RNN"),
        (nn.GRU, "torch.nn.GRU"),
    ],
)
def test_a_layer_by_any_of_its_names(word: str | type, path: str) -> None:
    assert to_spec(RECURRENT, word) == {"class_path": path, "init_args": {}}


def test_every_argument_of_the_fused_layer_is_reachable() -> None:
    """Whatever FusedLSTM takes goes through the command line, with no list of it here."""
    values = {
        "num_layers": 2, "bias": True, "dropout": 0.1, "bidirectional": False, "proj_size": 3, "layer_norm": "carry",
        "variational": True, "recurrent_dropout": 0.2, "recurrent_dropout_on": "candidate", "zoneout": [0.0, 0.5],
        "weight_dropout": 0.3, "peephole": True, "forget_bias": 1.0, "open_gates": ["f"], "recompute": True,
        "activation": "relu", "recurrent_activation": "hard_sigmoid",
        "eps": 1e-4, "hidden_size": 5, "dtype": None, "device": None, "batch_first": False,
    }  # fmt: skip
    assert set(values) == set(parameters_of(FusedLSTM)) - {"input_size"}
    model = merged(*(f"--model.recurrent.{name}={json.dumps(value)}" for name, value in values.items()))
    del model["notes"]
    task = LanguageModelTask(**model, vocab_size=11, embedding_size=4)
    for name, value in values.items():
        if name not in ("dtype", "device"):
            got = getattr(task.net.lstm, name)
            assert (list(got) if isinstance(got, tuple) else got) == value, name
    for written in ("if", "[i,f]"):
        model = merged(f"--model.recurrent.open_gates={written}")
        assert LanguageModelTask(recurrent=model["recurrent"], **SIZES).net.lstm.open_gates == ("i", "f")


def test_a_later_source_wins_and_one_source_does_not_differ(tmp_path: Path) -> None:
    config = {"hidden_size": 256, "layer_norm": True, "recurrent": {"class_path": "fused", "init_args": {"eps": 0.1}}}
    model = merged("--model.recurrent.hidden_size=24", config=config, tmp_path=tmp_path)
    assert (model["hidden_size"], model["recurrent"]["init_args"]) == (24, {"eps": 0.1})
    model = merged("--model.recurrent.layer_norm", "carry", config=config, tmp_path=tmp_path)
    assert model["layer_norm"] == "carry"
    config = {"recurrent": {"class_path": "fused", "init_args": {"hidden_size": 24, "zoneout": [0.1, 0.2]}}}
    assert merged("--model.hidden_size=8", config=config, tmp_path=tmp_path)["hidden_size"] == 8
    assert merged(config=config, tmp_path=tmp_path)["zoneout"] == [0.1, 0.2]
    for long, short in (
        ("recurrent.zoneout", "zoneout"),
        ("optimizer.lr", "lr"),
        ("recurrent.num_layers", "num_layers"),
    ):
        same = merged(f"--model.{long}=2", f"--model.{short}=2")
        assert same[short] == 2
        with pytest.raises(ValueError, match=f"model.{long} and model.{short} are one setting and must not differ"):
            merged(f"--model.{long}=2", f"--model.{short}=3")
    config = {"recurrent": {"class_path": "gru", "init_args": {}}}  # as a run's config.yaml has it
    expected = {"class_path": "torch.nn.GRU", "init_args": {}}
    assert merged(config=config, tmp_path=tmp_path)["recurrent"] == expected
    config = {"recurrent": {"class_path": "fused", "init_args": {"hidden_size": 24, "zoneout": [0.1, 0.2]}}}
    with pytest.raises(ValueError, match=r"must not differ, got (8 and 24|24 and 8) in .*config\.yaml"):
        merged(config={"hidden_size": 8} | config, tmp_path=tmp_path)


def test_another_class_starts_from_its_own_defaults(tmp_path: Path) -> None:
    config = {
        "optimizer": {"class_path": "Adagrad", "init_args": {"eps": 1.0, "lr": 0.5}},
        "recurrent": {"class_path": "fused", "init_args": {"bidirectional": True, "peephole": True}},
        "layer_norm": True,
        "recurrent_dropout": 0.1,
        "forget_bias": 1.0,
        "lr_schedule": "cosine",
        "warmup_steps": 5,
    }
    model = merged("--model.optimizer=SGD", "--model.recurrent=gru", config=config, tmp_path=tmp_path)
    assert model["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": {}}
    assert model["lr"] == 0.5  # a setting of the task, whatever the optimizer
    # What the other layer has too is kept; what it lacks goes, and both are said.
    assert model["recurrent"] == {"class_path": "torch.nn.GRU", "init_args": {"bidirectional": True}}
    assert [model[name] for name in ("layer_norm", "recurrent_dropout", "forget_bias")] == [None] * 3
    assert model["notes"] == [
        "model.optimizer is now torch.optim.SGD: eps of the class before it is left out",
        "model.recurrent is now torch.nn.GRU: peephole of the class before it is left out",
        "torch.nn.GRU has no layer_norm, recurrent_dropout, forget_bias: what the config sets is left out",
    ]
    model = merged("--model.recurrent=torch", config=config, tmp_path=tmp_path)
    assert "forget_bias" not in model  # nn.LSTM has biases to set
    model = merged("--model.recurrent=gru", "--model.layer_norm=true", config=config, tmp_path=tmp_path)
    assert model["layer_norm"] is True  # asked for on the command line: the task refuses it
    with pytest.raises(ValueError, match=r"layer_norm must be off with the layer torch\.nn\.GRU, which lacks it"):
        LanguageModelTask(recurrent="gru", layer_norm=True, **SIZES)
    model = merged("--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=3", config=config, tmp_path=tmp_path)
    assert (model["lr_schedule"], model["warmup_steps"]) == ("constant", 0)


def test_cell_is_the_former_name(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match=r"model\.cell is now model\.recurrent"):
        model = merged("--model.cell=torch")
    assert model["recurrent"]["class_path"] == "torch.nn.LSTM"
    message = r"model\.cell and model\.recurrent are one setting and must not differ, got 'torch' and 'gru' in the com"
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match=message):
        merged("--model.cell=torch", "--model.recurrent=gru")
    with pytest.warns(FutureWarning):
        model = merged(config={"cell": "fused", "hidden_size": 3}, tmp_path=tmp_path)
    assert model["recurrent"]["class_path"] == "lstm_fused.FusedLSTM"
    task = LanguageModelTask(cell="torch", forget_bias=1.0, **SIZES)
    assert isinstance(task.net.lstm, nn.LSTM)
    assert isinstance(LanguageModelTask(**task.hparams_of({"hyper_parameters": task.hparams})).net.lstm, nn.LSTM)


def test_hyperparameters_of_a_former_version_build_the_same() -> None:
    saved = {**SIZES, "cell": "torch", "layer_norm": False, "optimizer": "sgd", "momentum": 0.9, "forget_bias": 1.0}
    hparams = LanguageModelTask.hparams_of({"hyper_parameters": saved | {"vanished": 3}})
    assert hparams["recurrent"] == {"class_path": "torch.nn.LSTM", "init_args": {}}
    assert hparams["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": {}}
    task = LanguageModelTask(**hparams)
    assert isinstance(task.net.lstm, nn.LSTM)
    assert task.configure_optimizers()["optimizer"].param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("kind", "word", "message"),
    [
        (RECURRENT, "grru", "got 'grru'; did you mean 'gru'?"),
        (RECURRENT, "no.such.Layer", "recurrent must be a class that can be imported, got 'no.such.Layer'"),
        (RECURRENT, "torch.nn.functional.relu", "recurrent must be a class, got 'torch.nn.functional.relu'"),
        (OPTIMIZER, "adamm", "did you mean 'Adam"),
        (LR_SCHEDULER, "StepRL", "did you mean 'StepLR'?"),
    ],
)
def test_what_cannot_be_is_told(kind: Any, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        import_class(kind, word)


def test_bad_arguments_are_told() -> None:
    fused = {"class_path": "fused", "init_args": {"zoneot": 1}}
    with pytest.raises(ValueError, match=r"recurrent: lstm_fused\.FusedLSTM has no argument 'zoneot'; did you mean"):
        LanguageModelTask(recurrent=fused, **SIZES)
    with pytest.raises(ValueError, match=r"recurrent: lstm_fused\.FusedLSTM: .*peephole"):
        LanguageModelTask(recurrent={"class_path": "fused", "init_args": {"peephole": "perhaps"}}, **SIZES)
    with pytest.raises(ValueError, match=r"hidden_size and recurrent\.hidden_size are one setting and must not differ"):
        LanguageModelTask(recurrent=functools.partial(nn.GRU, hidden_size=9), **SIZES)
    with pytest.raises(ValueError, match="must have the keys class_path and init_args"):
        LanguageModelTask(recurrent={"init_args": {}}, **SIZES)
    with pytest.raises(TypeError, match="recurrent must be a class, its path, or a mapping"):
        LanguageModelTask(recurrent=3, **SIZES)
    with pytest.raises(ValueError, match="lr_scheduler is instead of lr_schedule and warmup_steps"):
        LanguageModelTask(lr_scheduler="ExponentialLR", lr_schedule="cosine", **SIZES)


OPTIMIZERS = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_of_torch_decays_weights_alone(name: str) -> None:
    """The partition is what it is for AdamW; the classes that cannot have it say so themselves."""
    task = LanguageModelTask(optimizer=name, lr=0.5, **SIZES)
    if name == "Muon":  # takes matrices alone
        with pytest.raises(ValueError, match="2D"):
            task.configure_optimizers()
        return
    optimizer = task.configure_optimizers()["optimizer"]
    assert type(optimizer).__name__ == name
    partition = task.decay_partition()
    optimized = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in task.parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    if "weight_decay" in optimizer.defaults:
        by_parameter = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert {by_parameter[id(p)] for p in partition.decayed.values()} == {1e-4}
        assert {by_parameter[id(p)] for p in partition.spared.values()} == {0.0}


def test_a_schedule_of_torch() -> None:
    task = LanguageModelTask(lr_scheduler={"class_path": "StepLR", "init_args": {"step_size": "3"}}, **SIZES)
    schedule = task.configure_optimizers()["lr_scheduler"]
    assert isinstance(schedule["scheduler"], torch.optim.lr_scheduler.StepLR)
    assert schedule["scheduler"].step_size == 3
    assert schedule["interval"] == "epoch"


def test_l2_is_lambda_half_the_sum_of_squares_of_the_weights() -> None:
    task = LanguageModelTask(l2=0.3, **SIZES)
    task.l2_penalty().backward()
    partition = task.decay_partition()
    for weight in partition.decayed.values():
        torch.testing.assert_close(weight.grad, 0.3 * weight.detach())
    assert all(p.grad is None for p in partition.spared.values())
    expected = 0.15 * sum(float(w.detach().double().square().sum()) for w in partition.decayed.values())
    assert float(task.l2_penalty()) == pytest.approx(expected, rel=1e-5)


def test_specs_are_plain_values_and_build_again() -> None:
    task = LanguageModelTask(recurrent=functools.partial(nn.GRU, bias=False), optimizer=torch.optim.Adam, **SIZES)
    hparams = json.loads(json.dumps(dict(task.hparams)))
    again = LanguageModelTask(**hparams)
    assert isinstance(again.net.lstm, nn.GRU)
    assert not again.net.lstm.bias
    assert class_path(type(build(OPTIMIZER, again.hparams.optimizer, again.parameters()))) == "torch.optim.Adam"


@pytest.mark.parametrize(("kind", "word", "said"), [(RECURRENT, "fused", "--zoneout"), (RECURRENT, "gru", "--bias"),
                                                    (OPTIMIZER, "adamw", "--betas")])  # fmt: skip
def test_the_arguments_of_a_class_are_listed(kind: Any, word: str, said: str) -> None:
    text = describe(kind, word)
    assert said in text
    assert "_empty" not in text
