"""Cross-entropy and its gradient on the CPU, for autograd; the arithmetic is in kernels/cross_entropy.py."""

import ctypes
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, scalar_tensor

from ..kernels.cross_entropy import (
    FEW_CLASSES,
    GRADIENT,
    LOSSES,
    MEAN,
    SMOOTH,
    SOFT,
    SURVEY,
    UPSTREAM,
    WEIGHT,
    Job,
    _compiled,
)
from ..kernels.numba_runtime import parts_of, run
from ..kernels.numbers import (
    ACCUMULATE,
)
from ..kernels.tensor_memory import address, dense, rows

# -- numbers ----------------------------------------------------------------------------------------------------------
#
# Each of these is one operation for all the kinds of number that logits come in. To Numba, bfloat16 is uint16 and
# float16 is int16: their bits, which it cannot confuse. ACCUMULATE says in what each kind is computed.


# -- the walk ---------------------------------------------------------------------------------------------------------


class CrossEntropyKernel:
    """A walk that is ready to go: the logits and targets as the kernel reads them.

    Args:
        logits: [N, K].
        target: [N] int64 class ids or [N, K] probabilities.
        weight: [K] or None.
        ignore_index: rows with this class id do not count.
        label_smoothing: in [0, 1].
    Raises: ValueError if the targets or weights are not as many as the logits need.
    """

    __slots__ = (
        *("addresses", "function", "ignore_index", "kept", "logits", "number", "options"),
        *("share", "spread", "stride"),
    )

    def __init__(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
    ) -> None:
        num_rows, num_classes = logits.shape
        self.logits, self.stride = rows(logits)
        self.number = number = ACCUMULATE[logits.dtype]
        self.ignore_index = ignore_index
        self.spread, self.share = label_smoothing / num_classes, 1.0 - label_smoothing
        options, labels = 0, None
        if weight is not None:
            options = WEIGHT
            weight = dense(weight.to(number))
        if target.ndim == 2:
            options |= SOFT
            target = labels = dense(target.to(number))
        else:
            target = dense(target)
            if label_smoothing > 0:
                options |= SMOOTH
                labels = _constant(0, num_classes, number)
        if labels is not None and weight is None:
            weight = _constant(1, num_classes, number)
        self.options = options
        short = num_classes < FEW_CLASSES and not options & SOFT
        self.function = _compiled(logits.dtype, short)
        self.kept = target, labels, weight  # addresses are good as long as their tensors
        of_target = address(target, *((torch.int64, num_rows) if labels is not target else (number, logits.numel())))
        of_weight = 0 if weight is None else address(weight, number, num_classes)
        of_labels = 0 if labels is None else labels.data_ptr()
        self.addresses = of_target, of_labels, of_weight

    def go(
        self,
        options: int,
        scale: float = 1.0,
        upstream: Tensor | None = None,
        losses: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> tuple[float, float]:
        """Write the losses and the gradient that are asked for; see `Job`.

        Returns: the sum of the losses, with MEAN their mean; and with SURVEY what the mean divides by.
        Raises: IndexError if there is a SURVEY and a class id is outside [0, K).
        """
        num_rows, num_classes = self.logits.shape
        size = num_rows * num_classes
        parts = parts_of(size, num_rows, whatever_the_threads=True)
        sums = (ctypes.c_double * parts)()
        job = Job(
            0,
            self.logits.data_ptr(),
            self.stride,
            *self.addresses,
            0 if upstream is None else address(upstream, self.number, num_rows),
            0 if losses is None else address(losses, self.number, num_rows),
            0 if gradient is None else address(gradient, self.logits.dtype, size),
            num_rows,
            num_classes,
            self.ignore_index,
            options | self.options,
            self.spread,
            self.share,
            scale,
            ctypes.addressof(sums),
            parts,
            -1,
        )
        if options & SURVEY and parts > 1:  # first, and once
            job.next_part = parts
            self.function(ctypes.addressof(job))
            job.next_part, job.options = 0, job.options & ~SURVEY
        if job.wrong_row < 0:
            run(self.function, job, size)
        if job.wrong_row >= 0:
            raise IndexError("a class id is out of range")
        total = sum(sums)
        return total / (job.divisor or math.nan) if options & MEAN else total, job.divisor


CPU = torch.device("cpu")  # said wherever a tensor is made, as torch.set_default_device may say another


@lru_cache(16)
def _constant(value: int, size: int, dtype: torch.dtype) -> Tensor:
    """[size], each the value; only read."""
    return torch.full((size,), value, dtype=dtype, device="cpu")


# -- for autograd -----------------------------------------------------------------------------------------------------


def fused_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    dtype: torch.dtype,
) -> Tensor:
    """Cross-entropy of logits [N, K] and its gradient; the arguments are those of `cross_entropy`, checked.

    Args:
        target: [N] int64 class ids or [N, K] probabilities.
        dtype: of the result.
    Returns: [N] for the reduction "none", else a scalar.
    Raises: IndexError if a class id is outside [0, K).
    """
    if logits.requires_grad and torch.is_grad_enabled():
        return _Fused.apply(logits, target, weight, ignore_index, reduction, label_smoothing, dtype)  # type: ignore[no-any-return]
    return _forward(logits, target, weight, ignore_index, reduction, label_smoothing, dtype, False)[0]


