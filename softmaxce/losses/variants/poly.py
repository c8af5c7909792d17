"""PolyLoss: cross-entropy's power series in 1 - p, with another first coefficient."""

import math
from typing import Any

import torch
from torch import Tensor

from ...argument_types import AtLeastMinusOne
from .base import TermwiseLoss, complement

SMALL, TERMS = 0.5, 16  # the series' 16th term is 6e-18 of its first there


class PolyLoss(TermwiseLoss):
    """PolyLoss (Poly-1): cross-entropy plus epsilon (1 - p), which reweights the first term of its power series.

    -log p = (1 - p) + (1 - p)^2 / 2 + (1 - p)^3 / 3 + ..., and PolyLoss makes its first coefficient 1 + epsilon.
    epsilon = 0 is cross-entropy; from -1 on the loss is nowhere negative.

    Args:
        epsilon: what is added to the first coefficient, at least -1.
        weight, ignore_index, reduction, label_smoothing, class_counts, num_classes: as in softmax_cross_entropy.
    Raises: ValueError if an argument is invalid.

    Leng et al. 2022, "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", L_Poly-1.

    >>> PolyLoss(epsilon=2.0)(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([0]))  # 0.417 + 2 * (1 - 0.659)
    tensor(1.0990)
    """

    def __init__(self, epsilon: AtLeastMinusOne = 2.0, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not -1 <= epsilon < math.inf:
            raise ValueError(f"epsilon must be a number of at least -1, got {epsilon}")
        self.epsilon = epsilon

    def term(self, surprisal: Tensor) -> Tensor:
        """-log p + epsilon (1 - p)."""
        missed = complement(surprisal)  # 1 - p
        if self.epsilon > -0.5:
            return surprisal + self.epsilon * missed
        return (1 + self.epsilon) * missed + _further_terms(surprisal)  # where s + epsilon (1 - p) would cancel


def _further_terms(s: Tensor) -> Tensor:
    """s - (1 - exp(-s)), at least 0: where s is small, by Taylor's series s^2 / 2! - s^3 / 3! + ..."""
    small = s.clamp(max=SMALL)
    series = torch.zeros_like(s)
    for k in range(TERMS, 1, -1):
        series = 1 / math.factorial(k) - series * small
    large = s.clamp(min=SMALL)
    return torch.where(s < SMALL, small * small * series, large + torch.expm1(-large))
