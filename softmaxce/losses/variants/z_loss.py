"""Cross-entropy with z-loss, which keeps the logits from drifting away together."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...argument_types import NonNegativeFloat, Probability, Reduction
from ..arguments import _classes_last
from ..cross_entropy import cross_entropy
from .base import ClassificationLoss, reduced, shares_of_ids


class ZLossCrossEntropy(ClassificationLoss):
    """Cross-entropy plus z_loss (log Z)^2, Z = sum exp(z): it draws Z to 1, so that the logits do not drift.

    Cross-entropy does not change when a number is added to all logits, so nothing else holds them near 0.
    z_loss = 0 is cross-entropy.

    Args:
        z_loss: the factor, at least 0.
        weight, ignore_index, reduction, label_smoothing, class_counts, num_classes: as softmax_cross_entropy's; an
            image's weight counts for both terms.
    Raises: ValueError if an argument does not fit.

    Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", section 5.

    >>> ZLossCrossEntropy(z_loss=0.1)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # log 2 + 0.1 (log 2)^2
    tensor(0.7412)
    """

    not_claimed: ClassVar = {"shift": "z-loss is there to make a number added to all logits matter"}

    def __init__(
        self,
        z_loss: NonNegativeFloat = 1e-4,
        weight: Tensor | list[float] | Literal["balanced"] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: Probability = 0.0,
        *,
        class_counts: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, class_counts, num_classes)
        if not 0 <= z_loss < math.inf:
            raise ValueError(f"z_loss must be a number of at least 0, got {z_loss}")
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss in nats."""
        logits, weight, dtype = self._wide(input, target)
        smoothing = self.label_smoothing
        losses = cross_entropy(
            logits,
            target,
            weight,
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=smoothing,
        )
        z = _classes_last(logits)
        if target.shape == input.shape:
            labels = _classes_last(target).to(z.dtype)
            share = (labels if weight is None else labels * weight).sum(-1)
            divisor = z.new_tensor(float(z.shape[:-1].numel()))
            counts = torch.ones_like(share, dtype=torch.bool)
        else:
            counts = target != self.ignore_index
            share = shares_of_ids(target, weight, self.ignore_index, z.dtype)
            divisor = share.sum()
        if smoothing and weight is not None:
            share = share * (1 - smoothing) + weight.mean() * smoothing * counts
        log_z = torch.where(counts.unsqueeze(-1), z, 0).logsumexp(-1)  # so that a NaN in an ignored row stays there
        return reduced(losses + self.z_loss * share * log_z**2, divisor, self.reduction).to(dtype)
