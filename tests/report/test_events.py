"""TensorBoard's own reader finds in the event files what metrics.jsonl holds."""

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar, by tag and step, as TensorBoard shows it."""
    reader = accumulator.EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    return {tag: {e.step: e.value for e in reader.Scalars(tag)} for tag in reader.Tags()["scalars"]}


def test_every_epoch_is_logged_once_also_of_a_run_that_was_resumed(app: typer.Typer, small: Path) -> None:
    folder = small.parent / "run"
    train = ["train", "--config", str(small), "--output", str(folder), "--log", "tensorboard", "-q"]
    assert CliRunner().invoke(app, train).exit_code == 0
    resume = ["train", "--resume", str(folder), "--epochs", "3", "--log", "tensorboard", "-q"]
    done = CliRunner().invoke(app, resume)
    assert done.exit_code == 0, done.output
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scalars = logged(folder)
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    for split in ("train", "validation"):
        for name in ("loss", "accuracy"):
            expected = {line["epoch"]: pytest.approx(line[split][name], rel=1e-6) for line in epochs}
            assert scalars[f"{name}/{split}"] == expected
    assert set(scalars["learning_rate"]) == {1, 2, 3}
    assert scalars["final_accuracy/test"][3] == pytest.approx(
        json.loads((folder / "run.json").read_text())["test"]["accuracy"], rel=1e-6
    )


def test_without_the_extra_one_line_says_what_to_install(
    app: typer.Typer, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as Python marks a module that is not there
    folder = small.parent / "run"
    done = CliRunner().invoke(app, ["train", "--config", str(small), "--output", str(folder), "--log", "tensorboard"])
    assert done.exit_code == 2
    assert "pip install 'softmaxce[tensorboard]'" in " ".join(done.stderr.split())
    assert not folder.exists()
