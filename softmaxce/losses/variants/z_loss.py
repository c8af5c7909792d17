"""Cross-entropy with z-loss, a penalty on log Z that stops all logits from drifting together."""

import math
from typing import Any, ClassVar

from torch import Tensor

from ...argument_types import NonNegativeFloat
from ..arguments import classes_last
from ..cross_entropy import cross_entropy
from ..targets import reduce_losses, target_distribution, weights_of_ids, zero_where_ignored
from .base import ClassificationLoss


class ZLossCrossEntropy(ClassificationLoss):
    """Cross-entropy plus z_loss (log Z)^2, Z = sum exp(z): it draws Z to 1, so that the logits do not drift.

    Cross-entropy does not change when a number is added to all logits, so nothing else holds them near 0.
    z_loss = 0 is cross-entropy.

    Args:
        z_loss: the factor, at least 0.
        weight, ignore_index, reduction, label_smoothing, class_counts, num_classes: as in softmax_cross_entropy; an
            image's weight counts for both terms.
    Raises: ValueError if an argument is invalid.

    Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", section 5.

    >>> ZLossCrossEntropy(z_loss=0.1)(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # log 2 + 0.1 (log 2)^2
    tensor(0.7412)
    """

    not_claimed: ClassVar = {"shift": "z-loss is there to make a number added to all logits matter"}

    def __init__(self, z_loss: NonNegativeFloat = 1e-4, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= z_loss < math.inf:
            raise ValueError(f"z_loss must be a number of at least 0, got {z_loss}")
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss in nats."""
        logits, weight, dtype = self._prepare(input, target)
        smoothing = self.label_smoothing
        losses = cross_entropy(
            logits,
            target,
            weight,
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=smoothing,
        )
        z = classes_last(logits)
        counts: Tensor | None = None
        divisor: Tensor | float
        if target.shape == input.shape:
            labels, divisor, _ = target_distribution(target, z, weight, self.ignore_index, 0.0, is_soft=True)
            mass = labels.sum(-1)
        else:
            counts = target != self.ignore_index
            mass = weights_of_ids(target, weight, self.ignore_index, z.dtype)
            divisor = mass.sum()
        if smoothing and weight is not None:
            uniform_mass = weight.mean() * smoothing
            mass = mass * (1 - smoothing) + (uniform_mass if counts is None else uniform_mass * counts)
        log_z = zero_where_ignored(z, counts).logsumexp(-1)
        return reduce_losses(losses + self.z_loss * mass * log_z**2, divisor, self.reduction).to(dtype)
