"""The data sets that have names, as splits of uint8 images; the only place that knows torchvision's and scikit-learn's.

A set that is not on disk is downloaded if the config says `download: true`; else, and where the download fails, the
error names the files, the folder where they go, and the addresses that were tried.
"""

import contextlib
import importlib.util
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..argument_types import NonNegativeFloat, PositiveInt
from ..errors import DataError, MemoryRanOutError, ran_out_of_memory
from .idx import read_split
from .splits import InMemory, Source

FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def digits() -> Source:
    """1,797 handwritten digits, 8x8 grey, 10 classes, inside scikit-learn: no download.

    The test set is every fifth image, whatever the seed, so that all runs compare. UCI "Optical Recognition of
    Handwritten Digits" (Alpaydin & Kaynak 1998); its 17 grey levels are spread over 0 to 255.
    """
    pixels, labels = _sklearns_digits()
    images = torch.from_numpy(np.rint(pixels * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8)
    whole = InMemory(images, torch.from_numpy(labels).long())
    tested = torch.arange(len(labels)) % 5 == 0
    return Source(
        train=whole.take((~tested).nonzero().flatten()),
        test=whole.take(tested.nonzero().flatten()),
        classes=tuple(map(str, range(10))),
    )


def _sklearns_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """scikit-learn's load_digits, but for its import, which takes longer: pixels [N, 64], 0 to 16, and labels [N]."""
    spec = importlib.util.find_spec("sklearn")
    (folder,) = spec.submodule_search_locations if spec is not None and spec.submodule_search_locations else ("",)
    file = Path(folder, "datasets", "data", "digits.csv.gz")
    if not file.is_file():
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        return pixels, labels
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def mnist(*, root: str, download: bool) -> Source:
    """70,000 handwritten digits, 28x28 grey, 10 classes (LeCun, Cortes & Burges)."""
    return _mnist_family("MNIST", root, download, tuple(map(str, range(10))))


def fashion_mnist(*, root: str, download: bool) -> Source:
    """70,000 articles of clothing, 28x28 grey, 10 classes (Xiao, Rasul & Vollgraf 2017)."""
    return _mnist_family("FashionMNIST", root, download, FASHION)


def kmnist(*, root: str, download: bool) -> Source:
    """70,000 cursive Japanese characters, 28x28 grey, 10 classes (Clanuwat et al. 2018)."""
    return _mnist_family("KMNIST", root, download, KANA)


def emnist(
    split: Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"] = "balanced",
    *,
    root: str,
    download: bool,
) -> Source:
    """Handwritten letters and digits, 28x28 grey, 10 to 62 classes (Cohen et al. 2017).

    Args:
        split: which of its six arrangements.
    """

    def upright(data: Any) -> InMemory:
        plain = _plain(data)
        labels = plain.labels - 1 if split == "letters" else plain.labels  # letters are counted from 1
        return InMemory(plain.images.transpose(2, 3).contiguous(), labels)  # the files hold them transposed

    options = {"split": split}
    train = _torchvision("EMNIST", root, download, {**options, "train": True})
    test = _torchvision("EMNIST", root, download, {**options, "train": False})
    classes = train.classes[1:] if split == "letters" else train.classes
    return Source(upright(train), upright(test), tuple(classes))


def cifar10(*, root: str, download: bool) -> Source:
    """60,000 photographs, 32x32 colour, 10 classes (Krizhevsky 2009)."""
    return _two_splits("CIFAR10", root, download)


def cifar100(*, root: str, download: bool) -> Source:
    """60,000 photographs, 32x32 colour, 100 classes (Krizhevsky 2009)."""
    return _two_splits("CIFAR100", root, download)


def svhn(extra: bool = False, *, root: str, download: bool) -> Source:
    """99,289 street-view house numbers, 32x32 colour, 10 classes (Netzer et al. 2011).

    73,257 are for training, 26,032 for the test.

    Args:
        extra: train on the 531,131 easier ones too.
    """
    train = _plain(_torchvision("SVHN", root, download, {"split": "train"}))
    if extra:
        more = _plain(_torchvision("SVHN", root, download, {"split": "extra"}))
        train = InMemory(torch.cat([train.images, more.images]), torch.cat([train.labels, more.labels]))
    test = _plain(_torchvision("SVHN", root, download, {"split": "test"}))
    return Source(train, test, tuple(map(str, range(10))))


def synthetic(
    classes: PositiveInt = 10,
    size: PositiveInt = 16,
    channels: PositiveInt = 1,
    train: PositiveInt = 1024,
    test: PositiveInt = 256,
    noise: NonNegativeFloat = 0.25,
    *,
    seed: int,
) -> Source:
    """Made-up images for smoke tests: one random pattern a class, plus noise.

    Args:
        classes: how many.
        size: height and width, in pixels.
        channels: of each image.
        train: how many training images.
        test: how many test images.
        noise: its standard deviation, of pixels in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, channels, size, size, generator=generator)

    def split(count: int) -> InMemory:
        labels = torch.arange(count) % classes
        pixels = patterns[labels] + noise * torch.randn(count, channels, size, size, generator=generator)
        return InMemory((pixels.clamp(0, 1) * 255).to(torch.uint8), labels)

    return Source(split(train), split(test), tuple(f"class{i}" for i in range(classes)))


# -- torchvision's ----------------------------------------------------------------------------------------------------


def _mnist_family(name: str, root: str, download: bool, classes: tuple[str, ...]) -> Source:
    """A set whose files are read here where they are sound; else torchvision fetches them, or says what is wrong."""
    folder = Path(root, name, "raw")
    train, test = read_split(folder, "train"), read_split(folder, "test")
    if train is not None and test is not None:
        return Source(train, test, classes)
    return replace(_two_splits(name, root, download), classes=classes)


def _two_splits(name: str, root: str, download: bool) -> Source:
    train = _torchvision(name, root, download, {"train": True})
    test = _torchvision(name, root, download, {"train": False})
    return Source(_plain(train), _plain(test), tuple(train.classes))


def _torchvision(name: str, root: str, download: bool, options: dict[str, Any]) -> Any:
    """One of torchvision's data sets, downloaded only if it is not there. Raises: DataError.

    torchvision compares what it downloads, and CIFAR's files each time before it unpickles them, with the official MD5
    sums: making other bytes that have a given sum (a second preimage) is beyond anybody's means.
    """
    from torchvision import datasets

    make: Callable[..., Any] = getattr(datasets, name)
    try:
        return make(root, download=False, **options)
    except DAMAGED as error:
        if not (isinstance(error, RuntimeError) and "not found" in str(error)):  # torchvision's word for: not there
            place = _damaged_idx(Path(root, name, "raw")) or f"{name} in {root}"
            if ran_out_of_memory(error):
                raise MemoryRanOutError(
                    f"{place}: memory ran out while reading it: it is damaged, or very large"
                ) from None
            raise DataError(f"{place} cannot be read ({_told(error)}); {AGAIN}") from None
    files, folder, addresses = _whereabouts(make, root, options)
    if not download and all((folder / file).is_file() for file in files):
        raise DataError(
            f"{name}: {', '.join(files)} lie in {folder}, but packed; unpack them there (gunzip, tar -xf, unzip), "
            "or set data.download: true, which unpacks the publisher's own and fetches what differs from them"
        )
    if not download:
        raise DataError(
            f"{name} is not in {root} (wanted in {folder}: {', '.join(files)}). Set data.download: true to fetch it, "
            "or data.root (or $SOFTMAXCE_DATA) to the folder that has it"
        )
    try:
        with contextlib.redirect_stdout(sys.stderr), _filtered_archives():
            return make(root, download=True, **options)
    except (*DAMAGED, tarfile.TarError, zipfile.BadZipFile) as error:  # URLError is an OSError
        raise DataError(
            f"{name} could not be downloaded ({_told(error)}). Put {', '.join(files)} into {folder}; "
            f"tried: {', '.join(addresses)}"
        ) from None


AGAIN = "delete its files and get them again"
# What the readers of idx, pickle, .pt and MATLAB files were seen to raise on damaged ones.
DAMAGED = (
    *(OSError, ValueError, RuntimeError, AssertionError, LookupError, TypeError, AttributeError, EOFError),
    *(ArithmeticError, MemoryError, ImportError, pickle.UnpicklingError, struct.error, zlib.error),
)


def _damaged_idx(folder: Path) -> str:
    """The first file of the MNIST family's format that cannot be read, as torchvision does not say which it was."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    for file in sorted(folder.glob("*-ubyte")):
        try:
            read_sn3_pascalvincent_tensor(str(file))
        except DAMAGED:  # it looks for the file that cannot be read, and tells it
            return str(file)
    return ""


def _told(error: BaseException) -> str:
    if isinstance(error, AssertionError) and not str(error):
        return "its header or its size is wrong"  # so torchvision's reader says
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())[:300]


