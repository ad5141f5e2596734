"""A run that is resumed with other data options reads what it should, or says in one line that it does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from small_runs import Result, make_text

from lightning_modules.callbacks import TextSample
from lightning_modules.checkpoints import load_checkpoint
from lightning_modules.data import TextDataModule
from lightning_modules.data.batches import ExampleLoader
from lightning_modules.tasks import LanguageModelTask

EPOCHS = 3
OPTIONS = {"batch_size": 4, "sequence_length": 20}


class Reading(Callback):
    """What each epoch reads: the tokens [steps, B] and the number of its batches; and the first batch's state."""

    def __init__(self) -> None:
        self.batches: dict[int, list[torch.Tensor]] = {}
        self.numbers: dict[int, list[int]] = {}
        self.losses: list[float] = []
        self.first_state: object = None

    def on_train_batch_start(self, trainer, task, batch, batch_idx) -> None:
        if not self.batches:
            self.first_state = task.train_state if batch_idx else None
        self.batches.setdefault(trainer.current_epoch, []).append(batch[0].clone())
        self.numbers.setdefault(trainer.current_epoch, []).append(batch_idx)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))

    def tokens(self, epoch: int) -> torch.Tensor:
        return torch.cat(self.batches[epoch])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(60))
    return path


def fit(folder: Path, text: Path, resume: Path | None = None, **options) -> tuple[Reading, Path]:
    """A fit that saves after each of its steps, and what it read."""
    trainer_options = {name: options.pop(name) for name in ("limit_train_batches",) if name in options}
    data = TextDataModule(**{"path": str(text)} | OPTIONS | options)
    torch.manual_seed(0 if resume is None else 9)
    task = LanguageModelTask(embedding_size=4, hidden_size=6, dropout=0.0)
    reading = Reading()
    callbacks = [reading, TextSample(length=0)]
    if resume is None:
        callbacks.append(ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1))
        callbacks.append(ModelCheckpoint(folder, "end-{epoch}", save_top_k=-1))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=resume is None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **trainer_options,
    )
    trainer.fit(task, data, ckpt_path=resume, weights_only=True)
    assert trainer.current_epoch == EPOCHS
    return reading, folder


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reading, Path]:
    return fit(tmp_path_factory.mktemp("whole"), text)


@pytest.fixture
def told(capsys: pytest.CaptureFixture) -> Callable[[], list[str]]:
    """The lines said on stderr since the last call."""
    return lambda: [line for line in capsys.readouterr().err.splitlines() if "GPU" not in line]


def test_another_sequence_length_goes_on_where_the_epoch_stopped(whole: tuple, text: Path, told: Callable) -> None:
    reading, folder = whole
    batches = len(reading.batches[0])
    assert batches >= 10
    for taken, length in ((3, 7), (3, 60), (batches - 1, 1000), (batches + 2, 13)):
        epoch, done = divmod(taken, batches)
        resumed, _ = fit(folder, text, resume=folder / f"step={taken}.ckpt", sequence_length=length)
        [line] = told()
        assert f"goes on where the checkpoint stopped, in batch {20 * done // length}:" in line
        assert f"--data.sequence_length was 20 and is {length}" in line
        # Nothing is skipped and nothing read twice, and the state is carried on.
        assert resumed.tokens(epoch).equal(reading.tokens(epoch)[20 * done :])
        assert resumed.tokens(epoch + 1).equal(reading.tokens(epoch + 1))
        in_whole = resumed.numbers[epoch + 1]
        assert resumed.numbers[epoch] == in_whole[20 * done // length :]
        saved = load_checkpoint(folder / f"step={taken}.ckpt")["train_state"]["state"]
        if resumed.numbers[epoch][0] > 0:
            assert all(now.equal(before[0]) for now, before in zip(resumed.first_state, saved, strict=True))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"batch_size": 2}, "--data.batch_size was 4 and is 2"),
        ({"batch_size": 13}, "--data.batch_size was 4 and is 13"),
        ({"batch_size": 8, "sequence_length": 5}, "--data.batch_size was 4 and is 8, --data.sequence_length was"),
        ({"split": (0.5, 0.25, 0.25)}, "its tokens are others"),
        ({"path": "other"}, "its tokens are others"),
    ],
)
def test_other_columns_or_another_text_begin_the_epoch_anew(
    whole: tuple, text: Path, told: Callable, tmp_path: Path, change: dict, why: str
) -> None:
    _, folder = whole
    other = tmp_path / "other.txt"
    other.write_text(make_text(50, seed=3))
    change = {name: str(other) if value == "other" else value for name, value in change.items()}
    data = TextDataModule(**{"path": str(text)} | OPTIONS | change)
    data.load_state_dict(load_checkpoint(folder / "step=3.ckpt")["TextDataModule"])
    expected = torch.cat([x for x, _ in data.train_dataloader()])
    resumed, _ = fit(folder, text, resume=folder / "step=3.ckpt", **change)
    lines = told()
    assert f"The epoch that the checkpoint stopped in begins anew: {why}" in lines[-1]
    flag = next(iter(change))
    assert any(f"--data.{flag}" in line for line in lines)
    for epoch in range(EPOCHS):
        assert resumed.tokens(epoch).equal(expected)
        assert resumed.numbers[epoch] == list(range(len(data.train_dataloader())))
    assert resumed.first_state is None


