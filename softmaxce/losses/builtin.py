"""Cross-entropy as a config can name it: softmaxce's own and PyTorch's, with the same arguments."""

from typing import Literal

import torch
from torch import Tensor, nn

from ..argument_types import Int64, NonNegativeFloat, Probability, Reduction
from .cross_entropy import SoftmaxCrossEntropy


def softmax_cross_entropy(
    weight: list[NonNegativeFloat] | Literal["balanced"] | None = None,
    ignore_index: Int64 = -100,
    reduction: Reduction = "mean",
    label_smoothing: Probability = 0.0,
    *,
    class_counts: list[int] | None = None,
    num_classes: int | None = None,
) -> SoftmaxCrossEntropy:
    """softmaxce's own loss: softmax and cross-entropy in one step, from logits.

    Args:
        weight: a factor for each class's term, K numbers; `balanced` takes N / (K * count) of the training labels.
        ignore_index: images with this class id count for nothing.
        reduction: mean, sum or none (one loss per image).
        label_smoothing: the part of the label that is spread evenly over all classes, in [0, 1].
        class_counts: how many training images each class has; `balanced` needs it.
        num_classes: K, if known: a `weight` of another length is then refused at once.
    Raises: ValueError if an argument is invalid.
    """
    weights = class_weights(weight, class_counts, num_classes)
    return SoftmaxCrossEntropy(weights, None, ignore_index, None, reduction, label_smoothing)


def torch_cross_entropy(
    weight: list[NonNegativeFloat] | Literal["balanced"] | None = None,
    ignore_index: Int64 = -100,
    reduction: Reduction = "mean",
    label_smoothing: Probability = 0.0,
    *,
    class_counts: list[int] | None = None,
    num_classes: int | None = None,
) -> nn.CrossEntropyLoss:
    """PyTorch's built-in loss, torch.nn.CrossEntropyLoss.

    Args: as in softmax_cross_entropy. Raises: ValueError if one does not fit.
    """
    weights = class_weights(weight, class_counts, num_classes)
    return nn.CrossEntropyLoss(weights, None, ignore_index, None, reduction, label_smoothing)


def class_weights(
    weight: list[NonNegativeFloat] | Literal["balanced"] | None, class_counts: list[int] | None, num_classes: int | None
) -> Tensor | None:
    """A loss's class weights as a tensor [K], or None for none.

    Raises: ValueError if they are no K non-negative numbers, or are `balanced` without counts to balance by.
    """
    if weight is None:
        return None
    if isinstance(weight, str):
        if weight != "balanced" or class_counts is None:
            raise ValueError(f"weight must be a list, or 'balanced' with class_counts given, got {weight!r}")
        if 0 in class_counts:
            raise ValueError("weight: balanced needs training images of every class; some class has none")
        return sum(class_counts) / (len(class_counts) * torch.tensor(class_counts, dtype=torch.float32))
    result = torch.as_tensor(weight, dtype=torch.float32)
    if num_classes is not None and result.shape != (num_classes,):
        raise ValueError(f"weight must have one number for each of the {num_classes} classes, got {result.numel()}")
    if not (result >= 0).all():
        raise ValueError(f"weight must not be negative, got {weight}")
    return result
