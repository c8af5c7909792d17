"""PyTorch's own cross-entropy, as a config can name it."""

from typing import Literal

from torch import nn

from ..kinds import Probability
from .cross_entropy import class_weights


def torch_cross_entropy(
    weight: list[float] | Literal["balanced"] | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    label_smoothing: Probability = 0.0,
    *,
    class_counts: list[int] | None = None,
    num_classes: int | None = None,
) -> nn.CrossEntropyLoss:
    """PyTorch's built-in loss, torch.nn.CrossEntropyLoss.

    Args: as SoftmaxCrossEntropy's. Raises: ValueError if one does not fit.
    """
    weights = class_weights(weight, class_counts, num_classes)
    return nn.CrossEntropyLoss(weights, None, ignore_index, None, reduction, label_smoothing)
