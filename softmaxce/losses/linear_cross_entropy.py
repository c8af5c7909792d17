"""Cross-entropy of a linear layer's output, without ever holding all of that output.

With many classes the last layer's logits, input @ linear_weight.T + linear_bias, are by far the largest tensor of a
training step: 8192 tokens of a language model with 128,256 classes make 4.2 GB in float32, and their gradient makes as
much again. Neither is needed whole. A row's loss needs that row only, and with G = d loss / d logits, which
`cross_entropy` makes beside the loss, the gradients are sums over the rows:

    d/d input = G @ linear_weight        d/d linear_weight = G.T @ input        d/d linear_bias = sum of G's rows

So one chunk of rows is computed at a time: its logits, its losses, its G, and G's contribution to the three sums. The
sums are in float32 (float64 for float64) and rounded once, at the end. The gradients are computed in the forward pass,
which has the logits; with the reduction "none" each row's upstream gradient is needed first, so the backward pass
computes the logits again.

PyTorch 2.13 has a function of this name, and this one takes its arguments. It is the same method (there behind
`options`), here with label smoothing and class probabilities for every reduction, for K-dimensional losses and for
second derivatives.

This is a function for models of your own, not a loss that a config can choose. softmaxce's training step needs the
logits themselves (it counts the correct ones for the training accuracy, and calls any loss with them), and an image
classifier's are small: 512 images of 1,000 classes make 2 MB, less than any of its convolutions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .arguments import (
    FLOATS,
    InvalidArgumentError,
    as_int64,
    check_arguments,
    check_class_ids,
    check_is_tensor,
    classes_last,
    is_transformed,
    result_dtype,
)
from .cross_entropy import cross_entropy
from .interface import refuse_script
from .linear_chunks import ChunkedLinearCrossEntropy, LinearStep


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

    Drop-in for torch.nn.functional.linear_cross_entropy: the same arguments with the same meaning, but for `options`,
    since there is nothing to choose.

    Args:
        input: features [B, H] or [H]; float.
        linear_weight: [K, H]; or [K, d1, ..., H] for a K-dimensional loss. In the dtype of `input`.
        target: class ids [B], [B, d1, ...] or [], int64; or probabilities [B, K], [B, K, d1, ...] or [K], float.
        linear_bias: [K] or [K, d1, ...].
        weight: [K], a factor for each class's term.
        reduction: none; sum; or mean, which is weighted by the class ids' weights.
        ignore_index: targets with this class id count for nothing; None is -100.
        label_smoothing: the part of the label that is spread evenly over all classes, in [0, 1].
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
    check_arguments(input.new_empty(()).expand(shape), target, *arguments)
    if (
        any(tensor is not None and is_transformed(tensor) for tensor in tensors)
        or target.requires_grad
        or (weight is not None and weight.requires_grad)
        or not shape.numel()
        or not linear_weight.shape[-1]
    ):
        return _through_logits(input, linear_weight, linear_bias, shape, target, *arguments)
    num_classes = linear_weight.shape[0]
    if target.shape == shape:
        targets = (classes_last(target) if input.ndim == 2 else target).reshape(-1, num_classes)
    else:
        check_class_ids(target, num_classes, arguments[1])
        targets = target.reshape(-1).long()
    operands = _cast_for_linear(input, linear_weight, linear_bias)
    step = LinearStep(num_classes, targets, *arguments, result_dtype(operands[0], target, weight))
    # Each position of a K-dimensional loss is a row of its own, so the classes go last.
    features = operands[0] if input.ndim == 2 else operands[0].unsqueeze(0)
    projection = operands[1].movedim(0, -2).reshape(-1, input.shape[-1])
    bias = None if operands[2] is None else operands[2].movedim(0, -1).reshape(-1)
    losses: Tensor = ChunkedLinearCrossEntropy.apply(
        features, projection, bias, weight, targets, step, torch.is_grad_enabled()
    )
    ids_shape = shape[: input.ndim - 1] + shape[input.ndim :]
    return losses.reshape(ids_shape) if reduction == "none" else losses


def _shape_of_logits(input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None) -> torch.Size:
    """The shape of linear(input, linear_weight, linear_bias). Raises: as cross_entropy, if there is none."""
    for name, tensor in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        check_is_tensor(name, tensor)
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


def _cast_for_linear(*tensors: Tensor | None) -> list[Any]:
    """The tensors as functional.linear computes with them: under autocast in its dtype."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


class LinearCrossEntropyLoss(nn.Module):
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

    __prepare_scriptable__ = refuse_script
    weight: Tensor | None

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
        super().__init__()
        self.register_buffer("weight", weight)
        self.reduction = reduction
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
