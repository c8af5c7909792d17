"""What training needs to know of any loss: its type, its reduction, its scalar value and what its mean divides by."""

from collections.abc import Callable

from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, K], targets [B] or [B, K] -> a scalar or [B], in nats


def reduction_of(loss: Loss) -> str:
    """How a loss reduces a batch: its `reduction` attribute or bound argument; mean if it has neither."""
    bound = getattr(loss, "keywords", {})  # of a functools.partial
    return str(getattr(loss, "reduction", bound.get("reduction", "mean")))


def to_scalar(loss: Tensor) -> Tensor:
    """A loss as a scalar []: its mean, unless it is one already."""
    return loss.mean() if loss.ndim else loss  # not mean() of a scalar: in a small model's step every operation costs


def mean_divisor(loss: Loss, targets: Tensor) -> Tensor | int:
    """What a loss's mean over a batch divides by: its images, or the sum of the weights of those not ignored.

    Args:
        loss: PyTorch's CrossEntropyLoss, one with `mean_is_weighted` as ours, or any other, whose mean is over images.
        targets: [B] class ids, none negative, or [B, K] probabilities, for which every mean is over images.
    Returns: a scalar tensor where it depends on the class ids, else B. It never waits for the device.
    """
    weighted = isinstance(loss, nn.CrossEntropyLoss) or getattr(loss, "mean_is_weighted", False)
    if not weighted or targets.ndim > 1 or reduction_of(loss) != "mean":
        return len(targets)
    weight: Tensor | None = loss.weight  # type: ignore[attr-defined]
    ignore_index: int = loss.ignore_index  # type: ignore[attr-defined]
    if weight is None:
        return len(targets) if ignore_index < 0 else (targets != ignore_index).sum()
    ids = targets.clamp(0, len(weight) - 1)  # an id that is out of range is the loss's to report
    return (weight[ids] * (targets != ignore_index)).sum()
