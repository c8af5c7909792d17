"""Symmetric cross-entropy, for noisy labels: cross-entropy plus its reverse, with label and prediction exchanged."""

import math
from typing import Any

from torch import Tensor

from ...argument_types import NegativeFloat, NonNegativeFloat
from .base import TermwiseLoss, complement


class SymmetricCrossEntropy(TermwiseLoss):
    """Symmetric cross-entropy: alpha times cross-entropy plus beta times its reverse, for noisy labels.

    The reverse is -sum_i S_i log L_i. Where L_i = 0, log 0 is replaced by `log_zero`, so for a class id the reverse is
    -log_zero (1 - p). alpha = 1 and beta = 0 is cross-entropy.

    Args:
        alpha: the factor of cross-entropy, at least 0.
        beta: the factor of reverse cross-entropy, at least 0.
        log_zero: what stands for log 0, below 0, in nats; A in the paper.
        weight, ignore_index, reduction, label_smoothing, class_counts, num_classes: as in softmax_cross_entropy.
    Raises: ValueError if an argument is invalid.

    Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels", section 3. A mixed target costs
    the mixture of what its classes cost.

    >>> SymmetricCrossEntropy(0.1, 1.0)(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([0]))  # 0.0417 + 4 (1 - 0.659)
    tensor(1.4057)
    """

    def __init__(
        self,
        alpha: NonNegativeFloat = 0.1,
        beta: NonNegativeFloat = 1.0,
        log_zero: NegativeFloat = -4.0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be a number of at least 0, got {alpha}")
        self.alpha = alpha
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be a number of at least 0, got {beta}")
        self.beta = beta
        if not -math.inf < log_zero < 0:
            raise ValueError(f"log_zero must be a number below 0, got {log_zero}")
        self.log_zero = log_zero

    def term(self, surprisal: Tensor) -> Tensor:
        """Alpha (-log p) - beta log_zero (1 - p)."""
        return self.alpha * surprisal + self.beta * -self.log_zero * complement(surprisal)
