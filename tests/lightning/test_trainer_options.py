"""The trainer's options act on every task: device, precision, clipping, averages, schedules."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from small_runs import CONFIG_NAMES, Result
from testing import of_peer
from torch import nn
from torch.nn import functional as F

import lstm_fused
from lightning_modules import tasks, trainer_command
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.data.labeled import LabeledBatch
from lightning_modules.injection import parameters_of
from lightning_modules.tasks import ClassificationTask, LanguageModelTask
from lightning_modules.trainer_command import default_accelerator

RUNS = Path("runs/char_lm")
CONSTANT = ("--model.lr_schedule=constant", "--model.warmup_steps=0", "--data.sequence_length=100")
SMALL_NETS = dict.fromkeys(("char_lm", "word_lm", "awd_lm"), ("--model.embedding_size=8",))


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


# The device -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "missing", "accelerator", "said"),
    [
        (False, None, "cpu", "on the CPU: torch finds no GPU"),
        (True, "no module", "cpu", "for the GPU): lstm_fused was built without CUDA kernels (no module)"),
        (True, None, "auto", "on the GPU (--trainer.accelerator cpu for the CPU)"),
    ],
)
def test_a_gpu_is_the_default_where_the_kernels_can_use_it(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, missing: str | None, accelerator: str, said: str
) -> None:
    monkeypatch.setattr(trainer_command, "is_cuda_available", lambda: gpu)
    monkeypatch.setattr(lstm_fused.cuda, "missing", missing)
    default, why = default_accelerator()
    assert default == accelerator
    assert said in why
    assert "\n" not in why


def test_a_device_that_was_given_wins(
    monkeypatch: pytest.MonkeyPatch, small_fit: Callable[..., Result], tmp_path: Path
) -> None:
    monkeypatch.setattr(trainer_command, "default_accelerator", lambda: ("auto", "on the device of the test"))
    default = small_fit("--trainer.fast_dev_run=1")
    assert default.code == 0, default.err
    assert "on the device of the test\n" in default.out
    monkeypatch.setattr(trainer_command, "default_accelerator", lambda: ("tpu", "on the device of the test"))
    (tmp_path / "cpu.yaml").write_text("trainer: {accelerator: cpu, max_steps: 1}\n", encoding="utf-8")
    for given in (("--trainer.accelerator=cpu", "--trainer.fast_dev_run=1"), ("-c", "cpu.yaml")):
        result = small_fit(*given)
        assert result.code == 0, result.err
        assert "on the device of the test" not in result.out
    trainer = yaml.safe_load((RUNS / "version_0" / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    assert (trainer["accelerator"], trainer["devices"]) == ("cpu", 1)


# Precision, clipping, smoothing ---------------------------------------------------------------------------------------


def bfloat16_has(layer: nn.Module) -> bool:
    """Whether torch trains the layer under autocast on this CPU."""

    def train() -> bool:
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(torch.randn(2, 4, 4))
            (output[0] if isinstance(output, tuple) else output).float().sum().backward()
        return True

    return of_peer(train) is True


@pytest.mark.parametrize(
    "config",
    ["forecast"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "char_lm",
            "awd_lm",
            "ner",
            "sentiment",
            "series_classification",
            "music",
            "remember",
            "adding",
            "copying",
        )
    ],
)
def test_bfloat16_runs_every_task(command: Callable[..., Result], config: str) -> None:
    small = SMALL_NETS.get(config, ())
    result = command(
        "fit",
        "-c",
        config,
        "--trainer.precision=bf16-mixed",
        "--trainer.fast_dev_run=1",
        "--model.hidden_size=8",
        *small,
    )
    if bfloat16_has(nn.Linear(4, 4)) and bfloat16_has(nn.Conv1d(4, 4, 1)):
        assert result.code == 0, result.err
    else:
        assert "trainer.precision 'bf16-mixed' does not run on this CPU" in result.error


@pytest.mark.parametrize(("algorithm", "limit"), [("norm", 0.01), ("value", 1e-4)])
def test_gradients_are_clipped(
    small_fit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, algorithm: str, limit: float
) -> None:
    def spy(task: LanguageModelTask, optimizer: torch.optim.Optimizer) -> None:  # before those of the last step go
        found = [p.grad.clone() for p in task.parameters() if p.grad is not None]
        if found:
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))

    gradients: list[torch.Tensor] = []
    monkeypatch.setattr(LanguageModelTask, "on_before_zero_grad", spy)
    options = (f"--trainer.gradient_clip_val={limit}", f"--trainer.gradient_clip_algorithm={algorithm}")
    assert small_fit(*options, "--trainer.max_steps=3").code == 0
    assert gradients
    for gradient in gradients:
        size = gradient.norm() if algorithm == "norm" else gradient.abs().max()
        assert float(size) == pytest.approx(limit, rel=1e-3)


def test_label_smoothing_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    shared = {"hidden_size": 5, "embedding_size": 4, "label_smoothing": 0.3}
    words, targets, labels = torch.randint(7, (6, 3)), torch.randint(7, (6, 3)), torch.tensor([0, 2, 1])
    language_model = LanguageModelTask(vocab_size=7, **shared).eval()  # without dropout
    classifier = ClassificationTask(num_classes=3, vocab_size=7, channels=0, **shared).eval()
    lengths = torch.tensor([6, 4, 1])
    for task, batch, logits, wanted in (
        (language_model, (words, targets), language_model(words)[0].flatten(0, 1), targets.flatten()),
        (classifier, LabeledBatch(words, lengths, labels), classifier(words, lengths), labels),
    ):
        for metrics, smoothing in ((None, 0.3), (nn.ModuleDict(), 0.0)):
            if metrics is not None:
                metrics.items = lambda keep_base=True: []  # of no metric
            loss, _ = task.batch_loss(batch, 0, metrics)
            torch.testing.assert_close(loss, F.cross_entropy(logits, wanted, label_smoothing=smoothing))
    having = {name for name in tasks.__all__ if "label_smoothing" in parameters_of(getattr(tasks, name))}
    assert having == {"LanguageModelTask", "ClassificationTask"}, "a task with label smoothing is to be tested here"


# Averages of the weights ----------------------------------------------------------------------------------------------


def test_averages_of_lightning_are_validated_tested_and_go_on(
    small_fit: Callable[..., Result], command: Callable[..., Result]
) -> None:
    options = (*CONSTANT, "--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0.8")
    result = small_fit(*options, "--trainer.max_epochs=2")
    assert result.code == 0, result.err
    assert "sharding" not in result.err
    figures = summary(RUNS / "version_0")
    best, last = (load_checkpoint(RUNS / "version_0" / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    name = "net.decoder.weight"
    assert not best["state_dict"][name].equal(best["current_model_state"][name])
    # Loaded without the callback, best.ckpt is the average, and gives the run's figures again.
    config = yaml.safe_load((RUNS / "version_0" / "config.yaml").read_text(encoding="utf-8"))
    config["trainer"]["callbacks"] = None
    Path("plain.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    path = RUNS / "version_0" / "checkpoints" / "best.ckpt"
    for stage, figure in (("test", figures["test"]["test_loss"]), ("validate", figures["best"]["val_loss"])):
        told = command(stage, "-c", "plain.yaml", "--ckpt_path", path)
        assert told.code == 0, told.err
        assert f"{figure:.12f}"[:6] in told.out

    assert small_fit(*options, "--trainer.max_epochs=1").code == 0
    resumed = command("fit", "-c", RUNS / "version_1", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert resumed.code == 0, resumed.err
    again = load_checkpoint(RUNS / "version_2" / "checkpoints" / "last.ckpt")
    for part in ("state_dict", "current_model_state"):
        for name, value in last[part].items():
            assert value.equal(again[part][name]), (part, name)


def test_an_average_that_nothing_validates_is_refused(small_fit: Callable[..., Result]) -> None:
    error = small_fit("--trainer.callbacks=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01").error
    assert error.startswith("trainer.callbacks must not have StochasticWeightAveraging")
    assert not RUNS.exists()


# What is watched, and schedules ---------------------------------------------------------------------------------------


def test_early_stopping_by_any_figure_in_either_direction(small_fit: Callable[..., Result]) -> None:
    options = ("--early_stopping.monitor=val_ppl", "--early_stopping.patience=1", "--trainer.max_epochs=3", *CONSTANT)
    for version, (mode, epochs) in enumerate((("max", 2), ("min", 3))):  # the perplexity falls
        assert small_fit(*options, f"--early_stopping.mode={mode}").code == 0
        run = RUNS / f"version_{version}"
        with open(run / "epochs.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        figures = [float(row["val_ppl"]) for row in rows]
        assert len(figures) == epochs
        assert figures == sorted(figures, reverse=True)
        best = summary(run)["best"]
        assert best["epoch"] == (0 if mode == "max" else 2)
        assert best["val_ppl"] == (max if mode == "max" else min)(figures)
        assert [row["improved"] for row in rows] == (["yes", "no"] if mode == "max" else ["yes"] * 3)


def test_a_schedule_that_goes_by_a_figure(small_fit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    on_train_epoch_start = LanguageModelTask.on_train_epoch_start

    def spy(task: LanguageModelTask) -> None:
        on_train_epoch_start(task)
        rates.append(task.optimizers().param_groups[0]["lr"])

    monkeypatch.setattr(LanguageModelTask, "on_train_epoch_start", spy)
    options = ("--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.patience=0", "--trainer.max_epochs=3")
    result = small_fit(*options, "--model.lr_scheduler_monitor=val_ppl", "--model.lr_scheduler.mode=max", *CONSTANT)
    assert result.code == 0, result.err
    assert rates == pytest.approx([0.01, 0.01, 0.001])  # the second perplexity is lower than the first, so no better
    error = small_fit(*options, "--model.lr_scheduler_monitor=val_pp", *CONSTANT).error
    assert error == "lr_scheduler_monitor must be one of val_bpc, val_loss, val_ppl, got 'val_pp'"
    assert len(rates) == 3  # printed before an epoch starts
    error = small_fit(*options, "--model.lr_scheduler_interval=step", *CONSTANT).error
    assert error.endswith("must be 'epoch' with ReduceLROnPlateau, which goes by val_loss, got 'step'")


def test_a_schedule_over_so_many_steps(small_fit: Callable[..., Result]) -> None:
    options = (
        "--model.lr_scheduler=OneCycleLR",
        "--model.lr_scheduler.max_lr=0.01",
        "--model.lr_scheduler_interval=step",
    )
    error = small_fit(*options, *CONSTANT).error
    assert error.startswith("lr_scheduler: torch.optim.lr_scheduler.OneCycleLR: You must define either total_steps")
    assert "--model.lr_scheduler.NAME gives an argument" in error
    assert not RUNS.exists()
    result = small_fit(*options, "--model.lr_scheduler.total_steps=20", "--trainer.log_every_n_steps=1", *CONSTANT)
    assert result.code == 0, result.err
    with open(RUNS / "version_0" / "metrics.csv", encoding="utf-8") as file:
        rates = [float(row["lr-AdamW/pg1"]) for row in csv.DictReader(file) if row.get("lr-AdamW/pg1")]
    assert len(rates) == 14
    assert rates[0] < 0.001 < max(rates)


# Layers ---------------------------------------------------------------------------------------------------------------

QUICK = {("word_lm", "rnn"), ("awd_lm", "gru"), ("sentiment", "rnn"), ("smnist", "gru")}  # others' tests have theirs


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        pytest.param(config, layer, marks=() if (config, layer) in QUICK else pytest.mark.slow)
        for config in CONFIG_NAMES
        for layer in ("torch", "gru", "rnn")
    ],
)
def test_every_config_runs_with_every_layer(
    command: Callable[..., Result], text_file: Path, config: str, layer: str
) -> None:
    own = ("--data.path", text_file) if config in SMALL_NETS else ()
    result = command(
        "fit", "-c", config, f"--model.recurrent={layer}", "--trainer.fast_dev_run=1", "--model.hidden_size=8", *own,
        *SMALL_NETS.get(config, ()), "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert {"torch": "LSTM(", "gru": "GRU(", "rnn": "RNN("}[layer] in result.out
    if config == "awd_lm":
        assert "weight_dropout of the class before it is left out" in result.out
