"""Generalized cross-entropy, for noisy labels: between cross-entropy and the mean absolute error."""

from typing import Any, ClassVar

from torch import Tensor

from ...argument_types import Probability
from .base import TermwiseLoss, complement


class GeneralizedCrossEntropy(TermwiseLoss):
    """Generalized cross-entropy: (1 - p^q) / q, in which wrong labels count less.

    In the limit q = 0 it is cross-entropy, which learns fast; at q = 1 it is 1 - p, half the mean absolute error, which
    is robust to noisy labels.

    Args:
        q: in [0, 1]; 0 is cross-entropy.
        weight, ignore_index, reduction, label_smoothing, class_counts, num_classes: as in softmax_cross_entropy.
    Raises: ValueError if an argument is invalid.

    Zhang and Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", eq. 6.

    >>> GeneralizedCrossEntropy(q=1.0)(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([0]))  # 1 - 0.659
    tensor(0.3410)
    """

    not_claimed: ClassVar = {
        "saturation": "it is bounded, so that wrong labels do not pull: the gradient has a factor p^q"
    }

    def __init__(self, q: Probability = 0.7, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= q <= 1:
            raise ValueError(f"q must be in [0, 1], got {q}")
        self.q = q

    def term(self, surprisal: Tensor) -> Tensor:
        """(1 - p^q) / q."""
        return complement(self.q * surprisal) / self.q if self.q else surprisal
