"""Memory for batches, one after the other: fresh pages take longer than what is then written there."""

import math
import weakref
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class ReusedMemory:
    """Makes tensors on the CPU, whose memory is used again once nothing refers to it.

    Args:
        dtype: of the tensors.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._free: list[NDArray[Any]] = []

    def empty(self, *shape: int) -> Tensor:
        """A contiguous tensor that is to be written; in any thread."""
        size = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:  # all of it is in use; another thread may take the last
            memory = None
        if memory is None or len(memory) < size:
            memory = torch.empty(size, dtype=self._dtype, device="cpu").numpy()
        numbers = memory[:size]  # which the tensor, all its views and autograd refer to
        weakref.finalize(numbers, self._free.append, memory).atexit = False
        return torch.from_numpy(numbers).view(shape)

    def release(self) -> None:
        """Return the memory to the system: what is in use, when nothing refers to it any more."""
        self._free = []  # the tensors that there are give theirs back to the old list, which nothing else refers to
