"""Focal loss: what the model already gets right counts less."""

import math
from typing import Any

import torch
from torch import Tensor

from ...argument_types import NonNegativeFloat
from .base import TermwiseLoss, complement

FAR = 1e4  # nats; exp(-FAR) is 0 in every dtype, and has a slope of 0


class FocalLoss(TermwiseLoss):
    """Focal loss: cross-entropy times (1 - p)^gamma, so that easy images count less.

    (1 - p)^gamma (-log p), where p is the true class's probability; gamma = 0 is cross-entropy.

    Args:
        gamma: how much less, at least 0.
        weight, ignore_index, reduction, label_smoothing, class_counts, num_classes: as in softmax_cross_entropy.
    Raises: ValueError if an argument is invalid.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 4; with `weight` as alpha, eq. 5.

    >>> FocalLoss(gamma=2.0)(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([0]))  # (1 - 0.659)^2 * 0.417
    tensor(0.0485)
    """

    def __init__(self, gamma: NonNegativeFloat = 2.0, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be a number of at least 0, got {gamma}")
        self.gamma = gamma

    def term(self, surprisal: Tensor) -> Tensor:
        """(1 - p)^gamma (-log p)."""
        missed = complement(surprisal.clamp(max=FAR))  # 1 - p
        # Where p is 1 to the last digit, the power's slope would be infinite for gamma below 1.
        return missed.clamp(min=torch.finfo(missed.dtype).tiny) ** self.gamma * surprisal
