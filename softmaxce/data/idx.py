"""Reads the idx files of the MNIST family, packed or not, without torchvision, whose import takes longer."""

import gzip
import math
import os
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch

from ..errors import DataError, MemoryRanOutError
from ..files import open_file
from .splits import InMemory

SPLITS = {"train": "train", "test": "t10k"}
KINDS = {"images-idx3-ubyte": 3, "labels-idx1-ubyte": 1}  # and their numbers of dimensions
PACKED = ".gz"
MAX_RATIO = 1032  # deflate makes no more bytes than this of one (zlib's documentation)
AGAIN = "delete its files and download them again"


def missing_files(folder: Path) -> list[str]:
    """The names of those of the four files that a folder has neither unpacked nor packed."""
    names = [f"{split}-{kind}" for split in SPLITS.values() for kind in KINDS]
    return [name for name in names if not any((folder / each).exists() for each in (name, name + PACKED))]


def read_split(folder: Path, split: str) -> InMemory:
    """The `train` or `test` split in a folder of idx files. Raises: DataError, with the file that cannot be read."""
    files = [folder / f"{SPLITS[split]}-{kind}" for kind in KINDS]
    files = [file if file.exists() else file.with_name(file.name + PACKED) for file in files]
    images, labels = (
        torch.from_numpy(_read(file, dimensions)) for file, dimensions in zip(files, KINDS.values(), strict=True)
    )
    if len(images) != len(labels):
        raise DataError(f"{files[0]} has {len(images)} images and {files[1].name} {len(labels)} labels; {AGAIN}")
    return InMemory(images.unsqueeze(1), labels.long())


def _read(file: Path, dimensions: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        return read_idx(file, dimensions)
    except MemoryError:
        raise MemoryRanOutError(f"{file}: memory ran out while reading it: it is damaged, or very large") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{file} cannot be read ({reason}); {AGAIN}") from None


def read_idx(file: Path, dimensions: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An idx file of bytes with so many dimensions, compressed with gzip if its name ends in .gz.

    Two zero bytes, 8 for uint8, the number of dimensions; each dimension's size as a big-endian int32; the values.
    LeCun, Cortes & Burges, "The MNIST database", on the file format.

    Raises: OSError, ValueError, EOFError, zlib.error if it is missing or damaged; MemoryError.
    """
    with open_file(file) as stream:
        packed = file.suffix == PACKED
        content: BufferedIOBase = gzip.GzipFile(fileobj=stream) if packed else stream
        most = os.fstat(stream.fileno()).st_size * (MAX_RATIO if packed else 1)
        header = content.read(4 + 4 * dimensions)
        if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError(f"it does not begin as an idx file of bytes with {dimensions} dimension(s)")
        shape = tuple(np.frombuffer(header, ">i4", offset=4).tolist())
        size = math.prod(shape)
        if min(shape) <= 0 or size > most:
            raise ValueError(f"its header says {'x'.join(map(str, shape))} values, which it cannot have")
        values = np.empty(shape, np.uint8)
        if content.readinto(values.data.cast("B")) != size or content.read(1):
            raise ValueError(f"its header says {'x'.join(map(str, shape))} values; it has fewer or more")
        return values
