"""Batches on the CPU in one pass: the bytes of the batch's images are read once and written once, normalized."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray  # type: ignore[attr-defined]
from torch import Tensor

from .numba_runtime import compile_kernel, next_chunk, num_chunks, pointer_to, prefetch, run
from .tensor_memory import address, dense

f32, i64, u8 = np.float32, np.int64, np.uint8

AHEAD, LINE = 2, 64  # the image after the next is prefetched, as it may lie anywhere, by cache lines of 64 bytes


class GatherJob(ctypes.Structure):
    """The kernel's arguments. Names ending in _ are addresses.

    Attributes:
        next_chunk: the first chunk that no thread has taken yet.
        images_: [num_images, channels, pixels] uint8.
        indices_: [batch_size] int64; 0 for the images from `first` on.
        out_of_range: written: 1 if an index is none of an image, which is then left out.
        mean_, scale_: [channels] float32; a byte becomes (byte - mean) * scale.
        batch_: [batch_size, pixels, channels] float32, written.
        num_chunks: into so many chunks the batch's images are split.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("next_chunk", "images_", "indices_", "first", "mean_", "scale_", "batch_"),
            *("num_images", "batch_size", "channels", "pixels", "num_chunks", "out_of_range"),
        )
    )


def kernel(job_: Any) -> None:
    """Gather and normalize the batch's images."""
    job = carray(job_, 1)[0]
    channels, pixels = job.channels, job.pixels
    images, indices, batch = (
        pointer_to(job.images_, u8(0)),
        pointer_to(job.indices_, i64(0)),
        pointer_to(job.batch_, f32(0)),
    )
    mean, scale = pointer_to(job.mean_, f32(0)), pointer_to(job.scale_, f32(0))
    while True:
        chunk = next_chunk(job_)
        if chunk >= job.num_chunks:
            return
        last = job.batch_size * (chunk + 1) // job.num_chunks
        for index in range(job.batch_size * chunk // job.num_chunks, last):
            image = indices[index] if job.indices_ else job.first + index
            if image < 0 or image >= job.num_images:
                job.out_of_range = 1
                continue
            source = image * channels * pixels
            if job.indices_ and index + AHEAD < last:
                for line in range(0, channels * pixels, LINE):
                    prefetch(images, indices[index + AHEAD] * channels * pixels + line)
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
    return compile_kernel(kernel, GatherJob, set())


class BatchGatherer:
    """Gathers images by index and normalizes them.

    Args:
        images: all of them, [N, C, H, W] uint8, contiguous.
        mean, scale: C numbers each; a byte becomes (byte - mean) * scale.
    Raises: ValueError if they are not as many or not float32, or the images not dense.
    """

    def __init__(self, images: Tensor, mean: Tensor, scale: Tensor) -> None:
        self.images, self.mean, self.scale = images, mean, scale  # an address is valid only while its tensor lives
        count, channels, height, width = images.shape
        self.shape = channels, height, width
        self.fixed = {
            "images_": address(images, torch.uint8, images.numel()),
            "mean_": address(mean, torch.float32, channels),
            "scale_": address(scale, torch.float32, channels),
            "num_images": count,
            "channels": channels,
            "pixels": height * width,
        }
        self.function = _compiled()

    def normalized(self, indices: Tensor | slice) -> Tensor:
        """The images at [B] int64 indices or a slice: [B, C, H, W] float32 in channels_last.

        Raises: IndexError if one is outside [0, N).
        """
        if isinstance(indices, slice):
            first, end, _ = indices.indices(len(self.images))
            indices_, size = 0, max(end - first, 0)
        else:
            indices, first, size = dense(indices), 0, len(indices)
            indices_ = address(indices, torch.int64, size)
        batch = torch.empty((size, *self.shape), dtype=torch.float32, device="cpu", memory_format=torch.channels_last)
        job = GatherJob(
            **self.fixed,
            indices_=indices_,
            first=first,
            batch_=batch.data_ptr(),
            batch_size=size,
            num_chunks=num_chunks(batch.numel(), size),
        )
        run(self.function, job, batch.numel())
        if job.out_of_range:
            raise IndexError(f"an image index is outside [0, {len(self.images)})")
        return batch
