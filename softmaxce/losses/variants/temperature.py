"""Cross-entropy at a temperature: logits are divided by it first."""

import math
from typing import Any

from torch import Tensor

from ...argument_types import PositiveFloat
from .base import LogitAdjustingLoss


class TemperatureCrossEntropy(LogitAdjustingLoss):
    """Cross-entropy of the logits divided by a temperature: above 1 the probabilities are softer, below 1 harder.

    temperature = 1 is cross-entropy.

    Args:
        temperature: above 0.
        weight, ignore_index, reduction, label_smoothing, class_counts, num_classes: as in softmax_cross_entropy.
    Raises: ValueError if an argument is invalid.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", eq. 1; for calibration Guo et al. 2017, eq. 9.

    >>> TemperatureCrossEntropy(temperature=100.0)(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([0]))  # near log 3
    tensor(1.0890)
    """

    def __init__(self, temperature: PositiveFloat = 1.0, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a number above 0, got {temperature}")
        self.temperature = temperature

    def adjusted(self, logits: Tensor) -> Tensor:
        """Logits over the temperature."""
        return logits / self.temperature
