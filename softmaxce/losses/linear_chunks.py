"""The node of autograd's graph behind linear_cross_entropy: logits, losses and gradients, a chunk of rows at a time."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from . import reference
from .arguments import arithmetic_dtype
from .backends import fused_backend
from .targets import weights_of_ids

MAX_LOGITS = 1 << 19  # made at a time,
MIN_ROWS = 128  # but never fewer rows: each chunk reads and writes the gradients' sums once


class LinearStep(NamedTuple):
    """What is the same for every chunk; see linear_cross_entropy. `dtype` is that of the result."""

    num_classes: int
    targets: Tensor  # [N] or [N, K]
    weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float
    dtype: torch.dtype

    def divisor(self) -> Tensor | float:
        """What the mean divides by."""
        if self.targets.ndim == 2:
            return float(len(self.targets))
        if self.weight is None:
            return (self.targets != self.ignore_index).sum()
        weight = self.weight.to(arithmetic_dtype(self.weight.dtype))
        return weights_of_ids(self.targets, weight, self.ignore_index, weight.dtype).sum()


Gradients = list[Tensor | None]  # for features, projection and bias


def _chunks(features: Tensor, projection: Tensor) -> Iterator[slice]:
    """The rows of the features, a chunk at a time."""
    rows = max(MIN_ROWS, MAX_LOGITS // len(projection))
    for first in range(0, len(features), rows):
        yield slice(first, min(first + rows, len(features)))


def _logits(features: Tensor, projection: Tensor, bias: Tensor | None, rows: slice, num_classes: int) -> Tensor:
    """[n, K] for these rows of the features; n is a multiple of theirs in a K-dimensional loss."""
    return functional.linear(features[rows], projection, bias).view(-1, num_classes)


def _losses(logits: Tensor, positions: slice, step: LinearStep) -> Tensor:
    """A chunk's losses, in the dtype of the arithmetic."""
    targets = step.targets[positions]
    backend = fused_backend(logits, targets, step.weight)
    dtype = arithmetic_dtype(step.dtype)
    if backend is None:
        arguments = step.weight, step.ignore_index, "none", step.label_smoothing
        return reference.cross_entropy(logits.to(dtype), targets, *arguments)
    losses: Tensor = backend.fused_cross_entropy(
        logits, targets, step.weight, step.ignore_index, "none", step.label_smoothing, dtype
    )
    return losses


def _sum(losses: Tensor) -> Tensor:
    """In float64, where the device has it: float32 might not hold the sum of losses whose mean it holds."""
    return losses.sum(dtype=losses.dtype if losses.device.type == "mps" else torch.float64)


def _positions(rows: slice, per_row: int) -> slice:
    """The positions of the target that belong to rows of the features; in a K-dimensional loss a row has several."""
    return slice(rows.start * per_row, rows.stop * per_row)


def _losses_of_all(features: Tensor, projection: Tensor, bias: Tensor | None, step: LinearStep) -> Tensor:
    """The losses [N], or their sum, without gradients."""
    per_row, losses = len(projection) // step.num_classes, []
    for rows in _chunks(features, projection):
        logits = _logits(features, projection, bias, rows, step.num_classes)
        losses.append(_losses(logits, _positions(rows, per_row), step))
        del logits  # before the next ones are made
    return torch.cat(losses) if step.reduction == "none" else _sum(torch.cat(losses))


