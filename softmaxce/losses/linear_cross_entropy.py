"""Cross-entropy of a linear layer's output, without ever holding all of that output.

With many classes the last layer's logits, input @ linear_weight.T + linear_bias, are by far the largest tensor of a
training step: 8192 tokens of a language model with 128,256 classes make 4.2 GB in float32, and their gradient makes as
much again. Neither is needed whole. A row's loss needs that row only, and with G = d loss / d logits, which
`cross_entropy` makes beside the loss, the gradients are sums over the rows:

    d/d input = G @ linear_weight        d/d linear_weight = G.T @ input        d/d linear_bias = sum of G's rows

So the rows are taken a few at a time: their logits, their losses, their G, what G adds to the three sums; then the
next. The sums are kept in float32 (float64 for float64) and rounded once, at the end. The gradients are made in the
forward pass, as the logits are there then; with the reduction "none" each row's upstream gradient is needed first, and
so the backward pass makes the logits once more.

PyTorch 2.13 has a function of this name, and this one takes its arguments. It is the same method (there behind
`options`), here with label smoothing and class probabilities for every reduction, for K-dimensional losses and for
second derivatives.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .arguments import (
    FLOATS,
    InvalidArgumentError,
    _arithmetic,
    _check,
    _check_ids,
    _classes_last,
    _is_transformed,
    _result_dtype,
    as_int64,
)
from .cross_entropy import _kernels, cross_entropy
from .reference import definition

ROOM = 1 << 19  # so many logits are made at a time,
FEWEST = 128  # but no fewer rows: the sums are read and written once for each time


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target, ...), without holding all the logits.

    In the place of torch.nn.functional.linear_cross_entropy: the same arguments with the same meaning, but for
    `options`, since there is nothing to choose.

    Args:
        input: features [B, H] or [H]; float.
        linear_weight: [K, H]; or [K, d1, ..., H] for a K-dimensional loss. In the dtype of `input`.
        target: class ids [B], [B, d1, ...] or [], int64; or probabilities [B, K], [B, K, d1, ...] or [K], float.
        linear_bias: [K] or [K, d1, ...].
        weight: [K], a factor for each class's term.
        reduction: none; sum; or mean, which is weighted by the class ids' weights.
        ignore_index: places with this class id count for nothing; None is -100.
        label_smoothing: the share of the label spread evenly over all classes, in [0, 1].
    Returns: [B], [B, d1, ...] or [] for "none", else a scalar, in nats; in the dtype of `input`, in float32 under
        autocast.
    Raises: as cross_entropy.

    Under torch.compile, torch.func and forward-mode derivatives, and for second derivatives, PyTorch must see single
    operations: there the logits are made whole.

    >>> features, classes = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5], [0.1, 0.0]])
    >>> round(linear_cross_entropy(features, classes, torch.tensor([0])).item(), 4)  # the logits are 2, 1 and 0.1
    0.417
    """
    tensors = input, linear_weight, target, linear_bias, weight
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            linear_cross_entropy,
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
    shape = _shape_of_logits(input, linear_weight, target, linear_bias)
    if target.shape == shape and ignore_index is not None:
        raise InvalidArgumentError(f"ignore_index {ignore_index} goes with class ids, not with probabilities")
    ignored_id = -100 if ignore_index is None else as_int64("ignore_index", ignore_index)
    arguments = weight, ignored_id, reduction, label_smoothing
    _check(input.new_empty(()).expand(shape), target, *arguments)
    if (
        any(tensor is not None and _is_transformed(tensor) for tensor in tensors)
        or target.requires_grad
        or (weight is not None and weight.requires_grad)
        or not shape.numel()
        or not linear_weight.shape[-1]
    ):
        return _through_logits(input, linear_weight, linear_bias, shape, target, *arguments)
    num_classes = linear_weight.shape[0]
    if target.shape == shape:
        targets = (_classes_last(target) if input.ndim == 2 else target).reshape(-1, num_classes)
    else:
        _check_ids(target, num_classes, arguments[1])
        targets = target.reshape(-1).long()
    operands = _as_linear_takes_them(input, linear_weight, linear_bias)
    step = _Step(num_classes, targets, *arguments, _result_dtype(operands[0], target, weight))
    # A place of a K-dimensional loss is a row of its own, so the classes go last.
    features = operands[0] if input.ndim == 2 else operands[0].unsqueeze(0)
    projection = operands[1].movedim(0, -2).reshape(-1, input.shape[-1])
    bias = None if operands[2] is None else operands[2].movedim(0, -1).reshape(-1)
    losses: Tensor = _Chunked.apply(features, projection, bias, weight, targets, step, torch.is_grad_enabled())
    places = shape[: input.ndim - 1] + shape[input.ndim :]
    return losses.reshape(places) if reduction == "none" else losses


