"""Errors of a loss and its gradient, relative to exact values computed in float64."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .candidates import Loss


@dataclass(frozen=True)
class Errors:
    """Largest relative errors: of the mean loss, and of any entry of its gradient."""

    loss: float
    gradient: float

    @property
    def largest(self) -> float:
        """The larger of the two."""
        return max(self.loss, self.gradient)


def exact_loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and its gradient (S - L) / N in float64, accurate to about 15 digits also for confident rows.

    The target's term is left out of the sum, which avoids cancellation: with R the sum of the other exponentials,
    -log S_y = log(1 + R / e_y) and S_y - 1 = -R / (R + e_y).

    Args:
        logits: [N, C], finite.
        targets: [N] class ids.
    Returns: a scalar and [N, C].
    """
    z = logits.detach().double()
    e = (z - z.amax(1, keepdim=True)).exp()
    index = targets.unsqueeze(1)
    own = e.gather(1, index)  # [N, 1]
    rest = e.scatter(1, index, 0.0).sum(1, keepdim=True)
    underflowed = z.amax(1, keepdim=True) - z.gather(1, index) + (own + rest).log()  # the loss where e_y is 0
    losses = torch.where(own > 0, torch.log1p(rest / own), underflowed)
    gradient = (e / (own + rest)).scatter(1, index, -rest / (own + rest))
    return losses.mean(), gradient / len(z)


def errors(loss: Loss, logits: Tensor, targets: Tensor, exact: tuple[Tensor, Tensor]) -> Errors:
    """Largest relative errors of a loss on these inputs.

    Gradient entries below the dtype's smallest normal number are left out: it cannot represent them accurately.
    """
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, targets)
    value.backward()
    assert leaf.grad is not None
    value_exact, gradient_exact = exact
    normal = gradient_exact.abs() >= torch.finfo(logits.dtype).tiny
    relative = (leaf.grad.double() - gradient_exact)[normal].abs() / gradient_exact[normal].abs()
    worst = relative.max().item() if relative.numel() else 0.0
    return Errors(_finite(abs(value.item() - value_exact.item()) / value_exact.item()), _finite(worst))


def _finite(error: float) -> float:
    return math.inf if math.isnan(error) else error
