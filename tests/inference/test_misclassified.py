"""Which images are wrong: their files, by eval, explain and the report's analysis."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from softmaxce import train
from softmaxce.inference.analysis import analyze
from softmaxce.inference.evaluate import evaluate
from softmaxce.inference.trained_model import TrainedModel


@pytest.fixture(scope="module")
def folder(app: typer.Typer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise, whose classes nobody can know, and a run trained on them."""
    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    for name in ("left", "right"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(40):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i:02d}.png")
    config = {
        "epochs": 1,
        "data": {"name": "image_folder", "root": str(folder / "images"), "batch_size": 16},
        "model": "linear",
        "optimizer": {"name": "adam", "lr": 0.01},
    }
    train(config, output=folder / "run", quiet=True, reporters=[])
    return folder


@pytest.fixture(scope="module")
def wrong_by_prediction(folder: Path) -> dict[str, tuple[str, float]]:
    """The test images whose file is predicted as another class than its folder's, one by one: file -> prediction."""
    model = TrainedModel.open(folder / "run", device="cpu")
    files = model.split("test").files
    assert files is not None
    wrong = {}
    for file in files:
        (prediction,) = model.predict([file])
        if prediction.class_name != Path(file).parent.name:
            wrong[file] = prediction.class_name, prediction.probability
    assert wrong
    return wrong


def test_eval_names_every_file_that_predict_gets_wrong(
    folder: Path, wrong_by_prediction: dict[str, tuple[str, float]], app: typer.Typer
) -> None:
    result = evaluate(folder / "run", device="cpu")
    assert {image.file: image.predicted for image in result.misclassified} == {
        file: name for file, (name, _) in wrong_by_prediction.items()
    }
    for image in result.misclassified:
        assert image.probability == pytest.approx(wrong_by_prediction[image.file][1], abs=1e-6)
    assert all(image.label == Path(image.file).parent.name for image in result.misclassified)
    printed = CliRunner().invoke(app, ["eval", str(folder / "run"), "--device", "cpu"]).stdout
    most_confident = max(wrong_by_prediction, key=lambda file: wrong_by_prediction[file][1])
    assert f"misclassified: {len(wrong_by_prediction)} images" in printed
    assert f"\n  {most_confident}: {Path(most_confident).parent.name}, predicted " in printed
    listed = json.loads(CliRunner().invoke(app, ["eval", str(folder / "run"), "--device", "cpu", "--json"]).stdout)
    assert [image["file"] for image in listed["misclassified"]] == [image.file for image in result.misclassified]


def test_the_report_and_explain_name_the_file(
    folder: Path, wrong_by_prediction: dict[str, tuple[str, float]], app: typer.Typer
) -> None:
    mistakes = analyze(folder / "run").mistakes
    assert {mistake.file for mistake in mistakes} <= set(wrong_by_prediction)
    first = mistakes[0]
    shown = CliRunner().invoke(app, ["explain", str(folder / "run"), "--index", str(first.index)])
    assert f"({first.file})" in shown.stdout.replace("\n", "")
