"""What another number of epochs, a long warm-up, or a validation loss that is not finite does to a run."""

import contextlib
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softmaxce import session
from softmaxce.build import build_run
from softmaxce.errors import RunError, TrainingError
from softmaxce.inference.metrics import compute_metrics
from softmaxce.report.training import JsonLines
from softmaxce.runs import folder as runfolder
from softmaxce.runs.resume import check_resumable
from softmaxce.session import Level, Reporter
from softmaxce.training.dry_run import dry_run
from softmaxce.training.evaluation import loss_of, predict
from softmaxce.training.loop import _update_best, fit
from softmaxce.training.run import Progress
from softmaxce.training.tally import Scores

from ..helpers import config


class Warnings(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, level: Level, text: str) -> None:
        if level is Level.WARNING:
            self.texts.append(text)


def train(folder: Path, resume: bool = False, **changes: Any) -> list[str]:
    reporter = Warnings()
    session.train(build_run(config(**changes)), folder, resume=resume, reporters=[reporter])
    return reporter.texts


def test_more_epochs_on_a_schedule_that_spans_the_run_are_announced_with_both_learning_rates(tmp_path: Path) -> None:
    assert train(tmp_path / "cosine", epochs=2) == []
    (text,) = train(tmp_path / "cosine", resume=True, epochs=4)
    # 3 steps an epoch; half a cosine over 6 steps at the 6th, then over 12 at the 7th
    last, following = (0.05 * (1 + math.cos(math.pi * part)) / 2 for part in (5 / 6, 6 / 12))
    assert text.endswith(
        "schedule cosine spans the run: with 4 epochs instead of 2 the next step's learning rate is "
        f"{following:.3g}; the last step's was {last:.3g}"
    )
    train(tmp_path / "constant", epochs=1, schedule="constant")
    assert train(tmp_path / "constant", resume=True, epochs=2, schedule="constant") == []


def test_a_run_is_not_resumed_with_fewer_epochs_than_it_has_trained(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=3)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.name != ".lock"}
    with pytest.raises(RunError, match="3 epochs are trained or begun, so epochs must be at least 3, got 1"):
        train(tmp_path / "run", resume=True, epochs=1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.name != ".lock"} == before


def test_a_warm_up_longer_than_the_run_is_announced(tmp_path: Path) -> None:
    schedule = {"name": "cosine", "warmup_epochs": 5}
    (text,) = train(tmp_path / "run", epochs=1, schedule=schedule)
    assert text == "schedule.warmup_epochs is 5 and epochs is 1: the learning rate does not reach optimizer.lr"


def test_a_run_too_short_for_unfreezing_or_averaging_is_trained_and_says_so(tmp_path: Path) -> None:
    tuning = {"freeze": "backbone", "unfreeze_epoch": 2}
    frozen, averaged = train(tmp_path / "run", epochs=1, fine_tuning=tuning, swa={"start_epoch": 3})
    assert frozen == "fine_tuning.unfreeze_epoch is 2 and epochs is 1: the last layer alone is trained"
    assert averaged == "swa.start_epoch is 3 and epochs is 1: nothing is averaged"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_never_the_best(bad: float) -> None:
    progress, settings = Progress(), config(best_metric="loss")
    best = []
    for epoch, value in enumerate([bad, 2.0, bad, 1.0, 1.5], 1):
        progress.epoch = epoch
        best.append(_update_best(progress, Scores(value, 0.5, 10), settings))
    assert best == [False, True, False, True, False]
    assert (progress.best_epoch, progress.best_value, progress.epochs_without_improvement) == (4, 1.0, 1)


def test_a_run_without_a_finite_validation_loss_says_that_no_epoch_is_the_best(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch.nn import functional\n"
        "def loss(logits, targets):\n"
        "    value = functional.cross_entropy(logits, targets)\n"
        "    return value if logits.requires_grad else value * float('nan')\n"
    )
    for metric, expected in (
        ("loss", ["no epoch is the best, as none has a finite validation loss; the last one is tested"]),
        ("accuracy", []),
    ):
        assert train(tmp_path / metric, loss=f"{tmp_path / 'own.py'}:loss", best_metric=metric, epochs=2) == expected


def test_metrics_of_a_model_whose_logits_are_nan_are_nan_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits, labels = torch.full((4, 3), torch.nan), torch.tensor([0, 1, 2, 0])
        metrics = compute_metrics(logits, labels, math.nan, ("a", "b", "c"))
        logits[0] = torch.tensor([3.0, 0.0, 0.0])
        mixed = compute_metrics(logits, labels, math.nan, ("a", "b", "c"))
    assert np.isnan([metrics.nll, metrics.brier, metrics.ece, mixed.nll, mixed.brier, mixed.ece]).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_training_and_dry_run_report_nats_per_image_whatever_the_reduction(reduction: str) -> None:
    loss = {"name": "softmax_cross_entropy", "reduction": reduction}
    run = build_run(config(loss=loss, optimizer={"name": "sgd", "lr": 0.0}, model="linear"))
    images, labels = next(iter(run.train.epoch(1)))
    expected = torch.nn.functional.cross_entropy(run.model(images), labels).item()
    assert dry_run(run)["loss"] == pytest.approx(expected, rel=1e-5)
    epoch = next(iter(fit(run)))
    logits, labels = predict(run.model, run.train)
    assert epoch.train.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert loss_of(run.loss, logits, labels) == pytest.approx(epoch.train.loss, rel=1e-4)


def test_an_epoch_is_appended_to_the_metrics_and_half_a_line_is_cut_when_the_run_is_resumed(tmp_path: Path) -> None:
    file, line = tmp_path / runfolder.METRICS, {"event": "epoch", "learning_rate": 0.1}
    written = 0
    runfolder.append_metrics(tmp_path, {**line, "epoch": 1})
    inode = file.stat().st_ino
    for epoch in range(2, 200):
        runfolder.append_metrics(tmp_path, {**line, "epoch": epoch})
        written = max(written, file.stat().st_size)
    assert file.stat().st_ino == inode  # a file written anew would be another
    with file.open("ab") as stream:
        stream.write(b'{"event": "epoch", "epo')
    assert len(runfolder.read_metrics(tmp_path)) == 199
    runfolder.cut_metrics(tmp_path, 150)
    assert [json.loads(text)["epoch"] for text in file.read_text().splitlines()] == list(range(1, 151))


def test_a_full_standard_output_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as full:  # closing it fails as well
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(TrainingError, match=r"^standard output: No space left on device; make room on that disk"):
            session.train(build_run(config(epochs=1)), tmp_path / "run", reporters=[JsonLines()])
    assert runfolder.read_record(tmp_path / "run")["message"] == "standard output: No space left on device"


def test_a_run_of_another_split_is_refused_with_the_option_that_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    data = {"name": "image_folder", "root": str(tmp_path)}
    runfolder.write_config(folder, config(data={**data, "split_by": "shuffle"}).to_dict())
    with pytest.raises(RunError, match=r"or keep the run's splits with --set data.split_by=shuffle$"):
        check_resumable(folder, config(data=data))
