"""Whether any of a step's gradients is not finite, on the CPU: one pass over their bits."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from torch import Tensor

from .native import at, compiled, parts_of, run, take_part

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


class Watch:
    """Looks at the gradients of parameters, which are float32 and on the CPU.

    A gradient that autograd has made is dense, of its parameter's dtype and size; where there is none, none is read.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        table: Any = ctypes.c_int64 * (1 + 2 * len(sizes))
        self.table = table()
        self.table[2::2] = sizes
        address = ctypes.addressof(self.table)
        self.numbers = sum(sizes)
        parts = parts_of(self.numbers, self.numbers)
        self.job = Job(0, address, address + 8, len(sizes), self.numbers, parts)
        self.function = _compiled()

    def all_finite(self) -> bool:
        """Whether every number of every gradient is finite."""
        table = self.table
        table[1::2] = [0 if (found := parameter.grad) is None else found.data_ptr() for parameter in self.parameters]
        table[0] = self.job.next_part = 0
        run(self.function, self.job, self.numbers)
        return not table[0]
