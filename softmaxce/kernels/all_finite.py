"""Whether any of a step's gradients is not finite, on the CPU: one pass over their bits."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray, njit  # type: ignore[attr-defined]
from torch import Tensor

from .numba_runtime import at, compiled, parts_of, run, take_part

i32, i64 = np.int32, np.int64
EXPONENT = i32(0x7F800000)  # float32's; all of its bits are set in infinity and in NaN


class Job(ctypes.Structure):
    """What a pass is to do. Names ending in _ are addresses.

    Attributes:
        next_part: the first part that no thread has taken yet.
        found_: int64, set to 1 if a number is not finite.
        tensors_: [tensors, 2] int64, each one's address, 0 if there is none, and how many numbers it has.
        numbers: of all tensors.
        parts: these are shared out in so many, one tensor after the other.
    """

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("next_part", "found_", "tensors_", "tensors", "numbers", "parts")
    )


@njit(error_model="numpy", forceinline=True)
def count(bits: Any, first: Any, last: Any) -> Any:
    """How many are not finite, in lanes."""
    found = i32(0)
    for index in range(first, last):
        found += i32(1) if (bits[index] & EXPONENT) == EXPONENT else i32(0)
    return found


def walk(job_: Any) -> None:
    """The pass."""
    job = carray(job_, 1)[0]
    tensors, found = at(job.tensors_, i64(0)), at(job.found_, i64(0))
    while True:
        part = take_part(job_)
        if part >= job.parts:
            return
        first, last = job.numbers * part // job.parts, job.numbers * (part + 1) // job.parts
        for index in range(job.tensors):
            address, numbers = tensors[2 * index], tensors[2 * index + 1]
            if address != 0 and count(at(address, i32(0)), max(first, 0), min(last, numbers)) > 0:
                found[0] = 1
            first, last = first - numbers, last - numbers  # from the next tensor's start


@cache
def _compiled() -> Callable[[int], None]:
    return compiled(walk, Job, set())


class FiniteCheck:
    """Looks at the gradients of parameters on the CPU.

    Nearly every gradient that autograd has made is dense and float32: these are read in one pass. Any other (sparse,
    expanded, of another dtype) is left to PyTorch.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.function = _compiled()

    def all_finite(self) -> bool:
        """Whether every number of every gradient is finite."""
        addresses_and_sizes, numbers = [0], 0  # the first is where the answer goes
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
        found_ = ctypes.addressof(table)
        job = Job(0, found_, found_ + 8, len(table) // 2, numbers, parts_of(numbers, numbers))
        run(self.function, job, numbers)
        return not table[0]


def _is_readable(gradient: Tensor) -> bool:
    """Whether its numbers are float32 and lie one after the other; in which order is all the same."""
    return (
        gradient.layout is torch.strided
        and gradient.dtype is torch.float32
        and gradient.is_cpu
        and (gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last))
    )


def _is_finite(gradient: Tensor) -> bool:
    numbers = gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient
    return bool(torch.isfinite(numbers).all())
