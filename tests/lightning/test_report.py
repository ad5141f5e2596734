"""The report of an experiment: its figures by hand, its words by the figures, its pictures."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_up_plan import make_plan, write_run
from small_runs import undrawn

from lightning_modules.experiments import pictures
from lightning_modules.experiments.ablate import Ablate
from lightning_modules.experiments.report import Report
from lightning_modules.experiments.statistics import paired_difference, student_cdf, student_quantile

BASELINE = {1: {"val_accuracy": 0.70}, 2: {"val_accuracy": 0.72}, 3: {"val_accuracy": 0.71}}
BETTER = {1: {"val_accuracy": 0.75}, 2: {"val_accuracy": 0.76}, 3: {"val_accuracy": 0.755}}


def make_report(folder: Path, figures: dict[str, Any], **options: Any) -> Report:
    return Report(Ablate(), make_plan(folder, figures, **options))


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_students_distribution() -> None:
    """Against published quantiles; with one and two degrees of freedom the distribution has a closed form."""
    published = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305, 4: 2.776445105, 9: 2.262157163, 30: 2.042272456}
    for freedom, quantile in published.items():
        assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-9)
    assert student_cdf(1.0, 1) == pytest.approx(0.75, rel=1e-14)
    assert student_cdf(1.0, 2) == pytest.approx(0.5 + 1 / (2 * math.sqrt(3)), rel=1e-14)


def test_the_interval_is_that_of_pairs() -> None:
    """Seeds that only one of both has are left out."""
    difference = paired_difference({1: 0.75, 2: 0.76, 3: 0.755, 4: 9.0}, {1: 0.70, 2: 0.72, 3: 0.71, 5: -9.0})
    # 0.05, 0.04 and 0.045: their mean is 0.045, their deviation 0.005.
    half = 4.302652730 * 0.005 / math.sqrt(3)
    assert difference.pairs == 3
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.045, 0.045 - half, 0.045 + half))
    assert difference.is_told_apart
    single = paired_difference({2: 1.0}, {1: 5.0, 2: 3.0})
    assert (single.mean, single.pairs, single.is_told_apart) == (-2.0, 1, False)
    assert math.isnan(single.low)
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_the_files(tmp_path: Path) -> None:
    report = make_report(tmp_path / "plan", {"baseline": BASELINE, "dropout": BETTER})
    told = report.write()
    table = {(row["figure"], row["variant"]): row for row in read_csv(tmp_path / "plan/table.csv")}
    row = table["val_accuracy", "dropout"]
    assert float(row["mean"]) == pytest.approx(0.755)
    assert float(row["deviation"]) == pytest.approx(0.005)
    assert float(row["difference"]) == pytest.approx(0.045)
    assert (row["seeds"], row["pairs"]) == ("3", "3")
    assert table["val_accuracy", "baseline"]["difference"] == ""
    assert float(table["gap", "baseline"]["mean"]) == pytest.approx(0.1)
    assert float(table["gap_at_end", "baseline"]["mean"]) == pytest.approx((0.5 + 0.2) - (0.4 - 0.2))
    runs = read_csv(tmp_path / "plan/runs.csv")
    assert [(run["variant"], run["seed"]) for run in runs] == [
        (variant, seed) for seed in "123" for variant in ("baseline", "dropout")
    ]
    # What a run took is no figure of it: the other tables are the same wherever it ran.
    assert "seconds" not in runs[0]
    assert [time["seconds"] for time in read_csv(tmp_path / "plan/times.csv")] == ["12.5"] * 6
    page = (tmp_path / "plan/report.md").read_text(encoding="utf-8")
    assert "0.7550 ± 0.0050" in page
    assert "+0.0450 (+0.0326 to +0.0574), better" in page
    assert "val_accuracy" in told
    for name in ("curves.png", "differences.png"):
        assert f"({name})" in page
        assert (tmp_path / "plan" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("names", [["baseline"], ["baseline", "dropout"], ["baseline", "dropout", "a", "b"]])
def test_the_legend_of_the_curves_is_in_the_picture(tmp_path: Path, monkeypatch: Any, names: list[str]) -> None:
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    assert pictures.draw_curves(make_report(tmp_path / "plan", dict.fromkeys(names, BASELINE)), tmp_path / "x.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_every_variant_has_curves_with_a_title_that_can_be_read(tmp_path: Path, monkeypatch: Any) -> None:
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    names = [f"without_recurrent_dropout_{k}" for k in range(13)]
    assert pictures.draw_curves(make_report(tmp_path / "plan", dict.fromkeys(names, BASELINE)), tmp_path / "x.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().partition("\n")[0] for axes in shown] == names
    lowest = [axes for axes in shown if any(label.get_visible() for label in axes.get_xticklabels())]
    assert lowest == shown[-4:]
    boxes = [axes.title.get_window_extent() for axes in shown]
    assert not [True for k, box in enumerate(boxes) for other in boxes[:k] if box.overlaps(other)]


def test_the_axes_of_the_differences_have_units(tmp_path: Path, monkeypatch: Any) -> None:
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: drawn.append(figure))
    report = make_report(tmp_path / "plan", {"baseline": BASELINE, "dropout": BETTER})
    assert pictures.draw_differences(report, tmp_path / "x.png")
    labels = [axes.get_xlabel() for axes in drawn[0].axes]
    assert labels[0] == "val_accuracy less that of\nbaseline, 0.7100\n(more is better)"
    assert labels[-1] == "gap less that of\nbaseline, 0.1000 nats an example\n(less is better)"


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (BETTER, "better: dropout +0.0450 (+0.0326 to +0.0574)."),
        ({s: {"val_accuracy": 0.6 + s / 100} for s in (1, 2, 3)}, "worse: dropout -0.0900 (-0.1148 to -0.0652)."),
        ({1: BETTER[1], 2: {"val_accuracy": 0.69}, 3: BETTER[3]}, "not told apart: dropout +0.0217 (-0.0"),
        ({1: BETTER[1]}, "a single seed, no interval: dropout +0.0500."),
        (BASELINE, "the same in every run: dropout +0.0000 (+0.0000 to +0.0000)."),
        ({1: BASELINE[1]}, "the same in every run: dropout +0.0000."),
    ],
)
def test_the_words_come_from_the_figures(tmp_path: Path, others: dict[int, Any], words: str) -> None:
    report = make_report(tmp_path / "plan", {"baseline": BASELINE, "dropout": others})
    assert any(line.startswith("val_accuracy (more is better)") and words in line for line in report.findings())


def test_the_gap_in_words(tmp_path: Path) -> None:
    """It is less that is better, and what becomes of it after the best epoch is said as it is."""
    small = {seed: row | {"val_loss": 0.42} for seed, row in BETTER.items()}
    report = make_report(tmp_path / "a", {"baseline": BASELINE, "regularized": small})
    gap, at_end, change = Ablate().findings(report)[-3:]
    assert at_end.startswith("gap_at_end (less is better), against baseline with 0.5000: better: regularized -0.0800")
    assert gap.startswith("gap (less is better), against baseline with 0.1000: better: regularized -0.0800")
    assert "grows from 0.1000 to 0.5000 in baseline and grows from 0.0200 to 0.4200 in regularized" in change
    for version in (tmp_path / "a").glob("regularized/*/version_0"):
        (version / "epochs.csv").write_text("step,val_loss,val_loss_on_train\n10,0.5,0.49\n")
    change = Ablate().findings(Report(Ablate(), report.plan))[-1]
    assert "and shrinks from 0.0200 to 0.0100 in regularized" in change
    for version in (tmp_path / "a").glob("regularized/*/version_0"):
        (version / "epochs.csv").write_text("step,val_loss,val_loss_on_train\n10,0.50001,0.48\n")
    assert "and stays at 0.0200 in regularized" in Ablate().findings(Report(Ablate(), report.plan))[-1]


def test_what_is_missing_is_said_and_not_counted(tmp_path: Path) -> None:
    figures = {"baseline": BASELINE, "dropout": {1: BETTER[1], 2: None}}
    report = make_report(tmp_path / "plan", figures)
    with undrawn():
        told = report.write()
    assert "1 begun and not finished: dropout/seed_2" in told
    assert "1 not begun: dropout/seed_3" in told
    assert report.row("dropout", "val_accuracy").values == {1: 0.75}
    # A version that is finished counts, an older one that was stopped does not; one that was begun later neither.
    write_run(tmp_path / "plan/dropout/seed_2/version_1", BETTER[2])
    write_run(tmp_path / "plan/dropout/seed_2/version_2", None)
    report = Report(Ablate(), report.plan)
    assert report.row("dropout", "val_accuracy").values == {1: 0.75, 2: 0.76}
    assert [run.name for run, _ in report.missing] == ["dropout/seed_3"]


def test_runs_that_failed_are_told_with_the_error(tmp_path: Path) -> None:
    """Runs with one error share a line; a restarted or stopped run has not failed."""
    stopped = {"baseline": {1: {}, 2: None, 3: None}, "dropout": {1: None, 2: None, 3: None}}
    report = make_report(tmp_path / "plan", stopped)
    runs = {run.name: run for run in report.plan.runs()}
    logs = {
        "baseline/seed_2": "epoch 0: fine\nlstm-fused: error: no space left\n",
        "dropout/seed_1": "lstm-fused: error: no space left\n\n",
        "dropout/seed_2": "lstm-fused: error: no space left\n$ lstm-fused fit\n",
    }
    for name, text in logs.items():
        runs[name].log.write_text(text, encoding="utf-8")
    # Without a log, as a scheduler runs it, the summary has the error; that of a run which is tested yet has no error.
    for name, more in {"dropout/seed_3": {"error": "CUDA out of memory"}, "baseline/seed_3": {}}.items():
        summary = tmp_path / "plan" / name / "version_0/summary.json"
        summary.write_text(json.dumps({"stop_reason": "it ended", "finished": False} | more), encoding="utf-8")
    report = Report(Ablate(), report.plan)
    with undrawn():
        report.write()
    page = (tmp_path / "plan/report.md").read_text(encoding="utf-8")
    assert "- 2 failed: dropout/seed_1, baseline/seed_2: no space left\n" in page
    assert "- 1 failed: dropout/seed_3: CUDA out of memory\n" in page
    assert "- 2 begun and not finished: dropout/seed_2, baseline/seed_3\n" in page


def test_a_report_without_any_run(tmp_path: Path) -> None:
    report = make_report(tmp_path / "plan", {"baseline": {1: None}, "dropout": {1: None}})
    assert "2 begun and not finished" in report.write()
