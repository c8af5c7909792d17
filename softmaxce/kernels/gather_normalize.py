"""Batches on the CPU in one pass: the chosen images' bytes are read once, and written once as normalised numbers."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray  # type: ignore[attr-defined]
from torch import Tensor

from .numba_runtime import at, compiled, parts_of, prefetch, run, take_part
from .tensor_memory import address, dense

f32, i64, u8 = np.float32, np.int64, np.uint8

AHEAD, LINE = 2, 64  # images lie anywhere in memory: the one after the next is fetched, by lines of so many bytes


class Job(ctypes.Structure):
    """What a pass is to do. Names ending in _ are addresses.

    Attributes:
        next_part: the first part that no thread has taken yet.
        images_: [all, channels, pixels] uint8.
        chosen_: [batch] int64, which of them; 0 for those from `first` on.
        outside: written: 1 if one of them is none of the images; it is then left out.
        mean_, scale_: [channels] float32; a byte becomes (byte - mean) * scale.
        batch_: [batch, pixels, channels] float32, written.
        parts: the images are shared out in so many.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("next_part", "images_", "chosen_", "first", "mean_", "scale_", "batch_"),
            *("all", "size", "channels", "pixels", "parts", "outside"),
        )
    )


def walk(job_: Any) -> None:
    """The pass."""
    job = carray(job_, 1)[0]
    channels, pixels = job.channels, job.pixels
    images, chosen, batch = at(job.images_, u8(0)), at(job.chosen_, i64(0)), at(job.batch_, f32(0))
    mean, scale = at(job.mean_, f32(0)), at(job.scale_, f32(0))
    while True:
        part = take_part(job_)
        if part >= job.parts:
            return
        last = job.size * (part + 1) // job.parts
        for index in range(job.size * part // job.parts, last):
            image = chosen[index] if job.chosen_ else job.first + index
            if image < 0 or image >= job.all:
                job.outside = 1
                continue
            source = image * channels * pixels
            if job.chosen_ and index + AHEAD < last:
                for line in range(0, channels * pixels, LINE):
                    prefetch(images, chosen[index + AHEAD] * channels * pixels + line)
            to = index * channels * pixels
            for channel in range(channels):
                m, s = mean[channel], scale[channel]
                if channels == 1:
                    for pixel in range(pixels):
                        batch[to + pixel] = (f32(images[source + pixel]) - m) * s
                else:
                    for pixel in range(pixels):
                        batch[to + pixel * channels] = (f32(images[source + pixel]) - m) * s
                    source, to = source + pixels, to + 1


@cache
def _compiled() -> Callable[[int], None]:
    return compiled(walk, Job, set())


class BatchGatherer:
    """Takes images and normalises them.

    Args:
        images: all of them, [N, C, H, W] uint8, contiguous.
        mean, scale: C numbers each; a byte becomes (byte - mean) * scale.
    Raises: ValueError if they are not as many or not float32, or the images not dense.
    """

    def __init__(self, images: Tensor, mean: Tensor, scale: Tensor) -> None:
        self.images, self.mean, self.scale = images, mean, scale  # they live as long as their addresses
        count, channels, height, width = images.shape
        self.shape = channels, height, width
        self.fixed = {
            "images_": address(images, torch.uint8, images.numel()),
            "mean_": address(mean, torch.float32, channels),
            "scale_": address(scale, torch.float32, channels),
            "all": count,
            "channels": channels,
            "pixels": height * width,
        }
        self.function = _compiled()

    def normalized(self, chosen: Tensor | slice) -> Tensor:
        """The images chosen, by [B] int64 or a slice: [B, C, H, W] float32 in channels_last.

        Raises: IndexError if one is outside [0, N).
        """
        if isinstance(chosen, slice):
            first, end, _ = chosen.indices(len(self.images))
            chosen_, size = 0, max(end - first, 0)
        else:
            chosen, first, size = dense(chosen), 0, len(chosen)
            chosen_ = address(chosen, torch.int64, size)
        batch = torch.empty((size, *self.shape), dtype=torch.float32, device="cpu", memory_format=torch.channels_last)
        parts = parts_of(batch.numel(), size)
        job = Job(**self.fixed, chosen_=chosen_, first=first, batch_=batch.data_ptr(), size=size, parts=parts)
        run(self.function, job, batch.numel())
        if job.outside:
            raise IndexError(f"an image is chosen that is none of the {len(self.images)}")
        return batch
