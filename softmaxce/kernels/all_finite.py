"""Whether all gradients of a step are finite, on the CPU: one pass over their bits."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray, njit  # type: ignore[attr-defined]
from torch import Tensor

from .numba_runtime import compile_kernel, next_chunk, num_chunks, pointer_to, run

i32, i64 = np.int32, np.int64
EXPONENT = i32(0x7F800000)  # of float32: all its bits are set in infinity and in NaN


class FiniteJob(ctypes.Structure):
    """The kernel's arguments. Names ending in _ are addresses.

    Attributes:
        next_chunk: the first chunk that no thread has taken yet.
        nonfinite_: int64, set to 1 if a number is not finite.
        tensors_: [num_tensors, 2] int64: each one's address, 0 if there is none, and how many numbers it has.
        numbers: how many all tensors have.
        num_chunks: into so many chunks these numbers are split, one tensor after the other.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("next_chunk", "nonfinite_", "tensors_", "num_tensors", "numbers", "num_chunks")
    )


@njit(error_model="numpy", forceinline=True)
def count_nonfinite(bits: Any, first: Any, last: Any) -> Any:
    """How many are not finite; vectorized."""
    count = i32(0)
    for index in range(first, last):
        count += i32(1) if (bits[index] & EXPONENT) == EXPONENT else i32(0)
    return count


def kernel(job_: Any) -> None:
    """Look at every number of the job's tensors."""
    job = carray(job_, 1)[0]
    tensors, nonfinite = pointer_to(job.tensors_, i64(0)), pointer_to(job.nonfinite_, i64(0))
    while True:
        chunk = next_chunk(job_)
        if chunk >= job.num_chunks:
            return
        first, last = job.numbers * chunk // job.num_chunks, job.numbers * (chunk + 1) // job.num_chunks
        for index in range(job.num_tensors):
            address, numbers = tensors[2 * index], tensors[2 * index + 1]
            if address != 0 and count_nonfinite(pointer_to(address, i32(0)), max(first, 0), min(last, numbers)) > 0:
                nonfinite[0] = 1
            first, last = first - numbers, last - numbers  # from the next tensor's start


@cache
def _compiled() -> Callable[[int], None]:
    return compile_kernel(kernel, FiniteJob, set())


class FiniteCheck:
    """Checks the gradients of parameters on the CPU.

    Nearly every gradient that autograd makes is dense and float32: these are read in one pass. Any other (sparse,
    expanded, of another dtype) is left to PyTorch.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.function = _compiled()

    def all_finite(self) -> bool:
        """Whether every number of every gradient is finite."""
        addresses_and_sizes, numbers = [0], 0  # the first receives the answer
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            if not _is_readable(gradient):
                if not _is_finite(gradient):
                    return False
                continue
            size = gradient.numel()
            addresses_and_sizes += (gradient.data_ptr(), size)
            numbers += size
        table = (ctypes.c_int64 * len(addresses_and_sizes))(*addresses_and_sizes)
        nonfinite_ = ctypes.addressof(table)
        job = FiniteJob(0, nonfinite_, nonfinite_ + 8, len(table) // 2, numbers, num_chunks(numbers, numbers))
        run(self.function, job, numbers)
        return not table[0]


def _is_readable(gradient: Tensor) -> bool:
    """Whether its numbers are float32 and lie one after the other, in whatever order."""
    return (
        gradient.layout is torch.strided
        and gradient.dtype is torch.float32
        and gradient.is_cpu
        and (gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last))
    )


def _is_finite(gradient: Tensor) -> bool:
    numbers = gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient
    return bool(torch.isfinite(numbers).all())
