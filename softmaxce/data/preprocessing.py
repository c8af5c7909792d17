"""Normalization of images, and the statistics for it."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..argument_types import Depth
from ..waiting import Counting
from .arrays import FULL_SCALE
from .decode import Decode, decoding_threads
from .resizing import DEFAULT as DEFAULT_RESIZING
from .resizing import Resizing
from .splits import InMemory, OnDisk, Split

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS_FROM = 5000  # images of a split on disk that are used for its mean and standard deviation
CHUNK = 4096 * 3 * 32 * 32  # bytes of images in memory at once: all of them as float64 would be eight times as large


@dataclass(frozen=True)
class Preprocessing:
    """The shape, resizing and normalization of a model's images; saved with the weights.

    Attributes:
        shape: (C, H, W).
        mean: C numbers, of pixels as fractions of the full scale, or of floating-point pixels as they are.
        std: C numbers, likewise.
        resizing: how files are decoded, and images of another size are brought to it.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resizing: Resizing = DEFAULT_RESIZING

    @property
    def depth(self) -> Depth:
        """The type of the pixels."""
        return self.resizing.depth

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "resizing": self.resizing.to_dict()}


def full_scale(dtype: torch.dtype) -> int:
    """What pixels of a type are divided by: 255, 65535, or 1 for floating-point ones."""
    return FULL_SCALE[depth_of(dtype)]


def depth_of(dtype: torch.dtype) -> Depth:
    """The name of a type of pixels."""
    return "uint16" if dtype is torch.uint16 else "float32" if dtype is torch.float32 else "uint8"


def resizing_of(split: Split) -> Resizing:
    """How the files of a split are resized; as files usually are, where it has none that we decode."""
    decode = split.decode if isinstance(split, OnDisk) else split.reading and split.reading.decode
    return decode.resizing if isinstance(decode, Decode) else DEFAULT_RESIZING


def mean_and_std(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each channel's mean and standard deviation; 1 instead of 0 for a constant channel.

    Of whole numbers as fractions of the full scale, and of floating-point pixels as they are.
    """
    total = torch.zeros(split.shape[0], dtype=torch.float64)
    squares, pixels, is_float = torch.zeros_like(total), 0, False
    for chunk in _chunks(split):  # [n, C, H, W]
        values = chunk.double().div_(full_scale(chunk.dtype))
        is_float |= chunk.dtype is torch.float32
        total += values.sum((0, 2, 3))
        squares += values.square_().sum((0, 2, 3))
        pixels += values.numel() // values.shape[1]
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp_min(0).sqrt()
    constant = std <= 1e-6 * mean.abs() if is_float else std < 1e-6  # floating-point pixels may be of any unit
    return tuple(mean.tolist()), tuple(torch.where(constant, 1.0, std).tolist())


def _chunks(split: Split) -> Iterator[Tensor]:
    """All images in memory, or STATISTICS_FROM of those on disk at most, a few at a time: [n, C, H, W]."""
    if isinstance(split, InMemory):
        yield from split.images.split(max(1, min(4096, CHUNK // max(1, math.prod(split.shape)))))
        return
    files = split.files[:: max(1, len(split) // STATISTICS_FROM)]
    threads = decoding_threads(files[0]) if isinstance(split.decode, Decode) else 1  # the user's may not be thread-safe
    with Counting("measuring mean and standard deviation", len(files)) as counting, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), 16 * threads):
            for image in pool.map(split.decode, files[start : start + 16 * threads]):
                counting.advance()
                yield image.unsqueeze(0)
