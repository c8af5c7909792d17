"""The data sets that torchvision reads and downloads, and the messages where they cannot be read."""

import contextlib
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, MemoryRanOutError, ran_out_of_memory
from .idx import AGAIN, missing_files, read_split
from .splits import Dataset, InMemory


def _mnist_family(name: str, root: str, download: bool, classes: tuple[str, ...]) -> Dataset:
    """A data set that idx.py reads if its files are there; else torchvision downloads them, if `download` is set."""
    folder = Path(root, name, "raw")
    missing = missing_files(folder)
    if not missing:
        return Dataset(read_split(folder, "train"), read_split(folder, "test"), classes)
    if not download and len(missing) < 4:
        files = " and ".join(f"{file} (or {file}.gz)" for file in missing)
        raise DataError(
            f"{name}: {files} {'is' if len(missing) == 1 else 'are'} missing in {folder}. Put it there, or set "
            "data.download: true to fetch it"
        )
    return replace(_two_splits(name, root, download), classes=classes)


def _two_splits(name: str, root: str, download: bool) -> Dataset:
    train = _torchvision(name, root, download, {"train": True})
    test = _torchvision(name, root, download, {"train": False})
    return Dataset(_as_split(train), _as_split(test), tuple(train.classes))


def _torchvision(name: str, root: str, download: bool, options: dict[str, Any]) -> Any:
    """One of torchvision's data sets, downloaded if it is missing and `download` is set. Raises: DataError.

    torchvision compares what it downloads, and CIFAR's files each time before it unpickles them, with the official MD5
    sums. MD5 is broken for collisions, but not for second preimages: nobody can make other bytes with a given sum.
    """
    from torchvision import datasets

    make: Callable[..., Any] = getattr(datasets, name)
    try:
        return make(root, download=False, **options)
    except DAMAGED as error:
        missing = isinstance(error, RuntimeError) and "not found" in str(error)  # as torchvision's message says
        if not missing:
            location = _damaged_idx(Path(root, name, "raw")) or f"{name} in {root}"
            if ran_out_of_memory(error):
                raise MemoryRanOutError(
                    f"{location}: memory ran out while reading it: it is damaged, or very large"
                ) from None
            raise DataError(f"{location} cannot be read ({_message(error)}); {AGAIN}") from None
    files, folder, addresses = _locations(make, root, options)
    absent = [file for file in files if not (folder / file).is_file()]
    if not download and not absent:
        archives = any(file.endswith((".gz", ".zip")) for file in files)
        remedy = "unpack it there (tar -xf, unzip)" if archives else "which is not the publisher's; delete it"
        raise DataError(
            f"{name}: {folder} holds {' and '.join(files)}, {remedy}, or set data.download: true, which unpacks the "
            "publisher's own and fetches what differs from it"
        )
    if not download:
        wanted = ", ".join(f"{file} (unpacked)" if file.endswith((".tar.gz", ".zip")) else file for file in absent)
        raise DataError(
            f"{name} is not in {root} (expected in {folder}: {wanted}). Set data.download: true to download "
            "it, or data.root (or $SOFTMAXCE_DATA) to the folder that has it"
        )
    try:
        with contextlib.redirect_stdout(sys.stderr), _filtered_archives():
            return make(root, download=True, **options)
    except (*DAMAGED, tarfile.TarError, zipfile.BadZipFile) as error:  # URLError is an OSError
        raise DataError(
            f"{name} could not be downloaded ({_message(error)}). Put {', '.join(files)} into {folder}; "
            f"tried: {', '.join(addresses)}"
        ) from None


# Raised by the readers of idx, pickle, .pt and MATLAB files on damaged ones, as observed.
DAMAGED = (
    *(OSError, ValueError, RuntimeError, AssertionError, LookupError, TypeError, AttributeError, EOFError),
    *(ArithmeticError, MemoryError, ImportError, pickle.UnpicklingError, struct.error, zlib.error),
)


def _damaged_idx(folder: Path) -> str:
    """The first idx file in a folder that cannot be read, which torchvision does not name; empty if there is none."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    for file in sorted(file for file in folder.glob("*-ubyte") if file.is_file()):
        try:
            read_sn3_pascalvincent_tensor(str(file))
        except DAMAGED:  # this is the file to name
            return str(file)
    return ""


def _message(error: BaseException) -> str:
    if isinstance(error, AssertionError) and not str(error):
        return "its header or its size is wrong"  # the assertions in torchvision's reader
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())[:300]


@contextlib.contextmanager
def _filtered_archives() -> Iterator[None]:
    """Tar archives are unpacked without absolute paths, `..`, links that lead outside, and devices.

    torchvision sets no filter, and Python's default before 3.14 trusts the archive (PEP 706). Zip archives need none:
    zipfile drops such parts of a name.
    """
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _locations(make: Any, root: str, options: dict[str, Any]) -> tuple[list[str], Path, list[str]]:
    """The files of a torchvision data set, the folder where it looks for them, and where it downloads from."""
    if hasattr(make, "split_list"):  # SVHN
        entries = [make.split_list[split] for split in dict.fromkeys(("train", "test", options["split"]))]
        return [entry[1] for entry in entries], Path(root), [entry[0] for entry in entries]
    if hasattr(make, "filename"):  # CIFAR
        return [make.filename], Path(root), [make.url]
    folder = Path(root, make.__name__, "raw")  # the MNIST family: one folder per data set, several mirrors
    if hasattr(make, "url"):  # EMNIST comes in one archive
        return [make.url.rpartition("/")[2]], folder, [make.url]
    return [name for name, _ in make.resources], folder, list(make.mirrors)


def _as_split(data: Any) -> InMemory:
    """torchvision's arrays as uint8 [N, C, H, W] and int64 [N]. Raises: DataError if they do not have that form."""
    images = data.data if isinstance(data.data, Tensor) else torch.from_numpy(np.asarray(data.data))
    labels = torch.as_tensor(np.asarray(data.targets if hasattr(data, "targets") else data.labels)).long()
    if images.ndim == 3:  # gray
        images = images.unsqueeze(1)
    elif images.ndim == 4 and images.shape[-1] == 3:  # CIFAR is [N, H, W, C]
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.dtype != torch.uint8 or 0 in images.shape or labels.shape != images.shape[:1]:
        raise DataError(
            f"{type(data).__name__} in {data.root} is damaged: images {list(images.shape)} {images.dtype}, labels "
            f"{list(labels.shape)}; {AGAIN}"
        )
    return InMemory(images.contiguous(), labels)
