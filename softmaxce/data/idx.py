"""The files of the MNIST family, read without torchvision, whose import takes longer than they do."""

from pathlib import Path

import numpy as np
import torch

from .splits import InMemory

FILES = {"train": "train", "test": "t10k"}


def read_split(folder: Path, split: str) -> InMemory | None:
    """The `train` or `test` split in a folder of unpacked idx files; None if it is not there or not sound."""
    arrays = []
    for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
        array = read_idx(folder / f"{FILES[split]}-{kind}-ubyte", dimensions)
        if array is None:
            return None
        arrays.append(torch.from_numpy(array))
    images, labels = arrays
    if len(images) != len(labels) or not images.numel():
        return None
    return InMemory(images.unsqueeze(1), labels.long())


def read_idx(file: Path, dimensions: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None:
    """An idx file of bytes with so many dimensions; None if it is not there or says anything else.

    Two zeros, 8 for bytes, the number of dimensions; each dimension's size in 4 bytes, the highest first; the values.
    LeCun, Cortes & Burges, "The MNIST database", on the file format.
    """
    try:
        with file.open("rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
                return None
            values = np.fromfile(stream, np.uint8)
    except OSError:  # torchvision's reader is asked, and tells
        return None
    shape = tuple(np.frombuffer(header, ">i4", offset=4).tolist())
    fits = min(shape) >= 0 and int(np.prod(shape, dtype=np.float64)) == len(values)
    return values.reshape(shape) if fits else None
