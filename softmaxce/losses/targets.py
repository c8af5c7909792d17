"""From class ids or probabilities to the target distribution, and to what the mean of a batch divides by."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_class_ids, classes_last


class TargetDistribution(NamedTuple):
    """What cross-entropy compares the softmax with.

    Attributes:
        probabilities: Q [..., K], smoothed by s and weighted: Q_i = weight_i ((1 - s) L_i + s / K).
        divisor: what the mean of the batch divides by: the sum of the class ids' weights; for probabilities the count.
        counts: [...] bool, False where the class id is `ignore_index`; None for probabilities, which all count.
    """

    probabilities: Tensor
    divisor: Tensor | float
    counts: Tensor | None


def target_distribution(
    target: Tensor,
    logits: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    *,
    is_soft: bool,
) -> TargetDistribution:
    """The target distribution for logits [..., K] in the dtype of the arithmetic, of which the values do not matter.

    Args:
        target: [...] class ids; with `is_soft` probabilities [K], [B, K] or [B, K, d1, ...].
        logits: their shape, dtype and device are those of the result.
        weight: [K], a factor for each class, or None.
        ignore_index: a class id whose Q is 0 for every class.
        label_smoothing: s, in [0, 1].
    Raises: IndexError if a class id is outside [0, K). Where ids cannot be checked (on CUDA, under torch.compile and
        torch.func) the Q of such a row is NaN.
    """
    num_classes = logits.shape[-1]
    weight = None if weight is None else weight.to(logits.dtype)
    divisor: Tensor | float
    if is_soft:
        counts, divisor = None, math.prod(logits.shape[:-1])  # numel() would fix them in torch.export
        probabilities = classes_last(target).to(logits.dtype)
        mass = torch.ones_like(probabilities[..., :1])
    else:
        check_class_ids(target, num_classes, ignore_index)
        counts = target != ignore_index
        divisor = weights_of_ids(target, weight, ignore_index, logits.dtype).sum()
        row_counts = counts.unsqueeze(-1)  # [..., 1]
        one_hot = (target.unsqueeze(-1) == torch.arange(num_classes, device=target.device)) & row_counts
        mass = torch.where(row_counts & ~one_hot.any(-1, keepdim=True), torch.nan, row_counts.to(logits.dtype))
        probabilities = one_hot * mass
    if label_smoothing > 0:
        probabilities = probabilities * (1 - label_smoothing) + mass * (label_smoothing / num_classes)
    if weight is not None:
        probabilities = probabilities * weight
    return TargetDistribution(probabilities, divisor, counts)


def weights_of_ids(target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """The weight of each class id in a mean, [...]: 1 without class weights, 0 where the id is ignored."""
    counts = target != ignore_index
    if weight is None:
        return counts.to(dtype)
    ids = torch.where(counts, target, 0).clamp(0, max(len(weight) - 1, 0))  # on CUDA an id out of range is not refused
    return torch.where(counts, weight[ids.long()], 0)


def zero_where_ignored(logits: Tensor, counts: Tensor | None) -> Tensor:
    """Logits [..., K] with 0 in the rows that do not count, so that a NaN there reaches neither value nor gradient."""
    return logits if counts is None else torch.where(counts.unsqueeze(-1), logits, 0)


def reduce_losses(losses: Tensor, divisor: Tensor | float, reduction: str) -> Tensor:
    """The losses themselves for none, their sum, or for mean their sum over the divisor; NaN if nothing counts."""
    if reduction == "none":
        return losses
    return losses.sum() / divisor if reduction == "mean" else losses.sum()
