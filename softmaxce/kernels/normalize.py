"""Normalization of images of bytes on the CPU in one pass: each byte is read once, and written once as a float.

PyTorch's operations write all floats once for each step of the formula, four times as many bytes each time.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray  # type: ignore[attr-defined]
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
        batch_: [num_rows, row] float32, written.
        fractions: whether a byte becomes (byte / 255 - mean) / factor; else (byte - mean) * factor.
        num_chunks: into so many chunks the rows are split.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("next_chunk", "images_", "mean_", "factor_", "batch_"),
            *("num_rows", "row", "fractions", "num_chunks"),
        )
    )


def kernel(job_: Any) -> None:
    """Normalize the rows."""
    job = carray(job_, 1)[0]
    row, num_rows = job.row, job.num_rows
    images, batch = pointer_to(job.images_, u8(0)), pointer_to(job.batch_, f32(0))
    mean, factor = pointer_to(job.mean_, f32(0)), pointer_to(job.factor_, f32(0))
    while True:
        chunk = next_chunk(job_)
        if chunk >= job.num_chunks:
            return
        for index in range(num_rows * chunk // job.num_chunks, num_rows * (chunk + 1) // job.num_chunks):
            first = index * row
            if job.fractions:
                for at in range(row):
                    batch[first + at] = (f32(images[first + at]) / f32(255) - mean[at]) / factor[at]
            else:
                for at in range(row):
                    batch[first + at] = (f32(images[first + at]) - mean[at]) * factor[at]


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

    def __call__(self, images: Tensor) -> Tensor:
        """The images, [B, C, H, W] uint8, normalized: float32 in channels_last.

        Raises: ValueError if the images are of another shape or type.
        """
        if images.shape[1:] != self.shape:
            raise ValueError(f"images {list(images.shape[1:])} are normalized as {list(self.shape)}")
        images = dense(images, torch.channels_last)
        count, channels, height, width = images.shape
        batch = self._memory.empty(count, height, width, channels).permute(0, 3, 1, 2)
        row, size, num_rows = width * channels, images.numel(), count * height
        job = NormalizeJob(
            images_=address(images, torch.uint8, size, torch.channels_last),
            mean_=self.mean.data_ptr(),
            factor_=self.factor.data_ptr(),
            batch_=address(batch, torch.float32, size, torch.channels_last),
            num_rows=num_rows,
            row=row,
            fractions=self.fractions,
            num_chunks=num_chunks(size, num_rows),
        )
        run(self.function, job, size)
        return batch
