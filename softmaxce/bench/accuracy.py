"""How far a loss and its gradient are from the truth, which is computed in float64."""

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


def truth(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy, and (S - L) / N, in float64, exact to some 15 digits however sure the model is.

    The target's own term is left out of the sum, so that nothing cancels: with R the sum of the other exponentials,
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
    far = z.amax(1, keepdim=True) - z.gather(1, index) + (own + rest).log()  # where e_y has underflowed
    losses = torch.where(own > 0, torch.log1p(rest / own), far)
    gradient = (e / (own + rest)).scatter(1, index, -rest / (own + rest))
    return losses.mean(), gradient / len(z)


def errors(loss: Loss, logits: Tensor, targets: Tensor, exact: tuple[Tensor, Tensor]) -> Errors:
    """The loss's largest relative errors on these inputs.

    Entries of the gradient that are below the dtype's normal numbers are left out: no loss could be right there.
    """
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, targets)
    value.backward()
    assert leaf.grad is not None
    value_exact, gradient_exact = exact
    counts = gradient_exact.abs() >= torch.finfo(logits.dtype).tiny
    relative = (leaf.grad.double() - gradient_exact)[counts].abs() / gradient_exact[counts].abs()
    worst = relative.max().item() if relative.numel() else 0.0
    return Errors(_finite(abs(value.item() - value_exact.item()) / value_exact.item()), _finite(worst))


def _finite(error: float) -> float:
    return math.inf if math.isnan(error) else error
