"""Reads the idx files of the MNIST family without torchvision, whose import takes longer than reading them."""

import math
import os
from pathlib import Path

import numpy as np
import torch

from ..files import open_file
from .splits import InMemory

FILES = {"train": "train", "test": "t10k"}


def read_split(folder: Path, split: str) -> InMemory | None:
    """The `train` or `test` split in a folder of unpacked idx files; None if files are missing or invalid."""
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
    """An idx file of bytes with so many dimensions; None if it is missing or invalid.

    Two zero bytes, 8 for uint8, the number of dimensions; each dimension's size as a big-endian int32; the values.
    LeCun, Cortes & Burges, "The MNIST database", on the file format.
    """
    try:
        with open_file(file) as stream:
            header = stream.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
                return None
            shape = tuple(np.frombuffer(header, ">i4", offset=4).tolist())
            values = os.fstat(stream.fileno()).st_size - len(header)
            if min(shape) < 0 or math.prod(shape) != values:
                return None
            return np.fromfile(stream, np.uint8, values).reshape(shape)
    except (OSError, ValueError):  # torchvision's reader is tried next, and reports the error
        return None
