"""A user's loss with a parameter that is trained and a running statistic, for the tests that train with one."""

import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """Cross-entropy of (logits - center) times a learned scale.

    The center is a running mean of the logits, updated in training mode: in place, or with `replace` by a new tensor.
    """

    def __init__(self, start: float = 1.0, replace: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))
        self.center: Tensor
        self.register_buffer("center", torch.zeros(()))
        self.replace = replace

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                center = self.center.lerp(logits.mean().to(self.center.dtype), 0.1)
                if self.replace:
                    self.center = center
                else:
                    self.center.copy_(center)
        return nn.functional.cross_entropy((logits - self.center) * self.scale, targets)


class Detached(Scaled):
    """A loss that trains its own parameter alone."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.detach() * self.scale, targets)
