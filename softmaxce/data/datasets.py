"""The built-in data sets, as splits of uint8 images.

A data set that is not on disk is downloaded if the config has `download: true`; else, and where the download fails, the
error names the files, the folder they belong in, and the addresses that were tried.
"""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..argument_types import NonNegativeFloat, PositiveInt, Seed
from .splits import Dataset, InMemory
from .torchvision_sets import _as_split, _mnist_family, _torchvision, _two_splits

FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def digits() -> Dataset:
    """1,797 handwritten digits, 8x8 gray, 10 classes, inside scikit-learn: no download.

    The test set is every fifth image, whatever the seed, so that runs can be compared. UCI "Optical Recognition of
    Handwritten Digits" (Alpaydin & Kaynak 1998); its 17 gray levels are scaled to 0 to 255.
    """
    pixels, labels = _sklearns_digits()
    images = torch.from_numpy(np.rint(pixels * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8)
    whole = InMemory(images, torch.from_numpy(labels).long())
    tested = torch.arange(len(labels)) % 5 == 0
    return Dataset(
        train=whole.take((~tested).nonzero().flatten()),
        test=whole.take(tested.nonzero().flatten()),
        classes=tuple(map(str, range(10))),
    )


def _sklearns_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """As scikit-learn's load_digits, without its slow import: pixels [N, 64], 0 to 16, and labels [N]."""
    spec = importlib.util.find_spec("sklearn")
    (folder,) = spec.submodule_search_locations if spec is not None and spec.submodule_search_locations else ("",)
    file = Path(folder, "datasets", "data", "digits.csv.gz")
    if not file.is_file():
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        return pixels, labels
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def mnist(*, root: str, download: bool) -> Dataset:
    """70,000 handwritten digits, 28x28 gray, 10 classes (LeCun, Cortes & Burges)."""
    return _mnist_family("MNIST", root, download, tuple(map(str, range(10))))


def fashion_mnist(*, root: str, download: bool) -> Dataset:
    """70,000 articles of clothing, 28x28 gray, 10 classes (Xiao, Rasul & Vollgraf 2017)."""
    return _mnist_family("FashionMNIST", root, download, FASHION)


def kmnist(*, root: str, download: bool) -> Dataset:
    """70,000 cursive Japanese characters, 28x28 gray, 10 classes (Clanuwat et al. 2018)."""
    return _mnist_family("KMNIST", root, download, KANA)


def emnist(
    split: Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"] = "balanced",
    *,
    root: str,
    download: bool,
) -> Dataset:
    """Handwritten letters and digits, 28x28 gray, 10 to 62 classes (Cohen et al. 2017).

    Args:
        split: which of its six arrangements.
    """

    def upright(data: Any) -> InMemory:
        stored = _as_split(data)
        labels = stored.labels - 1 if split == "letters" else stored.labels  # letters are counted from 1
        return InMemory(stored.images.transpose(2, 3).contiguous(), labels)  # the files have them transposed

    options = {"split": split}
    train = _torchvision("EMNIST", root, download, {**options, "train": True})
    test = _torchvision("EMNIST", root, download, {**options, "train": False})
    classes = train.classes[1:] if split == "letters" else train.classes
    return Dataset(upright(train), upright(test), tuple(classes))


def cifar10(*, root: str, download: bool) -> Dataset:
    """60,000 photographs, 32x32 color, 10 classes (Krizhevsky 2009)."""
    return _two_splits("CIFAR10", root, download)


def cifar100(*, root: str, download: bool) -> Dataset:
    """60,000 photographs, 32x32 color, 100 classes (Krizhevsky 2009)."""
    return _two_splits("CIFAR100", root, download)


def svhn(extra: bool = False, *, root: str, download: bool) -> Dataset:
    """99,289 street-view house numbers, 32x32 color, 10 classes (Netzer et al. 2011).

    73,257 are for training, 26,032 for the test.

    Args:
        extra: train on the 531,131 easier ones too.
    """
    train = _as_split(_torchvision("SVHN", root, download, {"split": "train"}))
    if extra:
        more = _as_split(_torchvision("SVHN", root, download, {"split": "extra"}))
        train = InMemory(torch.cat([train.images, more.images]), torch.cat([train.labels, more.labels]))
    test = _as_split(_torchvision("SVHN", root, download, {"split": "test"}))
    return Dataset(train, test, tuple(map(str, range(10))))


def synthetic(
    classes: PositiveInt = 10,
    size: PositiveInt = 16,
    channels: PositiveInt = 1,
    train: PositiveInt = 1024,
    test: PositiveInt = 256,
    noise: NonNegativeFloat = 0.25,
    image_seed: Seed = 0,
) -> Dataset:
    """Synthetic images for smoke tests: one random pattern per class, plus noise.

    The run's seed does not change them, so that runs with several seeds have the same images.

    Args:
        classes: how many.
        size: height and width, in pixels.
        channels: of each image.
        train: how many training images.
        test: how many test images.
        noise: its standard deviation, of pixels in [0, 1].
        image_seed: seed of the patterns and the noise.
    """
    generator = torch.Generator().manual_seed(image_seed)
    patterns = torch.rand(classes, channels, size, size, generator=generator)

    def split(count: int) -> InMemory:
        labels = torch.arange(count) % classes
        pixels = patterns[labels] + noise * torch.randn(count, channels, size, size, generator=generator)
        return InMemory((pixels.clamp(0, 1) * 255).to(torch.uint8), labels)

    return Dataset(split(train), split(test), tuple(f"class{i}" for i in range(classes)))