def _shape_of_logits(input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None) -> torch.Size:
    """The shape of linear(input, linear_weight, linear_bias). Raises: as cross_entropy, if there is none."""
    for name, tensor in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if input.ndim not in (1, 2):
        raise InvalidArgumentError(f"input must be [H] or [B, H] features, got the shape {list(input.shape)}")
    if linear_weight.ndim < 2 or linear_weight.shape[-1] != input.shape[-1]:
        raise InvalidArgumentError(
            f"linear_weight must be [K, {input.shape[-1]}] (or [K, d1, ..., {input.shape[-1]}]) for input "
            f"{list(input.shape)}, got {list(linear_weight.shape)}"
        )
    if input.ndim == 1 and linear_weight.ndim > 2:
        raise InvalidArgumentError(f"input must be [B, H] for linear_weight {list(linear_weight.shape)}, got [H]")
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise InvalidArgumentError(
            f"linear_bias must be {list(linear_weight.shape[:-1])} for linear_weight {list(linear_weight.shape)}, "
            f"got {list(linear_bias.shape)}"
        )
    parameters = {"linear_weight": linear_weight} | ({} if linear_bias is None else {"linear_bias": linear_bias})
    for name, tensor in parameters.items():
        if tensor.dtype != input.dtype and not (
            torch.is_autocast_enabled(input.device.type) and {tensor.dtype, input.dtype} <= set(FLOATS)
        ):
            raise InvalidArgumentError(f"{name} must have input's dtype, {input.dtype}, got {tensor.dtype}")
        if tensor.device != input.device:
            raise InvalidArgumentError(f"{name} is on {tensor.device}, input on {input.device}; move one with .to()")
    return input.shape[:-1] + linear_weight.shape[:-1]


def _through_logits(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, shape: torch.Size, target: Tensor, *arguments: Any
) -> Tensor:
    """The same in operations that PyTorch can differentiate any number of times, transform and compile."""
    weight, ignore_index, reduction, label_smoothing = arguments
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = functional.linear(input, linear_weight.reshape(-1, input.shape[-1]), bias).reshape(shape)
    return cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def _as_linear_takes_them(*tensors: Tensor | None) -> list[Any]:
    """Under autocast in its dtype, where it is one that autocast changes."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


class _Step(NamedTuple):
    """What stays the same from chunk to chunk; see linear_cross_entropy. `dtype` is that of the result."""

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
        counts = self.targets != self.ignore_index
        if self.weight is None:
            return counts.sum()
        kept = self.targets.clamp(0, self.num_classes - 1)
        return torch.where(counts, self.weight.to(_arithmetic(self.weight.dtype))[kept], 0).sum()


Gradients = list[Tensor | None]  # for features, projection and bias


def _chunks(features: Tensor, projection: Tensor) -> Iterator[slice]:
    """Which rows of the features are taken together."""
    rows = max(FEWEST, ROOM // len(projection))
    for first in range(0, len(features), rows):
        yield slice(first, min(first + rows, len(features)))


def _logits(features: Tensor, projection: Tensor, bias: Tensor | None, rows: slice, num_classes: int) -> Tensor:
    """[n, K] for these rows of the features; n is a multiple of theirs in a K-dimensional loss."""
    return functional.linear(features[rows], projection, bias).view(-1, num_classes)


def _losses(logits: Tensor, places: slice, step: _Step, reduction: str) -> Tensor:
    """A chunk's losses, or their sum, in the dtype of the arithmetic."""
    targets = step.targets[places]
    kernels = _kernels(logits, targets, step.weight)
    dtype = _arithmetic(step.dtype)
    if kernels is None:
        arguments = step.weight, step.ignore_index, reduction, step.label_smoothing
        return definition(logits.to(dtype), targets, *arguments)
    losses: Tensor = kernels.fused_cross_entropy(
        logits, targets, step.weight, step.ignore_index, reduction, step.label_smoothing, dtype
    )
    return losses


def _places(rows: slice, places: int) -> slice:
    """The places of the target that rows of the features stand for; each row has so many."""
    return slice(rows.start * places, rows.stop * places)


def _losses_of_all(features: Tensor, projection: Tensor, bias: Tensor | None, step: _Step) -> Tensor:
    """The losses [N], or their sum, without gradients."""
    reduction, each = "none" if step.reduction == "none" else "sum", len(projection) // step.num_classes
    losses = []
    for rows in _chunks(features, projection):
        logits = _logits(features, projection, bias, rows, step.num_classes)
        losses.append(_losses(logits, _places(rows, each), step, reduction))
        del logits  # before the next ones are made
    return torch.cat(losses) if reduction == "none" else torch.stack(losses).sum()


