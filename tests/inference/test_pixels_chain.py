"""Runs on images of other channels and depths: every command sees the pixels that training saw."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from softmaxce import inspection, train
from softmaxce.config.from_python import load_config
from softmaxce.data.prefetch import decode_to
from softmaxce.errors import DataError
from softmaxce.explain.trained import explain_image, read_image
from softmaxce.inference.export import export
from softmaxce.inference.exported_model import ExportedModel
from softmaxce.inference.opening import classes_and_images
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.report.html.explanation_page import html
from softmaxce.runs.header import find_checkpoint
from softmaxce.serve.classifier import open_classifier

Array = NDArray[Any]
CASES: dict[str, tuple[int, str, float]] = {"five floats": (5, "float32", 1), "16 bits": (4, "uint16", 65535)}


@dataclass(frozen=True)
class Trained:
    """A run, its images by file [H, W, C], its config, and the value of a pixel that is 1 in the normalization."""

    folder: Path
    images: dict[str, Array]
    config: dict[str, Any]
    scale: float


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A linear model, trained for an epoch on .npy files of two classes."""
    channels, depth, scale = CASES[request.param]
    top = tmp_path_factory.mktemp("pixels")
    random = np.random.default_rng(3)
    images: dict[str, Array] = {}
    for label, name in enumerate(("dark", "light")):
        (top / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.random((6, 5, channels)) * 0.6 + 0.4 * label
            file = top / "images" / name / f"{i}.npy"
            images[str(file)] = (40 * pixels - 7 if scale == 1 else scale * pixels).astype(depth)
            np.save(file, images[str(file)])
    data = {"name": "image_folder", "root": str(top / "images"), "channels": channels, "depth": depth, "batch_size": 5}
    config = {
        "epochs": 1,
        "data": {**data, "test_fraction": 0.5, "augment": ["random_horizontal_flip", "cutout"]},
        "model": "linear",
        "optimizer": {"name": "sgd", "lr": 0.01},
    }
    return Trained(train(config, output=top / "run", quiet=True).folder, images, config, scale)


def by_hand(run: Trained, files: list[str]) -> Array:
    """Softmax of the weighted sums of (pixels - mean) / std, of the training images' own."""
    split = TrainedModel.open(run.folder).split("train")
    assert split.files is not None
    seen = np.stack([run.images[str(file)] for file in split.files]).astype(np.float64) / run.scale
    normalized = np.stack([run.images[file] for file in files]).astype(np.float64) / run.scale
    normalized = (normalized - seen.mean((0, 1, 2))) / seen.std((0, 1, 2))
    weights = load_file(find_checkpoint(run.folder))
    (weight,) = (value for name, value in weights.items() if name.endswith("1.weight"))
    (bias,) = (value for name, value in weights.items() if name.endswith("1.bias"))
    logits = normalized.transpose(0, 3, 1, 2).reshape(len(files), -1) @ weight.T.astype(np.float64) + bias
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def test_eval_predict_serve_and_an_exported_model_give_the_probabilities_of_a_hand_written_pipeline(
    trained: Trained,
) -> None:
    model = TrainedModel.open(trained.folder)
    split = model.split("test")
    assert split.files is not None
    files = [str(file) for file in split.files]
    expected = by_hand(trained, files)

    def close(rows: Any) -> None:
        assert np.abs(np.asarray(rows) - expected).max() < 1e-5

    def in_order(predictions: Any) -> list[list[float]]:
        by_class = [dict(zip(one.classes, one.probabilities, strict=True)) for one in predictions]
        return [[row[name] for name in model.classes] for row in by_class]

    close(model.probabilities_of(model.logits(split)[0]))
    close(in_order(model.predict_files(files)))
    close(in_order(model.predict([trained.images[file] for file in files])))
    folder = model.folder_split(Path(trained.config["data"]["root"]))
    assert folder.files is not None
    order = [list(map(str, folder.files)).index(file) for file in files]
    close(model.probabilities_of(model.logits(folder)[0])[order])
    exported = export(trained.folder)
    assert exported.certificate.float32.largest_difference < 1e-5
    described = exported.metadata.to_dict()
    assert described["input"]["type"] == trained.config["data"]["depth"]
    close(in_order(ExportedModel.open(exported.file).predict(files)))
    for path in (trained.folder, exported.file):
        _, shape, resizing = classes_and_images(path)
        pixels = [decode_to(shape, resizing).array_of(Path(file).read_bytes(), file) for file in files]
        with open_classifier(path) as classifier:
            close([classifier.probabilities(image).result() for image in pixels])


def test_a_torch_export_program_takes_the_pixels_of_the_files(trained: Trained) -> None:
    exported = export(trained.folder, format="torch_export")
    assert exported.certificate.float32.largest_difference < 1e-5
    program = torch.export.load(exported.file).module()
    files = list(trained.images)
    pixels = np.stack([trained.images[file] for file in files]).transpose(0, 3, 1, 2)
    assert np.abs(program(torch.from_numpy(pixels)).detach().numpy() - by_hand(trained, files)).max() < 1e-5


def test_an_explanation_and_the_inspection_show_such_images(trained: Trained, tmp_path: Path) -> None:
    model = TrainedModel.open(trained.folder)
    image = read_image(model, Path(next(iter(trained.images))))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), next(iter(trained.images.values())))
    assert "data:image/png" in html(explain_image(model, image, 0, title="an image"))
    config = load_config(trained.config)
    source = inspection.read(config)
    inspected = inspection.inspect(config, source)
    assert inspected.files is not None
    assert inspected.files.modes == {f"{image.shape[0]} x {inspected.depth}": len(trained.images)}
    pictures, _ = inspection.samples(config, source, 4)
    assert pictures.shape == (4, 6, 5, 3)
    assert 0 <= pictures.min() < pictures.max() <= 1


def test_images_as_a_tensor_of_another_depth_are_refused(trained: Trained) -> None:
    with pytest.raises(DataError, match=r"must be (float32|uint16)"):
        TrainedModel.open(trained.folder).predict(torch.zeros(1, 5, 6, 5, dtype=torch.uint8))
