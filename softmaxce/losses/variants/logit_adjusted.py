"""Cross-entropy with logits adjusted by the class priors, for long-tailed data."""

import math
from typing import Any

import torch
from torch import Tensor

from ...argument_types import NonNegativeFloat, PositiveFloat
from .base import LogitAdjustingLoss


class LogitAdjustedCrossEntropy(LogitAdjustingLoss):
    """Cross-entropy of logits to which tau log(prior) is added in training, so that rare classes are not neglected.

    The model then learns what speaks for a class beyond its being common, and its largest logit, taken without the
    prior, minimizes the error averaged over the classes. tau = 0, or equal priors, is cross-entropy.

    Args:
        tau: how much of the prior, at least 0.
        priors: the classes' shares, K positive numbers (counts will do); by default the training labels'.
        weight, ignore_index, reduction, label_smoothing, num_classes: as in softmax_cross_entropy.
        class_counts: how many training images each class has: the priors, where these are not given.
    Raises: ValueError if an argument is invalid, or if there are neither priors nor counts.

    Menon et al. 2021, "Long-Tail Learning via Logit Adjustment", eq. 10.

    >>> loss = LogitAdjustedCrossEntropy(priors=[0.9, 0.1])
    >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # -log 0.1
    tensor(2.3026)
    """

    log_priors: Tensor

    def __init__(
        self,
        tau: NonNegativeFloat = 1.0,
        priors: list[PositiveFloat] | None = None,
        *args: Any,
        class_counts: list[int] | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, class_counts=class_counts, num_classes=num_classes, **kwargs)
        if not 0 <= tau < math.inf:
            raise ValueError(f"tau must be a number of at least 0, got {tau}")
        counts = torch.tensor(priors if priors is not None else class_counts or [], dtype=torch.float64)
        if num_classes is not None and (len(counts) or priors is not None) and len(counts) != num_classes:
            raise ValueError(f"priors must have one number for each of the {num_classes} classes, got {len(counts)}")
        if not len(counts):
            raise ValueError("priors must be given, K positive numbers, where class_counts are not")
        if not ((counts > 0) & counts.isfinite()).all():
            raise ValueError(f"priors must be positive for every class, got {counts.tolist()}")
        self.tau = tau
        self.register_buffer("log_priors", (counts / counts.sum()).log().to(torch.get_default_dtype()))

    def adjusted(self, logits: Tensor) -> Tensor:
        """Logits plus tau log(prior)."""
        num_classes = logits.shape[0 if logits.ndim == 1 else 1]
        if len(self.log_priors) != num_classes:
            raise ValueError(f"priors are for {len(self.log_priors)} classes, input has {num_classes}")
        return logits + self.tau * self.log_priors.to(logits.dtype).view(-1, *[1] * (logits.ndim - 2))
