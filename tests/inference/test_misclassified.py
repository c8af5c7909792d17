"""Which images are wrong: their files or indices, by eval, explain and the report's analysis."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from softmaxce import InMemory, train
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


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images that have no files of their own."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    train("digits", {"model": "linear", "epochs": 1}, output=folder, quiet=True, reporters=[])
    return folder


@pytest.mark.parametrize("split", ["test", "validation"])
def test_eval_names_images_without_files_by_the_index_that_explain_takes(
    split: str, digits: Path, app: typer.Typer
) -> None:
    model = TrainedModel.open(digits, device="cpu")
    images = model.split(split)
    assert isinstance(images, InMemory)
    assert images.files is None
    predictions = model.predict(images.images)
    wrong = {i: p.class_name for i, p in enumerate(predictions) if p.class_name != model.classes[images.labels[i]]}
    assert wrong
    command = ["eval", str(digits), "--device", "cpu", "--split", split]
    listed = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["misclassified"]
    assert {image["index"]: image["predicted"] for image in listed} == wrong
    for image in listed:
        assert image["file"] is None
        assert image["label"] == model.classes[images.labels[image["index"]]]
        assert image["probability"] == pytest.approx(predictions[image["index"]].probability, abs=1e-6)
    first, printed = listed[0], CliRunner().invoke(app, command).stdout
    assert f"\n  {split} image {first['index']}: {first['label']}, predicted {first['predicted']} (" in printed
    explain = shlex.split(
        printed.splitlines()[-1].partition(": softmaxce ")[2].replace("RUN", shlex.quote(str(digits)))
    )
    explained = json.loads(CliRunner().invoke(app, [*explain, "--json"]).stdout)
    assert explained["predicted_class"] == first["predicted"]
