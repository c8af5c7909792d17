"""`train --folds`: every fold is trained and counted once, and the out-of-fold predictions are those of its runs."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

CONFIG = """\
epochs: 2
data: {name: image_list, file: labels.csv, group: patient, batch_size: 16}
model: linear
optimizer: {name: sgd, lr: 0.05}
"""


@pytest.fixture(scope="module")
def trained(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 images of 16 patients, and cv/ with the runs of three folds; fold 1 was interrupted at first."""
    folder = tmp_path_factory.mktemp("folds")
    rng = np.random.default_rng(0)
    rows = ["path,label,patient"]
    for index in range(48):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{'cat' if index // 3 % 2 else 'dog'},p{index // 3}")
    (folder / "labels.csv").write_text("\n".join(rows))
    (folder / "c.yaml").write_text(CONFIG)
    fold = ["--set", "data.folds=3", "--set", "data.fold=1", "--epochs", "1"]
    run(app, folder, "train", str(folder / "c.yaml"), *fold, "--output", str(folder / "cv/fold-1"), "-q")
    return folder


def run(app: typer.Typer, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_folds_resume_and_their_statistics_and_predictions_are_those_of_the_runs(
    app: typer.Typer, trained: Path
) -> None:
    line = ["train", str(trained / "c.yaml"), "--folds", "3", "--resume", "auto", "--output", str(trained / "cv")]
    events = run(app, trained, *line, "--json", "--save-predictions", str(trained / "oof.csv"))
    assert [event["epochs_done"] for event in events if event["event"] == "start"] == [1, 0, 0]
    last = events[-1]
    assert (last["event"], last["split"]) == ("folds", "test")
    accuracies = [event["test"]["accuracy"] for event in events if event["event"] == "end"]
    assert last["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 3)
    assert last["accuracy"]["deviation"] == pytest.approx(statistics.stdev(accuracies))

    table = rows_of(trained / "oof.csv")
    assert [int(row["index"]) for row in table] == list(range(48))
    assert len({row["path"] for row in table}) == 48
    patients = {str(trained / row["path"]): row["patient"] for row in rows_of(trained / "labels.csv")}
    assert len({(patients[row["path"]], row["fold"]) for row in table}) == 16
    for fold in ("1", "2", "3"):
        file = trained / f"fold-{fold}.csv"
        run(app, trained, "eval", str(trained / f"cv/fold-{fold}"), "--save-predictions", str(file))
        mine = [row for row in table if row["fold"] == fold]
        alone = [row | {"index": other["index"], "fold": fold} for row, other in zip(rows_of(file), mine, strict=True)]
        assert mine == alone

    again = run(app, trained, *line, "--json", "--save-predictions", str(trained / "oof.parquet"))
    assert not [event for event in again if event["event"] == "start"]
    import pandas

    assert pandas.read_parquet(trained / "oof.parquet").fold.tolist() == [int(row["fold"]) for row in table]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "3", "--seeds", "2"], "--folds: cannot be combined with --seeds"),
        (["--folds", "3", "--nproc", "2"], "--folds: trains each run in one process"),
        (["--save-predictions", "x.csv"], "--save-predictions: is for the predictions of --folds"),
        (["--folds", "3", "--save-predictions", "x.txt"], "--save-predictions x.txt: is written as CSV or Parquet"),
        (["--folds", "17"], "--folds 17: 16 groups cannot be divided into 17 folds"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_trained(
    app: typer.Typer, trained: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(trained)
    done = CliRunner().invoke(app, ["train", "c.yaml", *arguments])
    assert done.exit_code == 2
    assert f"error: {message}" in done.stderr.splitlines()[-1]
    assert not (trained / "runs").exists()
