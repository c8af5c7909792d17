"""Cross-entropy of logits that cannot grow beyond a cap."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...argument_types import PositiveFloat
from .base import LogitAdjustingLoss


class SoftcapCrossEntropy(LogitAdjustingLoss):
    """Cross-entropy of capped logits, cap tanh(z / cap), which stay within ±cap, so that none diverges in training.

    With a cap far above the logits it is cross-entropy. A class at -infinity comes out at -cap, with the others.

    Args:
        cap: above 0.
        weight, ignore_index, reduction, label_smoothing, class_counts, num_classes: as in softmax_cross_entropy.
    Raises: ValueError if an argument is invalid.

    Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size", section 2, logit soft-capping; the
    last layer's cap there is 30.

    >>> SoftcapCrossEntropy(cap=1.0)(torch.tensor([[1000.0, 0.0]]), torch.tensor([1]))  # log(1 + e)
    tensor(1.3133)
    """

    not_claimed: ClassVar = {
        "shift": "a cap holds logits near 0, so it matters where they lie",
        "saturation": "beyond the cap a logit has hardly any gradient",
    }

    def __init__(self, cap: PositiveFloat = 30.0, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < cap < math.inf:
            raise ValueError(f"cap must be a number above 0, got {cap}")
        self.cap = cap

    def adjusted(self, logits: Tensor) -> Tensor:
        """Cap tanh(z / cap)."""
        return self.cap * torch.tanh(logits / self.cap)
