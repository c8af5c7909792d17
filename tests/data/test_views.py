"""Training images that are cut from whole images: which pixels they have, and that nothing else decides them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from softmaxce import build_run, train
from softmaxce.data.batches import Batches
from softmaxce.data.folder import image_folder
from softmaxce.data.keyed_augment import RandomErasing, RandomResizedCrop
from softmaxce.data.preprocessing import Preprocessing
from softmaxce.data.resizing import Resizing
from softmaxce.data.splits import InMemory, OnDisk
from softmaxce.data.views import image_keys
from softmaxce.data.whole_images import ManySizes, OneSize, whole_images
from softmaxce.errors import ConfigError, DataError
from softmaxce.inference.trained_model import TrainedModel
from softmaxce.report.training import storage
from softmaxce.runtime.process_group import ProcessGroup

CPU = torch.device("cpu")
SEED = 3


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 7 images of 5 x 20 to 25 x 100 pixels, all random."""
    folder, random = tmp_path_factory.mktemp("oblong"), np.random.default_rng(0)
    for name in ("left", "right"):
        (folder / name).mkdir()
        for i in range(7):
            pixels = random.integers(0, 256, (5 + 3 * i, 4 * (5 + 3 * i), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, empty at first."""
    monkeypatch.setenv("SOFTMAXCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def batches(split: Any, size: int = 4, **options: Any) -> Batches:
    images = Preprocessing(split.shape, (0.0,) * split.shape[0], (1.0,) * split.shape[0])
    augment = [RandomResizedCrop(), RandomErasing()]
    return Batches(split, images, batch_size=size, device=CPU, augment=augment, shuffle_seed=SEED, **options)


def by_label(made: Batches, epoch: int = 1, start: int = 0) -> dict[int, Tensor]:
    """Each image of an epoch, by its label."""
    return {
        int(label): image
        for images, labels in made.epoch(epoch, start)
        for image, label in zip(images, labels, strict=True)
    }


def numbered(folder: Path, **options: Any) -> Any:
    """The folder's images with their numbers as the labels."""
    split: Any = image_folder(size=12, test_fraction=0.0, root=str(folder), **options).train
    split.labels.copy_(torch.arange(14))
    return split


def test_an_image_of_an_epoch_is_the_same_in_memory_or_streamed_in_any_batch_process_and_after_resuming(
    oblong: Path,
) -> None:
    expected = by_label(batches(numbered(oblong)))
    assert sorted(expected) == list(range(14))
    for options in ({"in_memory": False, "workers": 0}, {"in_memory": False, "workers": 3}, {"cache": False}):
        split = numbered(oblong, **options)
        assert isinstance(split, OnDisk if "workers" in options else InMemory)
        others = by_label(batches(split, size=5))
        assert all(image.equal(others[label]) for label, image in expected.items()), options
    resumed = by_label(batches(numbered(oblong)), start=2)
    assert len(resumed) == 14 - 2 * 4
    shared: dict[int, Tensor] = {}
    for rank in range(3):
        shared |= by_label(batches(numbered(oblong), size=7, group=ProcessGroup(rank, 3)))
    assert sorted(shared) == list(range(14))
    for images in (resumed, shared):
        assert all(image.equal(expected[label]) for label, image in images.items())
    following = by_label(batches(numbered(oblong)), epoch=2)
    assert not any(image.equal(following[label]) for label, image in expected.items())


def test_a_view_is_torchvisions_crop_of_the_original_pixels_without_a_cache_size(oblong: Path) -> None:
    split = numbered(oblong, cache_size=None)
    made = by_label(batches(split))
    crop, erasing = v2.RandomResizedCrop((12, 12)), v2.RandomErasing(value=0)
    erased = 0
    for index, file in enumerate(split.files):
        torch.manual_seed(image_keys(SEED, 1, [index], 0)[0])
        expected = v2.functional.pil_to_tensor(crop(Image.open(file))) / 255
        torch.manual_seed(image_keys(SEED, 1, [index], 1)[0])
        hole = erasing(expected + 1) == 0
        erased += int(hole.any())
        assert made[index][~hole].equal(expected[~hole])
    assert 0 < erased < 14


@pytest.mark.parametrize("cache_size", [1.0, 1.5, 10.0])
def test_whole_images_are_shrunk_to_a_bounded_number_of_pixels_in_their_proportions_and_cached(
    oblong: Path, cache_folder: Path, cache_size: float
) -> None:
    split = numbered(oblong, cache_size=cache_size)
    whole = whole_images(split)
    assert isinstance(whole, ManySizes)
    for index, file in enumerate(split.files):
        original, image = Image.open(file), whole[index]
        if original.width * original.height <= (cache_size * 12) ** 2:
            assert np.array_equal(image, original)
        else:
            assert 0.75 * (cache_size * 12) ** 2 < image.width * image.height <= (cache_size * 12) ** 2
            assert np.array_equal(image, original.resize(image.size, Image.Resampling.BILINEAR))
            assert abs(image.width / image.height / 4 - 1) < 0.25
    entries = {file.name: file.stat().st_mtime_ns for file in cache_folder.iterdir()}
    assert len(entries) == 2  # the images of the model's size, and the whole ones
    again: Any = whole_images(numbered(oblong, cache_size=cache_size))
    assert all(np.array_equal(again[index], whole[index]) for index in range(14))
    assert {file.name for file in cache_folder.iterdir()} == set(entries)


def test_a_line_says_how_much_memory_whole_images_take_or_that_they_are_read_from_the_files(oblong: Path) -> None:
    def line(**options: Any) -> str:
        data = {
            "name": "image_folder",
            "root": str(oblong),
            "size": 12,
            "test_fraction": 0.0,
            "batch_size": 4,
            **options,
        }
        config = {"data": data, "model": "linear", "optimizer": {"name": "sgd", "lr": 0.1}, "epochs": 1}
        return storage(build_run(config))[0].partition("decoded: ")[2]

    pixels = 2 * sum(4 * height**2 for height in range(5, 24, 3))
    kept = f"in memory (data.in_memory: true); and whole images to augment, {3 * pixels / 1024:.1f} KiB: in memory"
    assert line(in_memory=True, augment=["random_resized_crop"], cache_size=100) == kept
    read = "; whole images to augment: read from the files in every epoch"
    assert line(augment=["random_resized_crop"], cache_size=None).endswith(read)
    assert line(in_memory=True, augment=["random_horizontal_flip"]) == "in memory (data.in_memory: true)"


def test_images_without_files_of_their_own_are_cut_as_they_are() -> None:
    pixels = torch.randint(256, (6, 1, 9, 8), dtype=torch.uint8)
    split = InMemory(pixels, torch.arange(6))
    assert isinstance(whole_images(split), OneSize)
    made = by_label(batches(split))
    torch.manual_seed(image_keys(SEED, 1, [4], 0)[0])
    expected = v2.functional.pil_to_tensor(v2.RandomResizedCrop((9, 8))(Image.fromarray(pixels[4, 0].numpy())))
    assert ((made[4] * 255).round() == expected).float().mean() > 0.6  # the rest may be erased
    two = by_label(batches(InMemory(pixels.expand(6, 2, 9, 8), torch.arange(6))))
    assert all(image.shape == (2, 9, 8) and image[0].equal(image[1]) for image in two.values())


@pytest.fixture(scope="module", params=[("uint16", 4), ("float32", 5), ("uint8", 2)], ids=str)
def many_channels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """Two classes of 7 .npy files of 5 x 20 to 23 x 92 pixels, their type and their channels."""
    (depth, channels), random = request.param, np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("channels")
    for name in ("left", "right"):
        (folder / name).mkdir()
        for i in range(7):
            pixels = random.random((5 + 3 * i, 4 * (5 + 3 * i), channels))
            scaled = pixels * 5 - 2 if depth == "float32" else pixels * np.iinfo(depth).max
            np.save(folder / name / f"{i}.npy", scaled.astype(depth))
    return folder, depth, channels


def test_views_of_any_channels_and_depth_are_torchvisions_of_each_channel_in_memory_cached_and_from_disk(
    many_channels: tuple[Path, str, int],
) -> None:
    folder, depth, channels = many_channels
    full = {"uint8": 255, "uint16": 65535, "float32": 1}[depth]
    preprocessing = Preprocessing((channels, 12, 12), (0.0,) * channels, (1.0,) * channels, Resizing(depth=depth))

    def views(**options: Any) -> dict[int, Tensor]:
        split = numbered(folder, channels=channels, depth=depth, **options)
        made = Batches(split, preprocessing, batch_size=4, device=CPU, augment=[RandomResizedCrop()], shuffle_seed=SEED)
        return by_label(made)

    views()  # which writes the cache
    everywhere = [views(**options, cache_size=100) for options in ({}, {"cache": False}, {"in_memory": False})]
    split = numbered(folder, channels=channels, depth=depth)
    for label, file in enumerate(split.files):
        torch.manual_seed(image_keys(SEED, 1, [label], 0)[0])
        pixels = torch.from_numpy(np.load(file).astype(np.float32).transpose(2, 0, 1))
        expected = v2.RandomResizedCrop((12, 12), antialias=True)(pixels) / full
        for found in everywhere:
            assert found[label].sub(expected).abs().max() < (1.1 / full if depth != "float32" else 1e-5)
            assert found[label].equal(everywhere[0][label])
    bounded = [views(**options, cache_size=1.0) for options in ({}, {"in_memory": False})]
    assert all(bounded[0][label].equal(bounded[1][label]) for label in range(14))
    assert not bounded[0][6].equal(everywhere[0][6])  # of 23 x 92 pixels, shrunk to 144


def test_the_view_of_an_array_by_ones_own_augmentation_must_be_an_array_of_its_type_and_size(
    many_channels: tuple[Path, str, int],
) -> None:
    folder, depth, channels = many_channels
    preprocessing = Preprocessing((channels, 12, 12), (0.0,) * channels, (1.0,) * channels, Resizing(depth=depth))
    split = numbered(folder, channels=channels, depth=depth)

    class Own:
        def __init__(self, view: Any) -> None:
            self.view = view

        def from_whole(self, image: Any, size: tuple[int, int], generator: torch.Generator) -> Any:
            return self.view(image)

    def made(view: Any) -> Batches:
        return Batches(split, preprocessing, batch_size=4, device=CPU, augment=[Own(view)], shuffle_seed=SEED)

    needed = rf"must return an array of {depth} \[12, 12, {channels}\]; it returned "
    for view, got in (
        (lambda image: image, rf"{depth} \[\d+, \d+, {channels}\]"),
        (lambda image: np.zeros((12, 12, channels)), "float64"),
        (lambda image: None, "builtins.NoneType"),
    ):
        with pytest.raises(ConfigError, match=needed + got):
            next(made(view).epoch(1))
    with pytest.raises(ConfigError, match=r"failed on an image of \d+x\d+ pixels: AttributeError"):
        next(made(lambda image: image.no).epoch(1))
    with pytest.raises(ConfigError, match="read-only"):
        next(made(lambda image: image.fill(0)).epoch(1))
    batch, _ = next(made(lambda image: np.resize(image, (12, 12, channels))).epoch(1))
    assert batch.shape == (4, channels, 12, 12)


def test_a_file_that_changed_after_it_was_read_is_one_line(oblong: Path, tmp_path: Path) -> None:
    split = numbered(oblong, cache=False)
    file = tmp_path / "cut.png"
    file.write_bytes(Path(split.files[0]).read_bytes()[:50])
    for workers in (0, 1):
        changed = OnDisk((str(file),) * 14, split.labels, split.shape, split.reading.decode, workers)
        with pytest.raises(DataError, match=r"cut\.png"):
            by_label(batches(changed))


CONFIG = {
    "epochs": 2,
    "data": {"name": "image_folder", "size": 12, "batch_size": 4, "augment": ["random_resized_crop", "random_erasing"]},
    "model": "linear",
    "optimizer": {"name": "sgd", "lr": 0.1},
}


def test_a_run_that_streams_and_is_resumed_has_the_bits_of_one_that_is_not(oblong: Path, tmp_path: Path) -> None:
    root = {"data.root": str(oblong)}
    whole = train(CONFIG, root, output=tmp_path / "whole", quiet=True)
    plain = train(CONFIG, root | {"data.augment": []}, output=tmp_path / "plain", quiet=True)
    half = root | {"data.in_memory": False, "data.workers": 1, "data.normalize": "imagenet"}
    straight = train(CONFIG, half | {"data.in_memory": True}, output=tmp_path / "straight", quiet=True)
    train(CONFIG, half | {"epochs": 1}, output=tmp_path / "half", quiet=True)
    resumed = train(CONFIG, half, resume=tmp_path / "half", output=tmp_path / "half", quiet=True)
    weights, others = (TrainedModel.open(run.folder).model.state_dict() for run in (straight, resumed))
    assert all(weights[name].equal(others[name]) for name in weights)
    test, expected = (TrainedModel.open(run.folder).split("test") for run in (whole, plain))
    assert isinstance(test, InMemory)
    assert isinstance(expected, InMemory)
    assert test.images.equal(expected.images)  # evaluation sees what it sees without augmentation
    recorded = [json.loads((run.folder / "run.json").read_text())["environment"]["data"] for run in (whole, plain)]
    assert recorded[0] == recorded[1]


OWN = """
from PIL import Image

class Left:
    def from_whole(self, image, size, generator):
        return image.crop((0, 0, image.height, image.height)).resize((size[1], size[0]))
class Small(Left):
    def from_whole(self, image, size, generator): return image
class Fails(Left):
    def from_whole(self, image, size, generator): return image.no
"""


def test_ones_own_augmentation_may_cut_from_whole_images_and_its_mistakes_are_one_line(
    oblong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    root = {"data.root": str(oblong), "data.test_fraction": 0, "data.normalize": "none"}
    split: Any = build_run(CONFIG, root | {"data.augment": ["own.py:Left"]}).train
    assert all(
        after != before for before, after in pairwise(image.sum() for images, _ in split.epoch(1) for image in images)
    )
    for name, message in (
        ("own.py:Small", "must return a PIL image of mode RGB with 12x12 pixels; it returned RGB, "),
        ("own.py:Fails", "failed on an image of 20x5 pixels: AttributeError"),
    ):
        with pytest.raises(ConfigError, match=f"the augmentation {name} {message}"):
            build_run(CONFIG, root | {"data.augment": [name]})
    with pytest.raises(ConfigError, match=r"own\.py:Left cuts from whole images, so it must be the first"):
        build_run(CONFIG, root | {"data.augment": ["random_crop", "own.py:Left"]})