def _total_and_gradients(
    features: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    step: _Step,
    wanted: tuple[bool, ...],
    upstream: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """The sum of the losses and its gradients; with `upstream` [N], each loss's gradient is taken so many times."""
    dtype, each = _arithmetic(projection.dtype), len(projection) // step.num_classes
    total = torch.zeros((), dtype=_arithmetic(step.dtype), device=features.device)
    of_features, of_projection, of_bias = (
        torch.zeros_like(tensor, dtype=dtype) if tensor is not None and want else None
        for tensor, want in zip((features, projection, bias), wanted, strict=True)
    )
    for rows in _chunks(features, projection):
        places = _places(rows, each)
        logits = _logits(features, projection, bias, rows, step.num_classes).requires_grad_()
        with torch.enable_grad():
            losses = _losses(logits, places, step, "sum" if upstream is None else "none")
        factors = None if upstream is None else upstream[places].to(losses.dtype)
        (gradient,) = torch.autograd.grad(losses, logits, factors)
        total += losses.detach().sum()
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


class _Chunked(torch.autograd.Function):
    """One node of the graph. It keeps the gradients that the forward pass has made, but hands them over only once."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        projection: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        targets: Tensor,
        step: _Step,
        grad_enabled: bool,
    ) -> Tensor:
        ctx.save_for_backward(features, projection, bias, weight, targets)  # step's too, to notice if they are changed
        ctx.step, ctx.kept, ctx.factor = step, None, None
        wanted = ctx.needs_input_grad[:3]
        with torch.autocast(features.device.type, enabled=False):
            if step.reduction == "none" or not grad_enabled or not any(wanted):
                loss = _losses_of_all(features, projection, bias, step)
            else:
                loss, ctx.kept = _total_and_gradients(features, projection, bias, step, wanted)
            if step.reduction == "mean":
                divisor = torch.as_tensor(step.divisor(), dtype=loss.dtype, device=loss.device)
                loss = loss / divisor  # NaN where nothing counts; its gradient is 0, as PyTorch's is
                ctx.factor = 1 / torch.where(divisor == 0, 1, divisor)
            return loss.to(step.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        features, projection, bias = operands = ctx.saved_tensors[:3]
        step: _Step = ctx.step
        wanted = ctx.needs_input_grad[:3]
        rest = (None,) * 4
        if torch.is_grad_enabled():  # somebody will differentiate the gradients
            return *_differentiable(operands, step, wanted, upstream), *rest
        with torch.autocast(upstream.device.type, enabled=False):
            gradients: Gradients | None = ctx.kept
            ctx.kept = None  # handed over: whoever gets them may change them
            if gradients is None:
                rows = upstream if upstream.ndim else None
                _, gradients = _total_and_gradients(features, projection, bias, step, wanted, rows)
            if not upstream.ndim:
                _scaled(gradients, upstream if ctx.factor is None else upstream * ctx.factor)
            return *_as_operands(gradients, operands), *rest


def _as_operands(gradients: Gradients, operands: tuple[Tensor | None, ...]) -> Gradients:
    """The sums, rounded to what they are gradients of."""
    pairs = zip(gradients, operands, strict=True)
    return [None if gradient is None or like is None else gradient.to(like.dtype) for gradient, like in pairs]


def _differentiable(
    operands: tuple[Tensor | None, ...], step: _Step, wanted: tuple[bool, ...], upstream: Tensor
) -> Iterator[Tensor | None]:
    """The gradients as PyTorch can differentiate them."""
    features, projection, bias = operands
    assert features is not None
    assert projection is not None
    logits = functional.linear(features, projection, bias).view(-1, step.num_classes)
    loss = definition(logits, step.targets, step.weight, step.ignore_index, step.reduction, step.label_smoothing)
    leaves = [tensor for tensor, want in zip(operands, wanted, strict=True) if want and tensor is not None]
    found = iter(torch.autograd.grad(loss, leaves, upstream.to(loss.dtype), create_graph=True))
    return (next(found) if want else None for want in wanted)


class LinearCrossEntropyLoss(nn.modules.loss._WeightedLoss):
    """A model's last layer and its loss in one: drop-in for nn.LinearCrossEntropyLoss.

    Args:
        in_features: H.
        num_classes: K.
        out_features: (d1, ...) for a K-dimensional loss.
        bias: whether the layer has a bias.
        device, dtype: of the layer's parameters.
        reduction, weight, ignore_index, label_smoothing: as in linear_cross_entropy.
    Raises: InvalidArgumentError (a ValueError) if an argument does not fit.

    Calling it: (features [B, H], targets [B], [B, K] or with d1, ...) -> the loss in nats. `linear` is the layer, in
    which the dimensions [K, d1, ...] are one; logits for prediction are `module.linear(features)`.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if not 0 <= label_smoothing <= 1:
            raise InvalidArgumentError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        if weight is not None and weight.shape != (num_classes,):
            raise InvalidArgumentError(f"weight must be [{num_classes}], got {list(weight.shape)}")
        super().__init__(weight, reduction=reduction)
        self.num_classes = num_classes
        self.out_features = tuple(out_features)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        outputs = num_classes * torch.Size(out_features).numel()
        self.linear = nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(features [B, H], targets [B] or [B, K]) -> the loss in nats."""
        shape = self.num_classes, *self.out_features
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if self.linear.bias is None else self.linear.bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        """What its repr shows beside the layer."""
        return (
            f"num_classes={self.num_classes}, out_features={self.out_features}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"
        )
