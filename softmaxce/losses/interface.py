"""From a loss's name and arguments to a callable, and whether that can be trained with."""

from collections.abc import Callable

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, K], targets [B] or [B, K] -> a scalar or [B], in nats


def reduction_of(loss: Loss) -> str:
    """How a loss reduces a batch: its `reduction` attribute or argument; mean where it has none."""
    bound = getattr(loss, "keywords", {})  # of a plain function with arguments
    return str(getattr(loss, "reduction", bound.get("reduction", "mean")))


def to_scalar(loss: Tensor) -> Tensor:
    """A loss as one number []: the mean, unless it is one already; in a small model's step every operation counts."""
    return loss.mean() if loss.ndim else loss