def test_after_a_whole_epoch_other_options_begin_the_next_one(whole: tuple, text: Path, told: Callable) -> None:
    _, folder = whole
    batches = len(whole[0].batches[0])
    last = f"step={batches}.ckpt"
    for name, change in (
        (last, {"batch_size": 2}),
        (last, {"batch_size": 13}),
        (last, {"sequence_length": 7}),
        ("end-epoch=0.ckpt", {"sequence_length": 500}),
        ("end-epoch=0.ckpt", {"batch_size": 3}),
    ):
        data = TextDataModule(**{"path": str(text)} | OPTIONS | change)
        resumed, _ = fit(folder, text, resume=folder / name, **change)
        assert told() == []  # the option simply acts
        assert sorted(resumed.batches) == [1, 2], (name, change)
        for epoch in (1, 2):
            assert resumed.numbers[epoch] == list(range(len(data.train_dataloader()))), (name, change)
            assert resumed.tokens(epoch)[0].equal(data.train_dataloader().columns[0])


def test_a_limit_of_batches_ends_the_epoch_for_the_loader_too(text: Path, tmp_path: Path, told: Callable) -> None:
    reading, folder = fit(tmp_path, text, limit_train_batches=4)
    for name, taken in (("step=4.ckpt", 4), ("end-epoch=0.ckpt", 4), ("step=6.ckpt", 6)):
        resumed, _ = fit(folder, text, resume=folder / name, limit_train_batches=4)
        assert resumed.losses == reading.losses[taken:], name
    for name, limit, first in (("step=4.ckpt", 6, 1), ("end-epoch=0.ckpt", 2, 1), ("step=2.ckpt", 3, 0)):
        resumed, _ = fit(folder, text, resume=folder / name, limit_train_batches=limit)
        assert min(resumed.batches) == first
        assert resumed.numbers[EPOCHS - 1] == list(range(limit))
        assert resumed.batches[EPOCHS - 1][0].equal(reading.batches[0][0])
    assert told() == []
    resumed, _ = fit(folder, text, resume=folder / "step=3.ckpt", limit_train_batches=2)
    assert told() == [
        "The epoch that the checkpoint stopped in begins anew: it is not to have as many batches as it had."
    ]
    assert [resumed.numbers[epoch] for epoch in range(EPOCHS)] == [[0, 1]] * EPOCHS


def test_changed_files_are_told(whole: tuple, text: Path, tmp_path: Path, told: Callable) -> None:
    _, folder = whole
    same = tmp_path / "same.txt"
    same.write_bytes(text.read_text().replace("\n", "\r\n").encode("utf-16"))
    fit(folder, same, resume=folder / "end-epoch=0.ckpt")
    assert told() == []  # another file, the same text

    before, content = text.read_text(), text.read_text().replace("mat", "hat", 1)
    text.write_text(content)
    try:
        fit(folder, text, resume=folder / "end-epoch=0.ckpt")
    finally:
        text.write_text(before)
    assert told() == [
        "The train data is not the checkpoint's, so that figures before and after are of different data; changed: "
        "what the files hold."
    ]

    data = TextDataModule(path=str(same), split=(1, 1, 1), max_vocab=5, min_count=3, **OPTIONS)
    data.load_state_dict(load_checkpoint(folder / "end-epoch=0.ckpt")["TextDataModule"])
    data.setup("fit")
    assert told() == [
        "data.max_vocab is None, as in the checkpoint, not 5",
        "data.min_count is 1, as in the checkpoint, not 3",
    ]
    data.begin_training()
    assert told() == [
        "The train and the valid data is not the checkpoint's, so that figures before and after are of different "
        "data; changed: --data.path, --data.split.",
    ]
    data = TextDataModule(test=str(same), **OPTIONS)  # to be judged on another text is what a test is for
    data.load_state_dict(load_checkpoint(folder / "end-epoch=0.ckpt")["TextDataModule"])
    data.setup("test")
    assert told() == []


def test_a_checkpoint_of_a_former_version_goes_on(whole: tuple, text: Path, tmp_path: Path, told: Callable) -> None:
    """Its loader counted batches, its data said nothing of the text, its state was one tensor."""
    reading, folder = whole
    checkpoint = load_checkpoint(folder / "step=3.ckpt")
    checkpoint["TextDataModule"] = {"vocabulary": checkpoint["TextDataModule"]["vocabulary"]}
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [{"batches": 3}]
    checkpoint["train_state"] = torch.cat(list(checkpoint["train_state"]["state"]))
    torch.save(checkpoint, tmp_path / "old.ckpt")
    resumed, _ = fit(folder, text, resume=tmp_path / "old.ckpt")
    assert resumed.losses == reading.losses[3:]
    assert told() == []
    resumed, _ = fit(folder, text, resume=tmp_path / "old.ckpt", sequence_length=30)
    assert resumed.tokens(0).equal(reading.tokens(0)[60:])
    resumed, _ = fit(folder, text, resume=tmp_path / "old.ckpt", batch_size=6)
    assert resumed.numbers[0][0] == 0
    assert "--data.batch_size was 4 and is 6" in told()[-1]