def _total_and_gradients(
    features: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    step: LinearStep,
    needs_grad: tuple[bool, ...],
    upstream: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """The sum of the losses and its gradients; with `upstream` [N], each loss's gradient is multiplied by it."""
    dtype, per_row = arithmetic_dtype(projection.dtype), len(projection) // step.num_classes
    total = _sum(torch.zeros(0, dtype=arithmetic_dtype(step.dtype), device=features.device))
    of_features, of_projection, of_bias = (
        torch.zeros_like(tensor, dtype=dtype) if tensor is not None and needed else None
        for tensor, needed in zip((features, projection, bias), needs_grad, strict=True)
    )
    for rows in _chunks(features, projection):
        positions = _positions(rows, per_row)
        logits = _logits(features, projection, bias, rows, step.num_classes).requires_grad_()
        with torch.enable_grad():
            losses = _losses(logits, positions, step)
        factors = torch.ones_like(losses) if upstream is None else upstream[positions].to(losses.dtype)
        (gradient,) = torch.autograd.grad(losses, logits, factors)
        total += _sum(losses.detach())
        gradient = gradient.view(rows.stop - rows.start, -1)
        if of_features is not None:
            of_features[rows] = gradient @ projection
        if of_projection is not None:
            if gradient.dtype == dtype:
                of_projection.addmm_(gradient.T, features[rows])
            else:
                of_projection += gradient.T @ features[rows]
        if of_bias is not None:
            of_bias += gradient.sum(0, dtype=dtype)
        del logits, losses, gradient  # before the next ones are made
    return total, [of_features, of_projection, of_bias]


def _scaled(gradients: Gradients, factor: Tensor) -> None:
    for gradient in gradients:
        if gradient is not None:
            gradient *= factor


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    """One node of the graph. The forward pass makes the gradients too; the first backward pass takes them."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        projection: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        targets: Tensor,
        step: LinearStep,
        grad_enabled: bool,
    ) -> Tensor:
        """(features [R, H], projection [P, H], bias [P], ...) -> the losses [N], or their sum or mean."""
        ctx.save_for_backward(
            features, projection, bias, weight, targets
        )  # step's too, so that autograd notices changes
        ctx.step, ctx.gradients, ctx.factor = step, None, None
        needs_grad = ctx.needs_input_grad[:3]
        with torch.autocast(features.device.type, enabled=False):
            if step.reduction == "none" or not grad_enabled or not any(needs_grad):
                loss = _losses_of_all(features, projection, bias, step)
            else:
                loss, ctx.gradients = _total_and_gradients(features, projection, bias, step, needs_grad)
            if step.reduction == "mean":
                divisor = torch.as_tensor(step.divisor(), dtype=loss.dtype, device=loss.device)
                loss = loss / divisor  # NaN where nothing counts; its gradient is 0, as PyTorch's is
                ctx.factor = 1 / torch.where(divisor == 0, 1, divisor)
            return loss.to(step.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of features, projection and bias."""
        features, projection, bias = operands = ctx.saved_tensors[:3]
        step: LinearStep = ctx.step
        needs_grad = ctx.needs_input_grad[:3]
        rest = (None,) * 4
        if torch.is_grad_enabled():  # create_graph: the gradients will be differentiated
            return *_differentiable(operands, step, needs_grad, upstream), *rest
        with torch.autocast(upstream.device.type, enabled=False):
            gradients: Gradients | None = ctx.gradients
            ctx.gradients = None  # the caller may change them
            if gradients is None:
                rows = upstream if upstream.ndim else None
                _, gradients = _total_and_gradients(features, projection, bias, step, needs_grad, rows)
            if not upstream.ndim:
                _scaled(gradients, upstream if ctx.factor is None else upstream * ctx.factor)
            return *_as_operands(gradients, operands), *rest


def _as_operands(gradients: Gradients, operands: tuple[Tensor | None, ...]) -> Gradients:
    """The sums, rounded to the dtypes of what they are gradients of."""
    pairs = zip(gradients, operands, strict=True)
    return [None if gradient is None or like is None else gradient.to(like.dtype) for gradient, like in pairs]


def _differentiable(
    operands: tuple[Tensor | None, ...], step: LinearStep, needs_grad: tuple[bool, ...], upstream: Tensor
) -> Iterator[Tensor | None]:
    """The gradients as PyTorch can differentiate them."""
    features, projection, bias = operands
    assert features is not None
    assert projection is not None
    logits = functional.linear(features, projection, bias).view(-1, step.num_classes)
    loss = reference.cross_entropy(
        logits, step.targets, step.weight, step.ignore_index, step.reduction, step.label_smoothing
    )
    leaves = [tensor for tensor, needed in zip(operands, needs_grad, strict=True) if needed and tensor is not None]
    gradients = iter(torch.autograd.grad(loss, leaves, upstream.to(loss.dtype), create_graph=True))
    return (next(gradients) if needed else None for needed in needs_grad)
