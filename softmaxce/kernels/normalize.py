"""Normalization of images of bytes on the CPU in one pass: each byte is read once, and written once as a float.

Some of the images may be mirrored in the same pass.

PyTorch's operations write all floats once for each step of the formula, four times as many bytes each time.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray, njit  # type: ignore[attr-defined]
from torch import Tensor

from .numba_runtime import compile_kernel, next_chunk, num_chunks, pointer_to, run
from .reused_memory import ReusedMemory
from .tensor_memory import address, dense

f32, u8 = np.float32, np.uint8


class NormalizeJob(ctypes.Structure):
    """The kernel's arguments. Names ending in _ are addresses.

    Attributes:
        next_chunk: the first chunk that no thread has taken yet.
        images_: [num_rows, row] uint8, rows of pixels whose channels lie side by side.
        mean_, factor_: [row] float32, those of the channels, repeated for each pixel of a row.
        mirrored_: [num_rows / height] bool, which images are mirrored left to right; 0 if none are.
        scratch_: [num_chunks, row] uint8, a mirrored row of each chunk.
        batch_: [num_rows, row] float32, written.
        height: rows of an image.
        row: numbers of a row, of so many channels each pixel.
        fractions: whether a byte becomes (byte / 255 - mean) / factor; else (byte - mean) * factor.
        num_chunks: into so many chunks the rows are split.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("next_chunk", "images_", "mean_", "factor_", "mirrored_", "scratch_", "batch_"),
            *("num_rows", "height", "row", "channels", "fractions", "num_chunks"),
        )
    )


@njit(forceinline=True)
def mirror(images: Any, first: int, scratch: Any, target: int, row: int, channels: int) -> None:
    """Copy a row, from the last pixel to the first; in half the time where the compiler knows how many channels."""
    for left in range(0, row, channels):
        for channel in range(channels):
            scratch[target + left + channel] = images[first + row - channels - left + channel]


def kernel(job_: Any) -> None:
    """Mirror and normalize the rows."""
    job = carray(job_, 1)[0]
    row, num_rows, channels = job.row, job.num_rows, job.channels
    images, batch = pointer_to(job.images_, u8(0)), pointer_to(job.batch_, f32(0))
    mean, factor = pointer_to(job.mean_, f32(0)), pointer_to(job.factor_, f32(0))
    mirrored, scratch = pointer_to(job.mirrored_, u8(0)), pointer_to(job.scratch_, u8(0))
    while True:
        chunk = next_chunk(job_)
        if chunk >= job.num_chunks:
            return
        for index in range(num_rows * chunk // job.num_chunks, num_rows * (chunk + 1) // job.num_chunks):
            first = index * row
            pixels, source = images, first
            if job.mirrored_ and mirrored[index // job.height]:
                pixels, source = scratch, chunk * row
                if channels == 3:
                    mirror(images, first, scratch, source, row, 3)
                else:
                    mirror(images, first, scratch, source, row, channels)
            if job.fractions:
                for at in range(row):
                    batch[first + at] = (f32(pixels[source + at]) / f32(255) - mean[at]) / factor[at]
            else:
                for at in range(row):
                    batch[first + at] = (f32(pixels[source + at]) - mean[at]) * factor[at]


@cache
def _compiled() -> Callable[[int], None]:
    return compile_kernel(kernel, NormalizeJob, set())


class Normalizer:
    """Normalizes images of bytes of one shape, with the bits of PyTorch's operations.

    Args:
        mean, factor: C numbers each, float32.
        shape: of the images, (C, H, W).
        fractions: a byte becomes (byte / 255 - mean) / factor; else (byte - mean) * factor.
    """

    def __init__(self, mean: Tensor, factor: Tensor, shape: tuple[int, int, int], *, fractions: bool) -> None:
        self.shape = shape
        self.mean, self.factor = mean.flatten().repeat(shape[2]), factor.flatten().repeat(shape[2])
        self.function = _compiled()
        self.fractions = fractions
        self._memory = ReusedMemory(torch.float32)

    def __call__(self, images: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """The images, [B, C, H, W] uint8, normalized: float32 in channels_last.

        Args:
            images: the bytes.
            mirrored: [B] bool, which of them are mirrored left to right; None for none.
        Raises: ValueError if the images are of another shape or type.
        """
        if images.shape[1:] != self.shape:
            raise ValueError(f"images {list(images.shape[1:])} are normalized as {list(self.shape)}")
        images = dense(images, torch.channels_last)
        count, channels, height, width = images.shape
        batch = self._memory.empty(count, height, width, channels).permute(0, 3, 1, 2)
        row, size, num_rows = width * channels, images.numel(), count * height
        chunks = num_chunks(size, num_rows)
        scratch = None if mirrored is None else torch.empty(chunks, row, dtype=torch.uint8, device="cpu")
        job = NormalizeJob(
            images_=address(images, torch.uint8, size, torch.channels_last),
            mean_=self.mean.data_ptr(),
            factor_=self.factor.data_ptr(),
            batch_=address(batch, torch.float32, size, torch.channels_last),
            mirrored_=0 if mirrored is None else address(mirrored, torch.bool, count),
            scratch_=0 if scratch is None else scratch.data_ptr(),
            num_rows=num_rows,
            height=height,
            row=row,
            channels=channels,
            fractions=self.fractions,
            num_chunks=chunks,
        )
        run(self.function, job, size)
        return batch

    def release_memory(self) -> None:
        """Return the memory of batches that are not in use to the system; the next batches take new memory."""
        self._memory.release()
