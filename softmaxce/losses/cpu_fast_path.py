"""Cross-entropy of a small batch on the CPU: class ids, an unweighted mean, one thread, and little Python."""

import contextlib
import ctypes
import math
from typing import Any

import torch
from torch import Tensor, bfloat16, empty_like, is_grad_enabled

from ..kernels.cross_entropy import GRADIENT, MEAN, VALIDATE, CrossEntropyJob
from ..kernels.tensor_memory import address, dense
from .cpu import backward, rounded_scalar, take_gradient
from .cpu_launch import CrossEntropyKernel


class SmallBatchCrossEntropy(torch.autograd.Function):
    """cpu.fused_cross_entropy for the usual training step: with 128 images of 10 classes each line of Python counts."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float = 0.0) -> Tensor:
        """(contiguous logits [N, K], class ids [N]) -> scalar. Raises: IndexError if an id is outside [0, K)."""
        ctx.gradient = gradient = empty_like(logits)
        logits_, ids_ = logits.data_ptr(), target.data_ptr()
        if not (logits_ and ids_):  # PyTorch's zero tensors have no memory
            logits, target = dense(logits), dense(target)
            logits_, ids_ = address(logits, logits.dtype, gradient.numel()), address(target, torch.int64, len(logits))
        dtype = logits.dtype
        try:
            call = _IDLE.pop()
            fits = logits.shape == call.shape and dtype is call.dtype
            if not fits or ignore_index != call.ignore_index or label_smoothing != call.label_smoothing:
                _IDLE.append(call)
                call = _call_for(logits, target, ignore_index, label_smoothing)
        except IndexError:  # none is idle: prepare one
            call = _call_for(logits, target, ignore_index, label_smoothing)
        job = call.job
        job.logits_ = logits_
        job.ids_ = ids_
        job.gradient_ = gradient.data_ptr()
        call.function(call.address)
        invalid_row, divisor, total = job.invalid_row, job.divisor or math.nan, call.total.value
        if invalid_row >= 0:
            raise IndexError("a class id is out of range")
        _IDLE.append(call)
        ctx.saved = ignore_index, label_smoothing, divisor
        ctx.save_for_backward(logits, target, None)
        if dtype is bfloat16 and torch.is_autocast_enabled("cpu"):
            dtype = torch.float32
        return rounded_scalar(total / divisor, dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, for the logits alone."""
        if ctx.gradient is not None and upstream.item() == 1.0 and not is_grad_enabled():
            gradient = take_gradient(ctx)
            if gradient is not None:
                return gradient, None, None, None
        ignore_index, label_smoothing, divisor = ctx.saved
        ctx.arguments, ctx.scale = (ignore_index, "mean", label_smoothing), 1.0 / divisor
        return backward(ctx, upstream), None, None, None


class _PreparedCall:
    """A job for batches of one shape: filling in what changes takes a third of the time of making one.

    It is complete when it is made; later calls change only the addresses of logits, ids and gradient.
    """

    __slots__ = ("address", "dtype", "function", "ignore_index", "job", "label_smoothing", "shape", "tensors", "total")

    def __init__(self, logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float) -> None:
        if not INT64.min <= ignore_index <= INT64.max:
            raise OverflowError(f"ignore_index {ignore_index} does not fit in int64")  # ctypes would cut it off
        kernel = CrossEntropyKernel(logits, target, None, ignore_index, label_smoothing)
        _, *self.tensors = kernel.tensors  # an address is valid only while its tensor lives
        _, labels_, weight_ = kernel.addresses
        self.shape, self.dtype = logits.shape, logits.dtype
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.function, self.total = kernel.function, ctypes.c_double()
        num_rows, num_classes = logits.shape
        self.job = CrossEntropyJob(
            stride=num_classes,
            labels_=labels_,
            weight_=weight_,
            num_rows=num_rows,
            num_classes=num_classes,
            ignore_index=ignore_index,
            options=VALIDATE | MEAN | GRADIENT | kernel.options,
            uniform_mass=kernel.uniform_mass,
            target_mass=kernel.target_mass,
            scale=1.0,
            sums_=ctypes.addressof(self.total),
            num_chunks=1,
            invalid_row=-1,
        )
        self.address = ctypes.addressof(self.job)


def _call_for(logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float) -> _PreparedCall:
    """An idle call for these arguments, taken out of the list, or a new one."""
    for call in tuple(_IDLE):
        if (call.shape, call.dtype, call.ignore_index, call.label_smoothing) == (
            logits.shape,
            logits.dtype,
            ignore_index,
            label_smoothing,
        ):
            with contextlib.suppress(ValueError):  # another thread has just taken it
                _IDLE.remove(call)
                return call
    del _IDLE[:-MAX_IDLE]
    return _PreparedCall(logits, target, ignore_index, label_smoothing)


# Prepared calls that are not in use, the last one used at the end. A call is taken out and put back when it is done, so
# another thread, a signal handler or a finalizer that calls the loss meanwhile has its own, and one that a refused id
# or an interruption has left half-way is not used again.
_IDLE: list[_PreparedCall] = []
MAX_IDLE = 16  # shapes and threads
INT64 = torch.iinfo(torch.int64)
small_batch_fast_path = SmallBatchCrossEntropy.apply  # looked up once, not at every step
