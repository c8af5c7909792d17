"""The rows of `eval --save-predictions`, against eval's own JSON and the probabilities that predict prints."""

import csv
import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from softmaxce.inference.trained_model import TrainedModel
from softmaxce.report import prediction_table

ROOT = Path(__file__).parents[2]

CONFIG = """\
epochs: 1
data: {name: image_folder, root: images, size: 8, batch_size: 8, test_fraction: 0.5}
model: linear
optimizer: {name: sgd, lr: 0.05}
"""
CLASSES = ("=1+1", "cat", 'red, "quoted"')  # the first is a formula to a spreadsheet


@pytest.fixture
def run(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on images of three classes with odd names, in the current folder."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(1)
    for name in CLASSES:
        Path("images", name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(f"images/{name}/{i}.png")
    Path("config.yaml").write_text(CONFIG)
    done = CliRunner().invoke(app, ["train", "config.yaml", "--output", "run", "-q"])
    assert done.exit_code == 0, done.output
    return Path("run")


def test_each_image_has_a_row_with_evals_metrics_and_predicts_probabilities(app: typer.Typer, run: Path) -> None:
    done = CliRunner().invoke(
        app, ["eval", str(run), "--save-predictions", "table.csv", "--json", "--temperature", "2"]
    )
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)
    with Path("table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = ["'=1+1", "cat", 'red, "quoted"']
    columns = ["index", "path", "label", "prediction", "correct", "loss", *(f"probability.{name}" for name in CLASSES)]
    assert list(rows[0]) == columns
    assert [int(row["index"]) for row in rows] == list(range(metrics["images"]))
    assert {row["label"] for row in rows} == set(names)
    assert np.mean([int(row["correct"]) for row in rows]) == pytest.approx(metrics["accuracy"])
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(metrics["nll"])
    for row in rows:
        file = row["path"]
        assert Path(file).parent.name == CLASSES[names.index(row["label"])]
        (prediction,) = TrainedModel.open(run, temperature=2).predict(file)
        expected = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        actual = {name: float(row[f"probability.{name}"]) for name in CLASSES}
        assert actual == pytest.approx(expected, abs=1e-6)
        assert float(row["loss"]) == pytest.approx(-math.log(actual[Path(file).parent.name]))
        assert row["prediction"] == names[CLASSES.index(prediction.class_name)]
        assert int(row["correct"]) == (row["prediction"] == row["label"])


def test_parquet_holds_the_rows_of_csv_and_the_docs_lines_find_the_worst_images_in_both(
    app: typer.Typer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas, parquet = pytest.importorskip("pandas"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(prediction_table, "VALUES", 12)  # four images of three classes
    for name in ("test.csv", "test.parquet"):
        done = CliRunner().invoke(app, ["eval", str(run), "--save-predictions", name, "--json"])
        assert done.exit_code == 0, done.output
    plain, typed = pandas.read_csv("test.csv"), pandas.read_parquet("test.parquet")
    assert parquet.ParquetFile("test.parquet").num_row_groups == -(-len(plain) // 4) > 1
    for name in ("label", "prediction"):
        plain[name] = plain[name].str.removeprefix("'")
    plain["correct"] = plain["correct"].astype(bool)
    pandas.testing.assert_frame_equal(typed, plain, check_exact=True)
    lines = [line for line in (ROOT / "docs/cli.md").read_text().splitlines() if line.startswith("pandas.read_")]
    for line, name in zip(lines, ("read_csv", "read_parquet"), strict=True):
        assert name in line
        worst = eval(line, {"pandas": pandas})
        assert list(worst.index) == list(np.argsort(-plain["loss"], kind="stable")[:10])
        assert list(worst["path"]) == list(plain["path"][worst.index])


def test_an_earlier_table_is_replaced_and_nothing_else(app: typer.Typer, run: Path) -> None:
    line = ["eval", str(run), "--save-predictions"]
    tables = ["table.csv", *(["table.parquet"] if importlib.util.find_spec("pyarrow") else [])]
    for table in [*tables, *tables]:
        assert CliRunner().invoke(app, [*line, table]).exit_code == 0
    assert list(Path().glob("*.tmp")) == []
    Path("other.csv").write_text("somebody's")
    Path("other.parquet").write_text("somebody's")
    Path("link.csv").symlink_to("/dev/null")
    for file, reason in {
        "other.csv": "exists and is not a table of predictions of softmaxce; choose another file",
        "link.csv": "is not a regular file",
        "images": "is a folder",
        "table.txt": "is written as CSV or Parquet",
        "other.parquet": "exists and is not a table of predictions" if tables[1:] else "softmaxce[parquet]",
        "config.yaml/table.csv": "Not a directory",
    }.items():
        done = CliRunner().invoke(app, [*line, file])
        assert done.exit_code == 2
        (message,) = done.stderr.splitlines()
        assert reason in message
    assert Path("other.csv").read_text() == Path("other.parquet").read_text() == "somebody's"


def test_without_pyarrow_one_line_says_what_to_install(
    app: typer.Typer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as Python marks a module that is not there
    done = CliRunner().invoke(app, ["eval", str(run), "--save-predictions", "a.parquet"])
    assert done.exit_code == 2
    line = "--save-predictions a.parquet: needs pyarrow; install with: pip install 'softmaxce[parquet]'"
    assert done.stderr == f"error: {line}\n"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_that_cannot_be_written_whole_is_not_there(app: typer.Typer, run: Path, kind: str) -> None:
    import resource

    if kind == "parquet":
        pytest.importorskip("pyarrow")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = ["eval", str(run), "--save-predictions", f"table.{kind}"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # Python ignores SIGXFSZ: writing fails with EFBIG
    try:
        done = CliRunner().invoke(app, line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.exit_code == 2
    assert f"table.{kind}: cannot be written" in done.stderr
    assert [name for name in os.listdir() if name.startswith("table")] == []  # noqa: PTH208