@contextlib.contextmanager
def _filtered_archives() -> Iterator[None]:
    """Have tar archives unpacked without absolute paths, `..`, links that lead out, and devices.

    torchvision gives no filter, and Python's own default before 3.14 trusts the archive (PEP 706). Zip archives need
    none: zipfile leaves such parts of a name out.
    """
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _whereabouts(make: Any, root: str, options: dict[str, Any]) -> tuple[list[str], Path, list[str]]:
    """The files of a torchvision data set, the folder where it looks for them, and where it downloads from."""
    if hasattr(make, "split_list"):  # SVHN
        entries = [make.split_list[split] for split in dict.fromkeys(("train", "test", options["split"]))]
        return [entry[1] for entry in entries], Path(root), [entry[0] for entry in entries]
    if hasattr(make, "filename"):  # CIFAR
        return [make.filename], Path(root), [make.url]
    folder = Path(root, make.__name__, "raw")  # the MNIST family: one folder a class, several mirrors
    if hasattr(make, "url"):  # EMNIST comes in one archive
        return [make.url.rpartition("/")[2]], folder, [make.url]
    return [name for name, _ in make.resources], folder, list(make.mirrors)


def _plain(data: Any) -> InMemory:
    """torchvision's arrays as uint8 [N, C, H, W] and int64 [N]. Raises: DataError if they are none."""
    images = data.data if isinstance(data.data, Tensor) else torch.from_numpy(np.asarray(data.data))
    labels = torch.as_tensor(np.asarray(data.targets if hasattr(data, "targets") else data.labels)).long()
    if images.ndim == 3:  # grey
        images = images.unsqueeze(1)
    elif images.ndim == 4 and images.shape[-1] == 3:  # CIFAR keeps [N, H, W, C]
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.dtype != torch.uint8 or 0 in images.shape or labels.shape != images.shape[:1]:
        raise DataError(
            f"{type(data).__name__} in {data.root} is damaged: images {list(images.shape)} {images.dtype}, labels "
            f"{list(labels.shape)}; {AGAIN}"
        )
    return InMemory(images.contiguous(), labels)
