"""Cross-entropy and its gradient on the CPU in one pass over the rows, compiled by Numba.

The arithmetic is that of losses/reference.py, as loops for a processor. For each row:

1. Its largest logit. From it comes k, by which every exponent of two is lowered, so that exp cannot overflow.
2. e_i = exp(x_i) / 2^k, the costly step: a polynomial and a shift of the exponent, without a branch, and vectorized.
   Nothing is subtracted from x_i first, for that would round: a float32 difference of 40 is off by up to 2e-6, and so
   would be its exp.
3. rest = the sum of e without the target's own term e_y. Then -log S_y = log1p(rest / e_y) and 1 - S_y = rest / (rest +
   e_y): neither cancels, however confident the model is. Where e_y has underflowed, the loss comes from the logits: it
   is log sum - x_y.
4. The loss T (-log S_y) - sum_i Q_i (x_i - x_y) and the gradient T S - Q, where Q is the label (one-hot, smoothed,
   weighted or soft) and T its sum: for a one-hot label -log S_y and S - L. The gradient is written once and rounded
   once, and no second array of its size is made.

cross_entropy_long_rows.py does this row by row; cross_entropy_medium_rows.py and cross_entropy_short_rows.py do each
step for a block of rows, along the rows or across them.

16-bit logits are widened to float32 as they are read. A long sum is made of short ones, which are added in float64;
so are the losses, and those of float64 logits with compensation (Ogita, Rump & Oishi 2005, Sum2).
Numba compiles the kernel when it is first needed, for each dtype and for short, medium and long rows, and caches the
machine code on disk: only a machine's first run waits for it.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray, njit  # type: ignore[attr-defined]

from .cross_entropy_long_rows import one_row
from .cross_entropy_medium_rows import MANY_CLASSES, medium_rows
from .cross_entropy_short_rows import FEW_CLASSES, short_rows
from .cross_entropy_terms import (
    CONTRACT,
    GRADIENT,
    LOSSES,
    MEAN,
    SMOOTH,
    SOFT,
    UPSTREAM,
    VALIDATE,
    WEIGHT,
    Step,
    add_exactly,
    compensated,
)
from .numba_runtime import compile_kernel, next_chunk, pointer_to
from .numbers import KINDS, f32, f64, i64

__all__ = [
    "GRADIENT",
    "LOSSES",
    "MEAN",
    "SMOOTH",
    "SOFT",
    "UPSTREAM",
    "VALIDATE",
    "WEIGHT",
    "CrossEntropyJob",
    "compiled_kernel",
]


class CrossEntropyJob(ctypes.Structure):
    """The kernel's arguments, for the losses of N rows, their gradients, or both. Names ending in _ are addresses.

    Attributes:
        next_chunk: the first chunk of the rows that no thread has taken yet.
        logits_: [N, K], rows `stride` numbers apart.
        ids_: [N] int64 class ids; where SOFT is not set the label is one-hot at them.
        labels_: [N, K] with SOFT: the probabilities. [K] zeros with SMOOTH.
        weight_: [K]; read only with WEIGHT, SMOOTH or SOFT.
        upstream_: [N], the gradient with respect to each row's loss; 1 without UPSTREAM.
        losses_: [N], written with LOSSES.
        gradient_: [N, K], written with GRADIENT: scale * upstream * d loss / d logits.
        sums_: [num_chunks] float64, written: the sums of their losses.
        num_chunks: into so many chunks the rows are split; the result does not depend on the number of threads.
        invalid_row: written with VALIDATE: the first row whose id is no class (then nothing else is done), or -1.
        uniform_mass, target_mass: the label is weight_i (uniform_mass + target_mass q_i), q one-hot or probabilities.
        scale: a factor on the gradient; with MEAN it is divided by the divisor of the mean.
        divisor: written with VALIDATE: what the mean divides by.
    """

    _fields_ = tuple(
        (name, ctypes.c_double if name in ("uniform_mass", "target_mass", "scale", "divisor") else ctypes.c_int64)
        for name in (
            *("next_chunk", "logits_", "stride", "ids_", "labels_", "weight_", "upstream_", "losses_", "gradient_"),
            *("num_rows", "num_classes", "ignore_index", "options", "uniform_mass", "target_mass", "scale"),
            *("sums_", "num_chunks", "invalid_row", "divisor"),
        )
    )


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def validate_ids_and_count(job: Any, ids: Any, weight: Any) -> bool:
    """Set what the mean divides by, or the first row whose id is no class. Returns whether all ids are classes."""
    total, lost = 0.0, 0.0
    for row in range(job.num_rows):
        y = ids[row]
        if y != job.ignore_index:
            if y < 0 or y >= job.num_classes:
                job.invalid_row = row
                return False
            if job.options & WEIGHT:
                total, lost = add_exactly(total, lost, f64(weight[y]), weight)
            else:
                total += 1.0
    job.divisor = compensated(total, lost)
    return True


def kernel_for(a_logit: Any, a_number: Any, short: bool, medium: bool) -> Callable[[Any], None]:
    """The kernel for logits of one type that are computed in another, and for short, medium or else long rows."""

    def kernel(job_: Any) -> None:
        job = carray(job_, 1)[0]
        num_rows, num_classes = job.num_rows, job.num_classes
        size = num_rows * num_classes
        logits = carray(pointer_to(job.logits_, a_logit), (num_rows * job.stride,))
        ids = carray(pointer_to(job.ids_, i64(0)), (num_rows,))
        labels = carray(pointer_to(job.labels_, a_number), (size,))
        weight = carray(pointer_to(job.weight_, a_number), (num_classes,))
        upstream = carray(pointer_to(job.upstream_, a_number), (num_rows,))
        losses = carray(pointer_to(job.losses_, a_number), (num_rows,))
        gradient = carray(pointer_to(job.gradient_, a_logit), (size,))
        sums = carray(pointer_to(job.sums_, 0.0), (job.num_chunks,))
        if job.options & VALIDATE and not validate_ids_and_count(job, ids, weight):
            return
        scale = job.scale / job.divisor if job.options & MEAN else job.scale
        step = Step(num_classes, job.ignore_index, job.options, job.uniform_mass, job.target_mass, scale)
        e = np.empty(0 if short or medium else num_classes, dtype=weight.dtype)
        while True:
            chunk = next_chunk(job_)
            if chunk >= job.num_chunks:
                if job.num_chunks == 1:  # no other thread works at it; reset for the next call
                    job.next_chunk = 0
                return
            first, last = num_rows * chunk // job.num_chunks, num_rows * (chunk + 1) // job.num_chunks
            if short:  # a constant of the compilation, as `medium` is
                sums[chunk] = short_rows(logits, job.stride, ids, weight, upstream, losses, gradient, first, last, step)
            elif medium:
                sums[chunk] = medium_rows(
                    logits, job.stride, ids, weight, upstream, losses, gradient, first, last, step
                )
            else:
                total, lost = 0.0, 0.0
                for row in range(first, last):
                    loss = one_row(logits, job.stride, ids, labels, weight, upstream, losses, gradient, row, step, e)
                    total, lost = add_exactly(total, lost, loss, weight)
                sums[chunk] = compensated(total, lost)

    return kernel


def compiled_kernel(dtype: torch.dtype, num_classes: int, soft: bool) -> Callable[[int], None]:
    """The kernel for logits of this dtype and for class ids or, if `soft`, probabilities.

    Returns: a C function of a job's address.
    """
    short = num_classes < FEW_CLASSES and not soft
    return _compiled_kernel(dtype, short, not short and num_classes < MANY_CLASSES and not soft)


@cache
def _compiled_kernel(dtype: torch.dtype, short: bool, medium: bool) -> Callable[[int], None]:
    number = f64(0) if dtype == torch.float64 else f32(0)
    return compile_kernel(kernel_for(KINDS[dtype](0), number, short, medium), CrossEntropyJob, CONTRACT)