OLD_OPTIONS = (
    "vocab_size", "embedding_size", "hidden_size", "tied", "dropout", "variational", "layer_norm", "recurrent_dropout",
    "forget_bias", "label_smoothing", "lr", "weight_decay", "decay_embeddings", "lr_schedule", "warmup_steps",
)  # fmt: skip


def make_old(run: Path) -> None:
    """Writes a run's folder as the version before there were tasks left it."""
    words = {"cell": "fused", "optimizer": "adamw", "num_layers": 1, "zoneout": 0.0, "momentum": 0.0}
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["class_path"] = "lightning_modules.models.LanguageModelTask"
    options = config["model"]["init_args"]
    config["model"]["init_args"] = {name: options[name] for name in OLD_OPTIONS} | words
    del config["data"]["init_args"]["min_count"], config["last_checkpoint"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for path in (run / "checkpoints").iterdir():
        checkpoint = load_checkpoint(path)
        saved = checkpoint["hyper_parameters"]
        checkpoint["hyper_parameters"] = {name: saved[name] for name in OLD_OPTIONS} | words
        checkpoint["TextDataModule"] = {"vocabulary": checkpoint["TextDataModule"]["vocabulary"]}
        checkpoint["train_state"] = torch.cat(list(checkpoint["train_state"]["state"]))
        checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [{"batches": 0}]
        del checkpoint["epoch_loss"]
        callbacks = checkpoint["callbacks"]
        for name in ("RunSummary", "LastCheckpoint", "OptimizerFlags", "TextSample"):
            callbacks.pop(name, None)
        del callbacks["RNGState"]["seed"]
        for row in callbacks["LearningCurves"]["epochs"]:
            del row["step"], row["epochs"]
        for name, state in callbacks.items():
            if name.startswith("BestCheckpoint"):
                del state["best"]
        torch.save(checkpoint, path)


def test_a_run_of_before_there_were_tasks_is_tested_sampled_and_gone_on_with(
    command: Callable[..., Result], small_fit: Callable[..., Result]
) -> None:
    def use(run: str) -> tuple:
        test = command("test", "-c", run, "--ckpt_path=best")
        sample = command("sample", run, "--length=30", "--seed=1")
        again = command("fit", "-c", run, "--ckpt_path=last", "--trainer.max_epochs=3")
        assert (test.code, sample.code, again.code) == (0, 0, 0), (test.err, sample.err, again.err)
        return test.out, sample.out

    assert small_fit("--model.lr_schedule=constant").code == 0
    run = "runs/char_lm/version_0"
    expected = use(run)
    make_old(Path(run))
    assert use(run) == expected
    resumed, of_old = (load_checkpoint(f"runs/char_lm/version_{k}/checkpoints/last.ckpt") for k in (1, 2))
    assert resumed["global_step"] == of_old["global_step"]
    for name, value in resumed["state_dict"].items():
        assert value.equal(of_old["state_dict"][name]), name


def test_the_carried_state_of_two_processes_goes_on_in_one(
    make_task: Callable[..., LanguageModelTask], make_trainer: Callable[..., Trainer]
) -> None:
    task = make_task()
    task.trainer = make_trainer()
    state = torch.randn(2, 2, 3, 12)  # of two ranks: [ranks, layers, columns of a rank, H]
    task.on_load_checkpoint({"train_state": {"ranks": 2, "state": (state, -state)}})
    assert task.train_state[0].equal(torch.cat([state[0], state[1]], dim=1))
    assert task.train_state[1].equal(-task.train_state[0])


def test_examples_in_other_batches_begin_the_epoch_anew() -> None:
    def loader(count: int = 20, batch_size: int = 3, seed: int = 1) -> ExampleLoader:
        return ExampleLoader(list(range(count)), batch_size, lambda _, k: k, shuffle=True, seed=seed)

    first = loader()
    iterator = iter(first)
    expected = [next(iterator), next(iterator)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert (second.next_batch, second.begins_anew, second.changed) == (2, False, "")
    assert expected + list(second) == list(loader())
    assert list(second) == list(loader())
    for other, changed in (
        (loader(batch_size=4), "--data.batch_size was 3 and is 4"),
        (loader(count=21), "number of examples was 20 and is 21"),
    ):
        other.load_state_dict(first.state_dict())
        assert (other.next_batch, other.begins_anew, other.changed) == (0, True, changed)
        assert len(list(other)) == len(other)
    second.load_state_dict({"batches": 2})
    second.restart()
    assert list(second) == list(loader())
