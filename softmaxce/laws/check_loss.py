"""`softmaxce.check_loss`: the laws of `softmaxce check-loss`, tested from Python."""

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from ..config.components import Component
from ..config.objects import object_name
from ..config.overrides import Override
from ..config.reader import named
from ..config.registry import LAWS
from ..errors import ConfigError, Problem, suggestion
from ..losses.interface import Loss
from ..runtime.device import choose_device
from .examine import examine
from .law import LawResult
from .subject import Subject, referring


def check_loss(
    loss: str | Loss,
    arguments: Mapping[str, Any] | None = None,
    *,
    reference: str | Loss | None = None,
    skip: Collection[str] = (),
    only: Collection[str] = (),
    num_classes: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[LawResult, ...]:
    """Check a loss against the laws that every sound loss obeys, as `softmaxce check-loss` does.

    A law that fails is a result with the status `failed` and the smallest input that violates it, not an exception.

    >>> from softmaxce import check_loss, cross_entropy
    >>> [(result.law, result.status) for result in check_loss(cross_entropy, only=["shift"])]
    [('shift', 'passed')]

    Args:
        loss: the name of a built-in loss, `file.py:Name`, `module:Name`, or an object that is called as
            loss(logits [B, K], targets [B] or [B, K]). An object is not rebuilt: laws that need another reduction are
            not applicable to it.
        arguments: of a loss that is given by its name.
        reference: a loss with the correct values, by name or as an object; a name gets the arguments that both take.
        skip: laws that the loss is exempt from.
        only: the laws to test; all if empty.
        num_classes: the number of classes, if the loss supports only one; None for several.
        seed: of the search for an input that violates a law.
        device: auto, cpu, cuda, cuda:N or mps.
    Returns: one result per law, in the order of `softmaxce check-loss`.
    Raises: ConfigError if the loss cannot be built or called, or if a law or an argument has an unknown name.
    """
    for law in (*skip, *only):
        if law not in LAWS:
            raise ConfigError([Problem(law, f"there is no such law{suggestion(law, LAWS)}")])
    component = _component("loss", loss, arguments or {})
    torch_device = choose_device(device)
    known = None
    if reference is not None:
        named_reference = _component("reference", reference, {})
        if not named_reference.is_object:
            named_reference = referring(named_reference, component)
        known = Subject(named_reference, torch_device, num_classes)
    return tuple(examine(Subject(component, torch_device, num_classes, known, seed), skip, only))


def _component(keyword: str, loss: str | Loss, arguments: Mapping[str, Any]) -> Component:
    if isinstance(loss, str):
        return named("loss", loss, [Override((key,), value, key) for key, value in arguments.items()], keyword)
    if isinstance(loss, type):
        message = f"must be a name, or an object such as {loss.__name__}(), not the class"
        raise ConfigError([Problem(keyword, message)])
    if arguments:
        message = "are only for a loss that is given by its name; this one is an object"
        raise ConfigError([Problem("arguments", message)])
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss)  # it is moved to the device
    return Component(object_name(loss), object_name(loss), {}, location=keyword, instance=loss)
