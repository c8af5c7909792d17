"""Cross-entropy as a config can name it: softmaxce's own and PyTorch's, with the same arguments."""

import math
from typing import get_args

import torch
from torch import Tensor, nn

from ..argument_types import ClassWeighting, Int64, NonNegativeFloat, Probability, Reduction
from .cross_entropy import SoftmaxCrossEntropy

EFFECTIVE_BETA = 0.9999  # of effective numbers of images; the paper tries 0.9 to 0.9999


def softmax_cross_entropy(
    weight: list[NonNegativeFloat] | ClassWeighting | None = None,
    ignore_index: Int64 = -100,
    reduction: Reduction = "mean",
    label_smoothing: Probability = 0.0,
    *,
    class_counts: list[int] | None = None,
    num_classes: int | None = None,
) -> SoftmaxCrossEntropy:
    """softmaxce's own loss: softmax and cross-entropy in one step, from logits.

    Args:
        weight: a factor for each class's term, K numbers; or made of the training images' counts: `balanced`, N / (K *
            count); `inverse_root`, 1 / sqrt(count), which raises rare classes less; `effective_number`,
            1 / (1 - b^count) with b = 0.9999 (Cui et al. 2019). The mean over the images is 1.
        ignore_index: images with this class id count for nothing.
        reduction: mean, sum or none (one loss per image).
        label_smoothing: the part of the label that is spread evenly over all classes, in [0, 1].
        class_counts: how many training images each class has; the names need it.
        num_classes: K, if known: a `weight` of another length is then refused at once.
    Raises: ValueError if an argument is invalid.
    """
    weights = class_weights(weight, class_counts, num_classes)
    return SoftmaxCrossEntropy(weights, None, ignore_index, None, reduction, label_smoothing)


def torch_cross_entropy(
    weight: list[NonNegativeFloat] | ClassWeighting | None = None,
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
    weight: list[NonNegativeFloat] | ClassWeighting | None, class_counts: list[int] | None, num_classes: int | None
) -> Tensor | None:
    """A loss's class weights as a tensor [K], or None for none.

    Raises: ValueError if they are no K non-negative numbers, or a name without counts to make them of.
    """
    if weight is None:
        return None
    if isinstance(weight, str):
        if weight not in get_args(ClassWeighting) or class_counts is None:
            names = ", ".join(get_args(ClassWeighting))
            raise ValueError(f"weight must be a list, or {names} with class_counts given, got {weight!r}")
        if 0 in class_counts:
            raise ValueError(f"weight: {weight} needs training images of every class; some class has none")
        return _of_counts(weight, class_counts)
    result = torch.as_tensor(weight, dtype=torch.float32)
    if num_classes is not None and result.shape != (num_classes,):
        raise ValueError(f"weight must have one number for each of the {num_classes} classes, got {result.numel()}")
    if not (result >= 0).all():
        raise ValueError(f"weight must not be negative, got {weight}")
    return result


def _of_counts(weighting: ClassWeighting, class_counts: list[int]) -> Tensor:
    """Class weights [K] float32 made of counts above 0."""
    if weighting == "balanced":
        return sum(class_counts) / (len(class_counts) * torch.tensor(class_counts, dtype=torch.float32))
    counts = torch.tensor(class_counts, dtype=torch.float64)
    weights = counts.rsqrt() if weighting == "inverse_root" else -1 / torch.expm1(counts * math.log(EFFECTIVE_BETA))
    return (weights * counts.sum() / (weights * counts).sum()).float()
