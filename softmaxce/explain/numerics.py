"""The loss in each floating-point format, by the naive and the stable formula, and where the naive one fails."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..losses import reference
from ..losses.reference import naive_cross_entropy, softmax
from .steps import Steps

FORMATS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class UnderflowPoint:
    """Where softmax underflows to 0 in a floating-point format, so that its log is infinite.

    Attributes:
        gap: the smallest difference between two logits, [0, -gap], whose smaller softmax is 0.
        logits: a pair of integers that far apart or farther; the label is the second.
        naive: -log of that softmax: infinite.
        right: the loss by the stable formula.
    """

    gap: float
    logits: tuple[float, float]
    naive: float
    right: float


@dataclass(frozen=True)
class FormatResult:
    """The loss of the explained logits in one floating-point format.

    Attributes:
        format: the name of PyTorch's dtype.
        naive: softmax, then its log, every operation in this format; nats.
        right: log-softmax in one step, as `cross_entropy` computes it; nats.
        limit: where the naive formula fails in this format; it does not depend on the explained logits.
    """

    format: str
    naive: float
    right: float
    limit: UnderflowPoint

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; infinities and NaN are the texts inf, -inf and nan."""
        limit = {**vars(self.limit), "naive": _json(self.limit.naive), "right": _json(self.limit.right)}
        return {"format": self.format, "naive": _json(self.naive), "right": _json(self.right), "limit": limit}


def compare_formats(steps: Steps) -> tuple[FormatResult, ...]:
    """The loss of the steps' logits in each of FORMATS, by the naive and the stable formula.

    Logits and targets are rounded to the format first. The naive formula is softmax, with the largest logit subtracted
    so that exp cannot overflow, and then -sum Q log S.
    """
    logits, targets = (torch.tensor(row, dtype=torch.float64) for row in (steps.logits, steps.targets))
    return tuple(
        FormatResult(
            name,
            _naive(logits.to(dtype), targets.to(dtype)).item() + 0.0,  # 0 instead of -0
            _right(logits.to(dtype), targets.to(dtype)).item() + 0.0,
            underflow_point(name),
        )
        for name, dtype in FORMATS.items()
    )


@cache
def underflow_point(name: str) -> UnderflowPoint:
    """Find by bisection where the softmax of two logits becomes 0 in a format."""
    dtype = FORMATS[name]
    low, high = 0.0, 1000.0
    while True:
        middle = torch.tensor((low + high) / 2, dtype=dtype).item()
        if middle in (low, high):
            break
        if softmax(torch.tensor([0.0, -middle], dtype=dtype))[1] > 0:
            low = middle
        else:
            high = middle
    pair = (float(math.ceil(high)), 0.0)
    logits, target = torch.tensor(pair, dtype=dtype), torch.tensor([0, 1], dtype=dtype)
    return UnderflowPoint(high, pair, _naive(logits, target).item(), _right(logits, target).item())


def _naive(logits: Tensor, targets: Tensor) -> Tensor:
    """Classes with target 0 are left out: they add 0 to the sum, and 0 log 0 would be NaN."""
    nonzero = targets > 0
    return naive_cross_entropy(softmax(logits)[nonzero], targets[nonzero])


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    return reference.cross_entropy(logits, targets)


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
