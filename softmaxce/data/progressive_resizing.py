"""Progressive resizing: training images grow from epoch to epoch. The size depends on the epoch alone."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..config.keys import Config

Shape = tuple[int, int, int]  # (C, H, W)
ALMOST = 1e-9  # what rounding may leave of a fraction of the epochs


@dataclass(frozen=True)
class SizeOfEpochs:
    """Successive epochs, counted from 1, that train on images of one size (H, W)."""

    first: int
    last: int
    size: tuple[int, int]

    def __str__(self) -> str:
        epochs = f"epoch {self.first}" if self.first == self.last else f"epochs {self.first} to {self.last}"
        return f"{self.size[0]}x{self.size[1]} in {epochs}"


def size_in_epoch(config: Config, shape: Shape, epoch: int) -> tuple[int, int]:
    """Height and width of the images that an epoch, counted from 1, trains on.

    They are those of Composer's ProgressiveResizing at the epoch's start, with e = (epoch - 1) / epochs:
    scale = initial_scale + (1 - initial_scale) * clip((e - delay) / (1 - finetune - delay), 0, 1),
    each side rounded to a multiple of size_increment; but all of `shape` in the last epoch.
    """
    resizing, (_, height, width) = config.progressive_resizing, shape
    if resizing is None or epoch >= config.epochs:
        return height, width
    elapsed, until = (epoch - 1) / config.epochs, 1 - resizing.finetune_fraction
    if elapsed > until - ALMOST:
        return height, width
    grown = elapsed - resizing.delay_fraction
    grown = grown / (until - resizing.delay_fraction) if grown > 0 else 0.0
    scale, step = resizing.initial_scale + (1 - resizing.initial_scale) * grown, resizing.size_increment
    sides = [min(side, max(step, round(side * scale / step) * step)) for side in (height, width)]
    return sides[0], sides[1]


def sizes_by_epoch(config: Config, shape: Shape) -> list[SizeOfEpochs]:
    """The sizes of all epochs, in their order; the last is that of `shape`."""
    spans: list[SizeOfEpochs] = []
    first = 1
    while first <= config.epochs:
        size = size_in_epoch(config, shape, first)
        epochs = range(first, config.epochs + 1)  # sizes never shrink from epoch to epoch
        count = bisect_right(epochs, size, key=lambda epoch: size_in_epoch(config, shape, epoch))
        spans.append(SizeOfEpochs(first, first + count - 1, size))
        first += count
    return spans


def describe_sizes(spans: Sequence[SizeOfEpochs]) -> str:
    """The sizes in a line; empty if there is one size only."""
    return f"training images grow: {', '.join(map(str, spans))}" if len(spans) > 1 else ""


def smaller_size(config: Config, shape: Shape, epoch: int) -> tuple[int, int] | None:
    """The size to which an epoch's images are resized; None if they have their full size."""
    size = size_in_epoch(config, shape, epoch)
    return None if size == shape[1:] else size


def resized(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Images [B, C, H, W] at a smaller size, bilinear and antialiased, channels last; themselves if it is None."""
    if size is None:
        return images
    smaller = functional.interpolate(images, size, mode="bilinear", antialias=True)
    return smaller.contiguous(memory_format=torch.channels_last)
