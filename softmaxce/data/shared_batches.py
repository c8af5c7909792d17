"""Batches that worker processes write and the training process reads, in memory that is used again and again."""

import os
import weakref
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

SHARED = "/dev/shm"  # where Linux has its shared memory; containers often limit it to 64 MB


class SharedBatches:
    """Shared memory for a number of batches, each in a slot of its own.

    Fresh shared memory for each batch costs page faults in two processes and a file descriptor sent between them.
    The processes that write must be started after this is made.

    Args:
        slots: at most; fewer, even none, where more than half of the free shared memory would be needed.
        shape: [B, H, W, C] of the largest batch.
        dtype: of the pixels.
    """

    def __init__(self, slots: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        size = torch.Size(shape).numel() * dtype.itemsize
        slots = min(slots, _free_shared_memory() // (2 * size))
        try:
            self._memory = [torch.empty(shape, dtype=dtype, device="cpu").share_memory_() for _ in range(slots)]
        except (RuntimeError, OSError):  # no room after all, or no shared memory at all
            self._memory = []
        self._shape = shape
        self._unused = list(range(len(self._memory)))

    def take(self, images: int) -> int | None:
        """A slot that is not in use, for a batch of so many images; None if there is none, or it is too small."""
        return self._unused.pop() if self._unused and images <= self._shape[0] else None

    def give_back(self, slot: int) -> None:
        """Let the slot be taken again."""
        self._unused.append(slot)

    def pixels(self, slot: int) -> NDArray[Any]:
        """The slot's memory, [B, H, W, C], in any of the processes."""
        pixels: NDArray[Any] = self._memory[slot].numpy()
        return pixels

    def batch(self, slot: int, images: int) -> Tensor:
        """The first images of a slot, [images, C, H, W]; it is given back when nothing refers to them any more."""
        pixels = self.pixels(slot)[:images]  # which the tensor, all its views and autograd refer to
        weakref.finalize(pixels, partial(self.give_back, slot)).atexit = False
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _free_shared_memory() -> int:
    """In bytes; 0 where that is not known."""
    try:
        status = os.statvfs(SHARED)
    except (OSError, AttributeError):  # another operating system than Linux
        return 0
    return status.f_bavail * status.f_frsize
