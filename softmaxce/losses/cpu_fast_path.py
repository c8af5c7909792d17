"""Cross-entropy of a small batch on the CPU in one thread, with as few Python operations as possible."""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor, bfloat16, empty_like, is_grad_enabled, scalar_tensor

from ..kernels.cross_entropy import GRADIENT, MEAN, SURVEY, Job
from ..kernels.tensor_memory import address, dense
from .cpu import CPU, CrossEntropyKernel, _backward, _handed_over, _scalar


class SmallBatchCrossEntropy(torch.autograd.Function):
    """The same for a training step's usual call: class ids, a plain mean, and so few logits that one thread takes them.

    With 128 images of 10 classes the loss takes as long as twenty lines of Python do, so there are few here.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float = 0.0) -> Tensor:
        """(contiguous logits [N, K], class ids [N]) -> scalar. Raises: IndexError if an id is outside [0, K)."""
        ctx.gradient = gradient = empty_like(logits)
        logits_, ids_ = logits.data_ptr(), target.data_ptr()
        if not (logits_ and ids_):  # PyTorch's zero tensors have no memory
            logits, target = dense(logits), dense(target)
            logits_, ids_ = address(logits, logits.dtype, gradient.numel()), address(target, torch.int64, len(logits))
        dtype = logits.dtype
        key = logits.shape, dtype, ignore_index, label_smoothing
        ready = _READY.pop(key, None) or _ReadyStep(logits, target, ignore_index, label_smoothing)
        job = ready.job
        job.logits_ = logits_
        job.ids_ = ids_
        job.gradient_ = gradient.data_ptr()
        ready.function(ready.address)
        wrong, divisor, total = job.wrong_row, job.divisor or math.nan, ready.total.value
        if wrong >= 0:
            raise IndexError("a class id is out of range")
        _READY[key] = ready
        ctx.kept = ignore_index, label_smoothing, divisor
        ctx.save_for_backward(logits, target, None)
        if dtype is bfloat16 and torch.is_autocast_enabled("cpu"):
            dtype = torch.float32
        try:
            return scalar_tensor(total / divisor, dtype=dtype, device=CPU)
        except RuntimeError:  # it is beyond the dtype's largest number
            return _scalar(total / divisor, dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, for the logits alone."""
        if ctx.gradient is not None and upstream.item() == 1.0 and not is_grad_enabled():
            gradient = _handed_over(ctx)
            if gradient is not None:
                return gradient, None, None, None
        ignore_index, label_smoothing, divisor = ctx.kept
        ctx.arguments, ctx.scale = (ignore_index, "mean", label_smoothing), 1.0 / divisor
        return _backward(ctx, upstream), None, None, None


class _ReadyStep:
    """A job for the usual step of one shape: to fill in what changes takes a third of making one.

    It is complete when it is made and does not change but for the addresses of a call.
    """

    __slots__ = ("address", "function", "job", "kept", "total")

    def __init__(self, logits: Tensor, target: Tensor, ignore_index: int, label_smoothing: float) -> None:
        if not INT64.min <= ignore_index <= INT64.max:
            raise OverflowError(f"ignore_index {ignore_index} does not fit in int64")  # ctypes would cut it off
        walk = CrossEntropyKernel(logits, target, None, ignore_index, label_smoothing)
        _, *self.kept = walk.kept  # addresses are good as long as their tensors
        _, labels_, weight_ = walk.addresses
        self.function, self.total = walk.function, ctypes.c_double()
        num_rows, num_classes = logits.shape
        self.job = Job(
            stride=num_classes,
            labels_=labels_,
            weight_=weight_,
            num_rows=num_rows,
            num_classes=num_classes,
            ignore_index=ignore_index,
            options=SURVEY | MEAN | GRADIENT | walk.options,
            spread=walk.spread,
            share=walk.share,
            scale=1.0,
            sums_=ctypes.addressof(self.total),
            parts=1,
            wrong_row=-1,
        )
        self.address = ctypes.addressof(self.job)
        if len(_READY) >= MOST_READY:
            _READY.clear()


# Jobs that nobody is using, by what they are for. A call takes one out and puts it back when it is done, so another
# thread, a signal handler or a finalizer that calls the loss meanwhile makes its own, and one that a refused id or an
# interruption has left half-way is not met again.
_READY: dict[Any, _ReadyStep] = {}
MOST_READY = 64  # shapes
INT64 = torch.iinfo(torch.int64)
small_batch_fast_path = SmallBatchCrossEntropy.apply  # found once, not at every step
