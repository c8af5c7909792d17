"""How images of any size get a model's size: as Pillow does it, and everywhere alike."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageOps

from softmaxce import train
from softmaxce.argument_types import Fit, Interpolation
from softmaxce.data.decode import Decode
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
            pixels = random.integers(0, 256, (80, 320, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / (f"{i}.png" if i % 2 else f"{i}.jpg"))
    data = {"name": "image_folder", "root": str(tmp_path / "images"), "size": 16, "test_fraction": 0.5}
    data |= {"fit": "pad", "interpolation": "bicubic", "decode": "reduced"}
    config = {"epochs": 1, "data": data, "model": "linear", "optimizer": {"name": "sgd", "lr": 0.1}}
    run = train(config, output=tmp_path / "run", quiet=True).folder
    model = TrainedModel.open(run)
    split = model.split("test")
    assert isinstance(split, InMemory)
    assert split.files
    shape, resizing = model.preprocessing.shape, model.preprocessing.resizing
    assert resizing == Resizing("pad", "bicubic", "reduced") == classes_and_images(run)[2]
    folder = model.folder_split(tmp_path / "images")
    assert isinstance(folder, InMemory)
    assert folder.files
    streamed = TrainedModel.open(run)
    streamed.config.source.arguments["in_memory"] = False
    on_disk = streamed.split("test", check_images=False)
    assert isinstance(on_disk, OnDisk)
    probabilities = model.probabilities_of(model.logits("test")[0])
    for pixels, file, row in zip(split.images, split.files, probabilities, strict=True):
        opened = Image.open(file)
        opened.draft(None, (32, 32))
        expected = ImageOps.pad(opened, (16, 16), Image.Resampling.BICUBIC)
        assert np.array_equal(pixels.permute(1, 2, 0), expected)
        assert pixels.equal(folder.images[folder.files.index(file)])
        assert pixels.equal(on_disk.decode(file))
        assert pixels.equal(decode_to(shape, resizing)(file))
        assert pixels.equal(read_image(model, Path(file)))
        images = (Image.open(file), np.asarray(Image.open(file)))  # which are decoded already
        for image in (file, *(images if file.endswith(".png") else ())):
            (prediction,) = model.predict(image)
            assert dict(zip(prediction.classes, prediction.probabilities, strict=True)) == pytest.approx(
                dict(zip(model.classes, row.tolist(), strict=True)), abs=1e-6
            )
    assert open_classifier(run).resizing == resizing


@pytest.mark.parametrize("name", ["photo.jpg", "turned.jpg", "several.mpo", "gray.jpg", "photo.png"])
def test_a_reduced_file_has_the_pixels_of_the_full_one_but_for_a_few_levels(name: str, tmp_path: Path) -> None:
    """And it is what Pillow's draft mode gives, at twice the size."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    image = image.convert("L") if name == "gray.jpg" else image
    exif = Image.Exif()
    exif[0x112] = 6 if name == "turned.jpg" else 1  # a quarter turn
    file = str(tmp_path / name)
    if name == "several.mpo":
        image.save(file, save_all=True, append_images=[image.rotate(180)])
    else:
        image.save(file, exif=exif)
    full = Decode(3, (32, 48), whole_pixels=4 * 32 * 48)
    reduced = replace(full, resizing=Resizing(decode="reduced"))
    difference = np.abs(full.array(file).astype(int) - reduced.array(file))
    assert difference.mean() < 1
    assert difference.any() == (name != "photo.png")
    drafted = Image.open(file)
    drafted.draft(None, (96, 96))
    assert drafted.size == ((640, 480) if name == "photo.png" else (160, 120))  # a quarter: 80 x 60 is less than twice
    upright = ImageOps.exif_transpose(drafted).convert("RGB")
    expected = np.asarray(ImageOps.fit(upright, (48, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(reduced.array(file).transpose(1, 2, 0), expected)
    assert np.array_equal(reduced.array_of(Path(file).read_bytes(), name).transpose(1, 2, 0), expected)
    assert reduced.whole(file).size == full.whole(file).size
    assert np.abs(np.asarray(full.whole(file)).astype(int) - np.asarray(reduced.whole(file))).mean() < 1


def test_a_fit_that_does_not_exist_is_one_line_with_those_that_do() -> None:
    data = {"name": "image_folder", "fit": "letterbox"}
    with pytest.raises(ConfigError, match="fit must be one of crop, pad, stretch, got 'letterbox'"):
        train({"epochs": 1, "data": data, "model": "linear", "optimizer": {"name": "sgd", "lr": 0.1}})
