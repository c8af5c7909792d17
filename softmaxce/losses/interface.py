"""What training needs to know of any loss: its type, reduction, scalar value, its mean's divisor, and its state."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, K], targets [B] or [B, K] -> a scalar or [B], in nats


def refuse_script(module: nn.Module) -> nn.Module:
    """The `__prepare_scriptable__` of a loss, which torch.jit.script calls first. Raises: NotImplementedError."""
    raise NotImplementedError(
        f"{type(module).__name__} cannot be compiled by torch.jit.script, which PyTorch has deprecated; use "
        "torch.export.export or torch.compile, or script torch.nn.CrossEntropyLoss"
    )


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


def state_of(loss: Loss) -> dict[str, Tensor]:
    """The tensors that training may have changed in a user's loss, by name; empty for softmaxce's and PyTorch's own.

    What these hold (class weights, for example) follows from the config.
    """
    package = type(loss).__module__.partition(".")[0]
    if not isinstance(loss, nn.Module) or package in ("softmaxce", "torch"):
        return {}
    return {name: value for name, value in loss.state_dict().items() if isinstance(value, Tensor)}


@contextlib.contextmanager
def unchanged(loss: Loss, *, evaluation: bool = False) -> Iterator[None]:
    """After the block, the loss's buffers are as before; inside it, with `evaluation`, it is in evaluation mode."""
    if not isinstance(loss, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in loss.modules()]
    buffers = [(name, buffer, buffer.clone()) for name, buffer in loss.named_buffers() if not is_lazy(buffer)]
    if evaluation:
        loss.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for name, buffer, value in buffers:
                owner, _, leaf = name.rpartition(".")
                setattr(loss.get_submodule(owner), leaf, buffer.copy_(value))  # it may have been replaced
