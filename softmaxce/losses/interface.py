"""From a loss's name and arguments to a callable, and whether that can be trained with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config.components import Component, build
from ..config.reader import CALLED_WITH
from ..errors import ConfigError, Problem, in_one_line, ran_out_of_memory

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, K], targets [B] or [B, K] -> a scalar or [B], in nats


def make_loss(component: Component, class_counts: list[int], device: torch.device) -> Loss:
    """The loss a config names, on the device: a class or a function that makes it, or a function that is it.

    Args:
        component: the name and the arguments.
        class_counts: how many training images each class has; a loss that asks for it, or for `num_classes`, gets it.
        device: where its tensors go.
    Raises: ConfigError if it cannot be made, or cannot be called.
    """
    supplied = {"num_classes": len(class_counts), "class_counts": class_counts}
    loss = build(component, supplied, CALLED_WITH["loss"])
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    if not callable(loss):
        message = f"{component.name} must be callable as loss(logits, targets), got {type(loss).__name__}"
        raise ConfigError([Problem(component.place, message)])
    return loss  # type: ignore[no-any-return]


def refuse_unfit(loss: Loss, component: Component, num_classes: int, device: torch.device, soft: bool = False) -> None:
    """Call the loss once, so that one which does not fit is named before anything is done with it.

    Args:
        loss: what make_loss made of `component`.
        num_classes: K.
        device: of the logits and targets.
        soft: the targets will be probabilities [B, K], not class ids [B].
    Raises: ConfigError if it raises anything, returns another shape than [] or [B], or has no gradient.
    """
    logits = torch.zeros(2, num_classes, device=device, requires_grad=True)
    targets = torch.zeros(2, dtype=torch.int64, device=device)
    if soft:
        targets = nn.functional.one_hot(targets, num_classes).float()
    try:
        value = loss(logits, targets)
    except Exception as error:  # the user's loss; told with its line
        if ran_out_of_memory(error):
            raise
        kind = "probabilities [B, K], as mixup makes them," if soft else "class ids [B]"
        message = f"{component.name} cannot take logits [B, K] and {kind}: {in_one_line(error)}"
        raise ConfigError([Problem(component.place, message)]) from error
    if not isinstance(value, Tensor) or value.shape not in ((), (2,)):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        message = f"{component.name} must return a scalar or one loss an image [B]; for B = 2 it gave {got}"
        raise ConfigError([Problem(component.place, message)])
    if not value.requires_grad:
        message = f"{component.name} has no gradient: what it returns must be computed from the logits, undetached"
        raise ConfigError([Problem(component.place, message)])


def reduction_of(loss: Loss) -> str:
    """How a loss reduces a batch: its `reduction` attribute or argument; mean where it has none."""
    bound = getattr(loss, "keywords", {})  # of a plain function with arguments
    return str(getattr(loss, "reduction", bound.get("reduction", "mean")))
