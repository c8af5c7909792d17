"""The moving average of a model's weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ExponentialMovingAverage(AveragedModel):
    """torch's AveragedModel with an exponential average, buffers included; no update waits for a GPU.

    torch's own update copies its count to the device at each step, which nothing there looks at, and waits for it.

    Args:
        model: whose weights are averaged.
        decay: the old average's share, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.moved = get_ema_multi_avg_fn(decay)
        super().__init__(model, multi_avg_fn=self.moved, use_buffers=True)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's weights into the average; the first are the average."""
        ours, theirs = ([*owner.parameters(), *owner.buffers()] for owner in (self.module, model))
        if self.n_averaged == 0:  # the count stays on the CPU
            for average, value in zip(ours, theirs, strict=True):
                average.copy_(value)
        else:
            for dtype in dict.fromkeys(average.dtype for average in ours):
                alike = [pair for pair in zip(ours, theirs, strict=True) if pair[0].dtype == dtype]
                self.moved([average for average, _ in alike], [value for _, value in alike], self.n_averaged)
        self.n_averaged += 1