def _forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    dtype: torch.dtype,
    make_gradient: bool,
) -> tuple[Tensor, float, Tensor | None]:
    """The loss, the factor its reduction puts on the gradient, and the gradient for an upstream gradient of 1."""
    walk = CrossEntropyKernel(logits, target, weight, ignore_index, label_smoothing)
    options = SURVEY if target.ndim == 1 else 0
    if reduction == "none":
        losses = torch.empty(len(logits), dtype=walk.number, device=CPU)
        walk.go(options | LOSSES, losses=losses)
        return losses.to(dtype), 1.0, None
    scale = 1.0
    if reduction == "mean":
        if options:
            options |= MEAN
        else:
            scale = 1.0 / len(logits)
    gradient = None
    if make_gradient:
        options |= GRADIENT
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=CPU)
    total, divisor = walk.go(options, scale, gradient=gradient)
    if options & MEAN:
        return _scalar(total, dtype), 1.0 / (divisor or math.nan), gradient
    return _scalar(total * scale, dtype), scale, gradient


def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    """[] of this dtype, rounded: infinite beyond its largest number, where scalar_tensor raises an error."""
    return scalar_tensor(value, dtype=torch.float64, device=CPU).to(dtype)


class _Fused(torch.autograd.Function):
    """The walk as one node of the graph. It makes the gradient in the forward pass, for an upstream gradient of 1.

    That is what nearly every training step asks for. Any other, and any further backward pass, walks again with the
    upstream gradient folded in, so that there is still one rounding. float16 always does: divided by N, its gradients
    would underflow before a gradient scaler's factor could reach them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        dtype: torch.dtype,
    ) -> Tensor:
        arguments = weight, ignore_index, reduction, label_smoothing
        loss, ctx.scale, ctx.gradient = _forward(logits, target, *arguments, dtype, logits.dtype != torch.float16)
        ctx.save_for_backward(logits, target, weight)
        ctx.arguments = arguments[1:]
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, upstream), None, None, None, None, None, None


def _backward(ctx: Any, upstream: Tensor) -> Tensor:
    """The gradient with respect to the logits."""
    if ctx.gradient is not None and not torch.is_grad_enabled() and upstream.item() == 1.0:
        gradient = _handed_over(ctx)
        if gradient is not None:
            return gradient
    logits, target, weight = ctx.saved_tensors
    if torch.is_grad_enabled():  # somebody will differentiate the gradient
        from .reference import definition

        loss = definition(logits, target, weight, *ctx.arguments)
        result: Tensor = torch.autograd.grad(loss, logits, upstream.to(loss.dtype), create_graph=True)[0]
        return result
    ignore_index, _, label_smoothing = ctx.arguments
    result = torch.empty(logits.shape, dtype=logits.dtype, device=CPU)
    walk = CrossEntropyKernel(logits, target, weight, ignore_index, label_smoothing)
    # The ids are checked again: NumPy and `.data` change a tensor without autograd noticing.
    options = GRADIENT | (SURVEY if target.ndim == 1 else 0)
    if upstream.ndim:
        walk.go(options | UPSTREAM, upstream=dense(upstream.to(walk.number)), gradient=result)
    else:
        walk.go(options, ctx.scale * upstream.item(), gradient=result)
    return result


def _handed_over(ctx: Any) -> Tensor | None:
    """The gradient that the forward pass has made, for one caller only, who may then change it; None for any other."""
    gradient: Tensor | None = ctx.__dict__.pop("gradient", None)  # in one step, so that no two threads get it
    ctx.gradient = None
    return gradient
