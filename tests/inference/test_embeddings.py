"""`predict --embeddings`: the last layer makes the predictions of them; files that NumPy reads, of any length."""

import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.special import softmax
from torch import nn
from typer.testing import CliRunner

from softmaxce.config.components import build
from softmaxce.data.paths import Unreadable
from softmaxce.inference.embeddings import FeaturesAndLogits, embedding_predictor
from softmaxce.inference.predict import Prediction
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.report.embeddings import EmbeddingsFile

from ..helpers import config

MODELS = ("linear", "mlp", "lenet", "cnn", "airbench", "resnet9", "torchvision:mobilenet_v3_small")


def predict(app: typer.Typer, *words: str | Path) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, words)])


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layer_makes_the_logits_of_the_features(name: str) -> None:
    supplied = {"in_channels": 3, "image_size": (32, 32), "num_classes": 7, "pretrained_weights": "none"}
    torch.manual_seed(0)
    model = build(config(model=name).model, supplied).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        model(images)  # lazy layers
        both = FeaturesAndLogits(model, 7)(images)
        expected = model(images)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        made = last(both[:, :-7])
    assert both.shape == (5, last.in_features + 7)
    torch.testing.assert_close(both[:, -7:], expected)
    factor = (expected * made).sum() / made.square().sum()  # airbench and resnet9 multiply the logits by a constant
    torch.testing.assert_close(made * factor, expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_a_last_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(Exception, match=r"there are no embeddings: this model's last layer is no nn\.Linear"):
        FeaturesAndLogits(model, 7)(torch.zeros(1, 3, 4, 4))


def last_layer(run: Path) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Weight [K, D] and bias [K] of an mlp."""
    weights = load_file(run / "best.safetensors")
    name = max(name for name in weights if name.endswith(".weight"))
    return weights[name], weights[name.removesuffix("weight") + "bias"]


@pytest.mark.parametrize("tta", ["none", "flip", "flip_crops"])
def test_the_last_layer_makes_the_probabilities_of_the_features_also_of_several_views(folder: Path, tta: str) -> None:
    model = TrainedModel.open(folder / "run", tta=tta, temperature=2.0)
    found: list[NDArray[np.float32]] = []
    predictor = embedding_predictor(model, found.append)
    images = np.random.default_rng(0).integers(0, 256, (20, *model.preprocessing.shape), dtype=np.uint8)
    rows = predictor.probabilities(images)
    np.testing.assert_allclose(rows, model.probabilities(torch.from_numpy(images)).numpy(), atol=1e-6)
    weight, bias = last_layer(folder / "run")
    np.testing.assert_allclose(softmax((found[0] @ weight.T + bias) / 2, 1), rows, atol=1e-5)


def test_the_file_holds_features_paths_and_predictions_in_the_order_of_the_images(
    app: typer.Typer, folder: Path, tmp_path: Path
) -> None:
    images, file = tmp_path / "images", tmp_path / "embeddings.npz"
    shutil.copytree(folder / "images", images)
    odd = images / os.fsdecode(b"odd \xff name.png")  # no UTF-8
    shutil.copy(images / "red" / "00.png", odd)
    (images / "red" / "01.png").write_text("no image")
    line = (folder / "run", images, "--json", "--skip-bad", "--batch-size", "7")
    plain = predict(app, *line)
    done = predict(app, *line, "--embeddings", file)
    assert done.exit_code == 0, done.output
    assert done.stdout == plain.stdout
    expected = [json.loads(row) for row in plain.stdout.splitlines()]
    files = sorted(images.rglob("*.png"), key=os.fsencode)
    assert sorted(tmp_path.iterdir()) == [file, images], "nothing else is left"
    with np.load(file) as data:  # which unpickles nothing
        paths = [Path(path) for path in data["paths"].tolist()]
        readable = [name for name in files if name.parts[-2:] != ("red", "01.png")]
        assert sorted(paths, key=os.fsencode) == readable
        assert odd in paths
        assert data["classes"][data["predictions"]].tolist() == [row["class"] for row in expected]
        assert data["probabilities"].tolist() == [row["probability"] for row in expected]
        weight, bias = last_layer(folder / "run")
        made = softmax(data["features"] @ weight.T + bias, 1)
        np.testing.assert_allclose(made.max(1), data["probabilities"], atol=1e-5)
        assert data["features"][paths.index(odd)].tolist() == pytest.approx(
            data["features"][paths.index(images / "red" / "00.png")].tolist(), abs=1e-5
        )
    again = predict(app, folder / "run", images / "red" / "00.png", "--embeddings", file)
    assert again.exit_code == 0, "an earlier file is replaced"
    assert np.load(file)["features"].shape == (1, 16)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    rows, width, batch = 40_000, 256, 1000  # 41 MB of features
    random = np.random.default_rng(0)
    first = random.standard_normal((batch, width), dtype=np.float32)

    def results(file: EmbeddingsFile) -> Iterator[Prediction | Unreadable]:
        for start in range(0, rows, batch):
            file.add_features(first + start)
            for i in range(start, start + batch):
                yield Prediction(f"/some/folder/{i:06d}.png", ("b",), (0.5,))

    tracemalloc.start()
    with EmbeddingsFile(tmp_path / "a.npz", ("a", "b")) as file:
        assert sum(1 for _ in file.noted(results(file))) == rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    data = np.load(tmp_path / "a.npz")
    assert data["paths"].tolist() == [f"/some/folder/{i:06d}.png" for i in range(rows)]
    np.testing.assert_array_equal(data["features"][-batch:], first + (rows - batch))
    assert set(data["predictions"].tolist()) == {1}


def test_mistakes_are_one_line_and_status_2_and_write_nothing(
    app: typer.Typer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = folder / "images" / "red" / "00.png"
    Path("other.npz").write_bytes(b"somebody's")
    np.savez("arrays.npz", a=np.zeros(3))
    Path("model.onnx").write_bytes(b"")
    before = {name: name.read_bytes() for name in Path().iterdir()}
    for run, file, part in (
        ("run", "features.csv", "give it a name that ends in .npz"),
        ("run", "other.npz", "exists and is not a file of embeddings of softmaxce"),
        ("run", "arrays.npz", "exists and is not a file of embeddings of softmaxce"),
        ("run", ".", "is a folder"),
        ("run", "nowhere/a.npz", "No such file or directory"),
        ("model.onnx", "a.npz", "gives probabilities alone"),
    ):
        done = predict(app, folder / run if run == "run" else run, image, "--embeddings", file)
        assert done.exit_code == 2, done.output
        (line,) = done.stderr.splitlines()
        assert part in line
    text = tmp_path / "text.png"
    text.write_text("no image")
    done = predict(app, folder / "run", text, "--embeddings", "a.npz")
    text.unlink()
    assert done.exit_code == 2
    assert {name: name.read_bytes() for name in Path().iterdir()} == before
