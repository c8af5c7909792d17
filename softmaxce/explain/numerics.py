"""The same loss in the numbers computers have: done as on paper, done right, and where paper's way meets log 0."""

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
class Limit:
    """Where softmax reaches 0 in a number format, and so its log does not exist.

    Attributes:
        gap: the smallest difference between two logits, [0, -gap], whose smaller softmax is 0.
        logits: a pair of round numbers past it; the label is the second.
        naive: -log of that softmax: infinite.
        right: the loss from the logits in one step.
    """

    gap: float
    logits: tuple[float, float]
    naive: float
    right: float


@dataclass(frozen=True)
class Computed:
    """One format's answer for the logits that are explained.

    Attributes:
        format: the name of PyTorch's dtype.
        naive: softmax first, then the log of it, every operation in this format; nats.
        right: the log of softmax in one step, as `cross_entropy` computes it; nats.
        limit: where the naive way ends in this format, whatever the logits.
    """

    format: str
    naive: float
    right: float
    limit: Limit

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; what is no number is the text inf or nan."""
        limit = {**vars(self.limit), "naive": _json(self.limit.naive), "right": _json(self.limit.right)}
        return {"format": self.format, "naive": _json(self.naive), "right": _json(self.right), "limit": limit}


def compare_formats(steps: Steps) -> tuple[Computed, ...]:
    """The loss of the logits that `steps` took, naively and right, in each of FORMATS.

    Logits and targets are rounded to the format first. The naive way is softmax, its largest logit subtracted so that
    exp cannot overflow, and then -sum Q log S.
    """
    logits, targets = (torch.tensor(row, dtype=torch.float64) for row in (steps.logits, steps.targets))
    return tuple(
        Computed(
            name,
            _naive(logits.to(dtype), targets.to(dtype)).item(),
            _right(logits.to(dtype), targets.to(dtype)).item(),
            limit_of(name),
        )
        for name, dtype in FORMATS.items()
    )


@cache
def limit_of(name: str) -> Limit:
    """Find by bisection where softmax of two logits becomes 0 in a format."""
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
    return Limit(high, pair, _naive(logits, target).item(), _right(logits, target).item())


def _naive(logits: Tensor, targets: Tensor) -> Tensor:
    """On paper a class without a share of the label adds nothing, so it is left out; 0 log 0 would be NaN."""
    shared = targets > 0
    return naive_cross_entropy(softmax(logits)[shared], targets[shared])


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    return reference.cross_entropy(logits, targets)


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
