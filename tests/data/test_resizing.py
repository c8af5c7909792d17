"""How images of any size get a model's size: as Pillow does it, and everywhere alike."""

from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageOps

from softmaxce import train
from softmaxce.argument_types import Fit, Interpolation
from softmaxce.data.prefetch import decode_to
from softmaxce.data.resizing import FILTERS, Resizing
from softmaxce.data.splits import InMemory, OnDisk
from softmaxce.errors import ConfigError
from softmaxce.explain.trained import read_image
from softmaxce.inference.opening import classes_and_images
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.serve.classifier import open_classifier


def test_each_fit_is_pillows_own() -> None:
    random = np.random.default_rng(0)
    pillows = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": Image.Image.resize}
    for fit, interpolation in product(get_args(Fit), get_args(Interpolation)):
        for height, width in ((100, 400), (400, 100), (31, 33), (5, 6)):
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            expected = pillows[fit](image, (28, 20), FILTERS[interpolation])
            assert np.array_equal(Resizing(fit, interpolation)(image, (20, 28)), expected)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_padding_leaves_a_row_of_a_line_that_is_too_thin_for_the_size(size: tuple[int, int]) -> None:
    padded = np.asarray(Resizing("pad")(Image.new("L", size, 200), (8, 8)))
    assert (padded == 200).sum() == 8
    assert (padded == 0).sum() == 56


def test_a_run_pads_images_in_the_same_way_wherever_it_sees_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (10, 40, 3), dtype=np.uint8)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    data = {"name": "image_folder", "root": str(tmp_path / "images"), "size": 16, "test_fraction": 0.5}
    data |= {"fit": "pad", "interpolation": "bicubic"}
    config = {"epochs": 1, "data": data, "model": "linear", "optimizer": {"name": "sgd", "lr": 0.1}}
    run = train(config, output=tmp_path / "run", quiet=True).folder
    model = TrainedModel.open(run)
    split = model.split("test")
    assert isinstance(split, InMemory)
    assert split.files
    shape, resizing = model.preprocessing.shape, model.preprocessing.resizing
    assert resizing == Resizing("pad", "bicubic") == classes_and_images(run)[2]
    folder = model.folder_split(tmp_path / "images")
    assert isinstance(folder, InMemory)
    assert folder.files
    streamed = TrainedModel.open(run)
    streamed.config.source.arguments["in_memory"] = False
    on_disk = streamed.split("test", check_images=False)
    assert isinstance(on_disk, OnDisk)
    probabilities = model.probabilities_of(model.logits("test")[0])
    for pixels, file, row in zip(split.images, split.files, probabilities, strict=True):
        expected = ImageOps.pad(Image.open(file), (16, 16), Image.Resampling.BICUBIC)
        assert np.array_equal(pixels.permute(1, 2, 0), expected)
        assert pixels.equal(folder.images[folder.files.index(file)])
        assert pixels.equal(on_disk.decode(file))
        assert pixels.equal(decode_to(shape, resizing)(file))
        assert pixels.equal(read_image(model, Path(file)))
        for image in (file, Image.open(file), np.asarray(Image.open(file))):
            (prediction,) = model.predict(image)
            assert dict(zip(prediction.classes, prediction.probabilities, strict=True)) == pytest.approx(
                dict(zip(model.classes, row.tolist(), strict=True)), abs=1e-6
            )
    assert open_classifier(run).resizing == resizing


def test_a_fit_that_does_not_exist_is_one_line_with_those_that_do() -> None:
    data = {"name": "image_folder", "fit": "letterbox"}
    with pytest.raises(ConfigError, match="fit must be one of crop, pad, stretch, got 'letterbox'"):
        train({"epochs": 1, "data": data, "model": "linear", "optimizer": {"name": "sgd", "lr": 0.1}})
