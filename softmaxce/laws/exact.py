"""Cross-entropy and its gradient with 50 digits, by mpmath, as the reference for floating-point losses."""

from collections.abc import Sequence
from typing import Any

import mpmath
import torch
from torch import Tensor

from .cases import Case

# The names of softmax cross-entropy in configs and in PyTorch.
CROSS_ENTROPIES = {
    "softmax_cross_entropy",
    "torch_cross_entropy",
    "softmaxce:cross_entropy",
    "softmaxce:SoftmaxCrossEntropy",
    "torch.nn:CrossEntropyLoss",
    "torch.nn.functional:cross_entropy",
}
KNOWN = {"weight", "label_smoothing", "reduction"}  # the arguments that `cross_entropy` below takes


def cross_entropy(
    case: Case,
    weight: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Minus the log-probability of each row's class, in nats, and the gradient with respect to the logits.

    Args:
        case: finite logits [B][K] and class ids [B].
        weight, label_smoothing, reduction: as torch.nn.functional.cross_entropy's.
    Returns: the value, [] or [B], and the gradient of its sum, [B, K]; float64, rounded once.
    """
    with mpmath.workdps(50):
        num_classes = case.num_classes
        weights = [mpmath.mpf(w) for w in weight] if weight is not None else [mpmath.mpf(1)] * num_classes
        smoothing = mpmath.mpf(label_smoothing)
        values, gradients = [], []
        for row, target in zip(case.logits, case.targets, strict=True):
            e = [mpmath.exp(mpmath.mpf(z)) for z in row]
            total = mpmath.fsum(e)
            q = [weights[k] * (smoothing / num_classes + (1 - smoothing) * (k == target)) for k in range(num_classes)]
            values.append(mpmath.fsum(-q[k] * mpmath.log(e[k] / total) for k in range(num_classes)))
            gradients.append([mpmath.fsum(q) * e[k] / total - q[k] for k in range(num_classes)])
        divisor: Any = {"mean": mpmath.fsum(weights[target] for target in case.targets)}.get(reduction, 1)
        result = [value / divisor for value in values]
        if reduction != "none":
            result = [mpmath.fsum(result)]
        value = torch.tensor([float(x) for x in result], dtype=torch.float64)
        gradient = torch.tensor([[float(x / divisor) for x in row] for row in gradients], dtype=torch.float64)
    return (value if reduction == "none" else value[0]), gradient
