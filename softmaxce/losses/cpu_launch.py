"""A call of the CPU's cross-entropy kernel: tensors, checked, become the addresses of a job."""

import ctypes
import math
from functools import lru_cache

import torch
from torch import Tensor

from ..kernels.cross_entropy import (
    MEAN,
    SMOOTH,
    SOFT,
    VALIDATE,
    WEIGHT,
    CrossEntropyJob,
    compiled_kernel,
)
from ..kernels.numba_runtime import num_chunks, run
from ..kernels.numbers import ACCUMULATE
from ..kernels.tensor_memory import address, dense, rows


class CrossEntropyKernel:
    """The kernel with its inputs: logits and targets as it reads them.

    Args:
        logits: [N, K].
        target: [N] int64 class ids or [N, K] probabilities.
        weight: [K] or None.
        ignore_index: rows with this class id do not count.
        label_smoothing: in [0, 1].
    Raises: ValueError if the targets or weights are not as many as the logits need.
    """

    __slots__ = (
        *("addresses", "dtype", "function", "ignore_index", "logits", "options"),
        *("stride", "target_mass", "tensors", "uniform_mass"),
    )

    def __init__(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
    ) -> None:
        num_rows, num_classes = logits.shape
        self.logits, self.stride = rows(logits)
        self.dtype = dtype = ACCUMULATE[logits.dtype]  # of the arithmetic
        self.ignore_index = ignore_index
        self.uniform_mass, self.target_mass = label_smoothing / num_classes, 1.0 - label_smoothing
        options, labels = 0, None
        if weight is not None:
            options = WEIGHT
            weight = dense(weight.to(dtype))
        if target.ndim == 2:
            options |= SOFT
            target = labels = dense(target.to(dtype))
        else:
            target = dense(target)
            if label_smoothing > 0:
                options |= SMOOTH
                labels = _constant(0, num_classes, dtype)
        if labels is not None and weight is None:
            weight = _constant(1, num_classes, dtype)
        self.options = options
        self.function = compiled_kernel(logits.dtype, num_classes, bool(options & SOFT))
        self.tensors = target, labels, weight  # an address is valid only while its tensor lives
        target_ = address(target, *((torch.int64, num_rows) if labels is not target else (dtype, logits.numel())))
        weight_ = 0 if weight is None else address(weight, dtype, num_classes)
        labels_ = 0 if labels is None else labels.data_ptr()
        self.addresses = target_, labels_, weight_

    def new_gradient(self) -> Tensor:
        """[N, K], contiguous and not yet written."""
        return torch.empty_like(self.logits, memory_format=torch.contiguous_format)  # half the time of torch.empty

    def launch(
        self,
        options: int,
        scale: float = 1.0,
        upstream: Tensor | None = None,
        losses: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> tuple[float, float]:
        """Write the losses and the gradient that `options` names; see `CrossEntropyJob`.

        Returns: the sum of the losses, with MEAN their mean; and with VALIDATE what the mean divides by.
        Raises: IndexError with VALIDATE, if a class id is outside [0, K).
        """
        num_rows, num_classes = self.logits.shape
        size = num_rows * num_classes
        chunks = num_chunks(size, num_rows, fixed=True)
        sums = (ctypes.c_double * chunks)()
        job = CrossEntropyJob(
            0,
            self.logits.data_ptr(),
            self.stride,
            *self.addresses,
            0 if upstream is None else address(upstream, self.dtype, num_rows),
            0 if losses is None else address(losses, self.dtype, num_rows),
            0 if gradient is None else address(gradient, self.logits.dtype, size),
            num_rows,
            num_classes,
            self.ignore_index,
            options | self.options,
            self.uniform_mass,
            self.target_mass,
            scale,
            ctypes.addressof(sums),
            chunks,
            -1,
        )
        if options & VALIDATE and chunks > 1:  # once, before the threads share the chunks
            job.next_chunk = chunks
            self.function(ctypes.addressof(job))
            job.next_chunk, job.options = 0, job.options & ~VALIDATE
        if job.invalid_row < 0:
            run(self.function, job, size)
        if job.invalid_row >= 0:
            raise IndexError("a class id is out of range")
        total: float = sum(sums)
        if chunks > 1 and math.isfinite(total):
            total = math.fsum(sums)  # rounded once; it refuses infinities
        return total / (job.divisor or math.nan) if options & MEAN else total, job.divisor


@lru_cache(16)
def _constant(value: int, size: int, dtype: torch.dtype) -> Tensor:
    """[size], each the value. It is shared: only to be read."""
    return torch.full((size,), value, dtype=dtype, device="cpu")
