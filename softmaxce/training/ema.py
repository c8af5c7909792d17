"""The exponential moving average (EMA) of a model's weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ExponentialMovingAverage(AveragedModel):
    """torch's AveragedModel with an exponential average, buffers included; no update waits for a GPU.

    torch's own update copies its count to the device at each step, where nothing reads it, and waits for the copy.

    Args:
        model: whose weights are averaged.
        decay: the weight of the old average, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.update_average = get_ema_multi_avg_fn(decay)
        super().__init__(model, multi_avg_fn=self.update_average, use_buffers=True)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average in the model's weights; the first call copies them."""
        averages, values = ([*owner.parameters(), *owner.buffers()] for owner in (self.module, model))
        if self.n_averaged == 0:  # the count stays on the CPU
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
        else:
            for dtype in dict.fromkeys(average.dtype for average in averages):
                pairs = [pair for pair in zip(averages, values, strict=True) if pair[0].dtype == dtype]
                self.update_average([average for average, _ in pairs], [value for _, value in pairs], self.n_averaged)
        self.n_averaged += 1
