"""Cross-entropy and its gradient on the CPU as one node of autograd's graph, computed by kernels/cross_entropy.py."""

import math
from typing import Any

import torch
from torch import Tensor, scalar_tensor

from ..kernels.cross_entropy import GRADIENT, LOSSES, MEAN, UPSTREAM, VALIDATE
from ..kernels.tensor_memory import dense
from . import reference
from .cpu_launch import CrossEntropyKernel

CPU = torch.device("cpu")  # named wherever a tensor is made, as torch.set_default_device may have set another


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
        return _FusedCrossEntropy.apply(logits, target, weight, ignore_index, reduction, label_smoothing, dtype)  # type: ignore[no-any-return]
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
    """The loss, the factor that its reduction puts on the gradient, and the gradient for an upstream gradient of 1."""
    kernel = CrossEntropyKernel(logits, target, weight, ignore_index, label_smoothing)
    options = VALIDATE if target.ndim == 1 else 0
    if reduction == "none":
        losses = torch.empty(len(logits), dtype=kernel.dtype, device=CPU)
        kernel.launch(options | LOSSES, losses=losses)
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
        gradient = kernel.new_gradient()
    total, divisor = kernel.launch(options, scale, gradient=gradient)
    if options & MEAN:
        return rounded_scalar(total, dtype), 1.0 / (divisor or math.nan), gradient
    return rounded_scalar(total * scale, dtype), scale, gradient


def rounded_scalar(value: float, dtype: torch.dtype) -> Tensor:
    """[] of this dtype, rounded: infinite beyond its largest number."""
    try:
        return scalar_tensor(value, dtype=dtype, device=CPU)
    except RuntimeError:  # beyond the largest number; by way of float64, which would cost 15 us each time
        return scalar_tensor(value, dtype=torch.float64, device=CPU).to(dtype)


class _FusedCrossEntropy(torch.autograd.Function):
    """The kernel as one node of the graph. The forward pass makes the gradient too, for an upstream gradient of 1.

    That is what nearly every training step needs. Any other, and any further backward pass, runs the kernel again with
    the upstream gradient folded in, so that there is still one rounding. float16 always does: divided by N, its
    gradients would underflow before a gradient scaler's factor could reach them.
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
        return backward(ctx, upstream), None, None, None, None, None, None


def backward(ctx: Any, upstream: Tensor) -> Tensor:
    """The gradient with respect to the logits."""
    if ctx.gradient is not None and not torch.is_grad_enabled() and upstream.item() == 1.0:
        gradient = take_gradient(ctx)
        if gradient is not None:
            return gradient
    logits, target, weight = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph: the gradient will be differentiated
        loss = reference.cross_entropy(logits, target, weight, *ctx.arguments)
        result: Tensor = torch.autograd.grad(loss, logits, upstream.to(loss.dtype), create_graph=True)[0]
        return result
    ignore_index, _, label_smoothing = ctx.arguments
    kernel = CrossEntropyKernel(logits, target, weight, ignore_index, label_smoothing)
    result = kernel.new_gradient()
    # The ids are checked again: NumPy and `.data` change a tensor without autograd noticing.
    options = GRADIENT | (VALIDATE if target.ndim == 1 else 0)
    if upstream.ndim:
        kernel.launch(options | UPSTREAM, upstream=dense(upstream.to(kernel.dtype)), gradient=result)
    else:
        kernel.launch(options, ctx.scale * upstream.item(), gradient=result)
    return result


def take_gradient(ctx: Any) -> Tensor | None:
    """The gradient that the forward pass has made: for the first caller, who may change it; None for any other."""
    gradient: Tensor | None = ctx.__dict__.pop("gradient", None)  # in one step, so that no two threads get it
    ctx.gradient = None
    return gradient
