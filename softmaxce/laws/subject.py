"""The loss under test, built again wherever a law needs another dtype, reduction or number of classes."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..build import make_loss
from ..config.components import Component, load_object
from ..config.registry import LAWS
from ..config.signatures import signature_of
from ..errors import ConfigError, Problem, suggestion
from ..losses.interface import Loss, reduction_of
from ..training.trials import refuse_unfit

CLASSES = 3  # unless a law needs another number


class Subject:
    """A loss by its name and arguments.

    Args:
        component: the name and the arguments.
        device: where the laws are tested.
        num_classes: the only number of classes to test; None for several.
        reference: a loss with the correct values and gradients; None if there is none.
        seed: of the search for a case that violates a law.
    Raises: ConfigError if it cannot be built or called, or if its `not_claimed` is not a mapping from laws to reasons.

    Attributes:
        not_claimed: the laws that the loss declares itself exempt from, law -> reason.
    """

    def __init__(
        self,
        component: Component,
        device: torch.device,
        num_classes: int | None = None,
        reference: "Subject | None" = None,
        seed: int = 0,
    ) -> None:
        self.component = component
        self.device = device
        weight = component.arguments.get("weight")
        self.num_classes = num_classes or (len(weight) if isinstance(weight, list) else None)
        self.reference = reference
        self.seed = seed
        self._cache: dict[tuple[Any, ...], Loss] = {}
        loss = self.loss(dtype=torch.float32)
        refuse_unfit(loss, component, self.num_classes or CLASSES, device)
        self.not_claimed = _not_claimed(loss, component)

    def loss(self, num_classes: int | None = None, dtype: torch.dtype = torch.float64, **changes: Any) -> Loss:
        """The loss for `num_classes` classes, its own tensors in `dtype`, with some of its arguments changed.

        A loss that takes `class_counts` gets 10, 20, 30, ..., so that no two classes are equal.
        """
        num_classes = num_classes or self.num_classes or CLASSES
        key = (num_classes, dtype, *sorted(changes.items()))
        if key not in self._cache:
            component = replace(self.component, arguments={**self.component.arguments, **changes})
            loss = make_loss(component, [10 * (index + 1) for index in range(num_classes)], self.device)
            if isinstance(loss, nn.Module):
                loss = copy.deepcopy(loss).to(dtype)
            self._cache[key] = loss
        return self._cache[key]

    def takes(self, argument: str) -> bool:
        """Whether the loss has an argument of this name."""
        return not self.component.is_object and argument in signature_of(load_object(self.component.target)).names()

    @property
    def withheld(self) -> list[str]:
        """The loss's arguments that its reference does not take."""
        if self.reference is None:
            return []
        return [name for name in self.component.arguments if not self.reference.takes(name)]

    @property
    def reduction(self) -> str:
        """none, mean or sum."""
        return reduction_of(self.loss())


def _not_claimed(loss: Loss, component: Component) -> Mapping[str, str]:
    # A function's attribute is not on the partial that binds its arguments, nor on what a factory returns.
    claims = getattr(loss, "not_claimed", None)
    if not claims:
        claims = {} if component.is_object else getattr(load_object(component.target), "not_claimed", {})
    message = None
    if not isinstance(claims, Mapping):
        message = f"must be a mapping, law -> reason, got {type(claims).__name__}"
    elif unknown := [name for name in claims if name not in LAWS]:
        message = f"has an unknown law: '{unknown[0]}'{suggestion(str(unknown[0]), LAWS)}"
    if message:
        raise ConfigError([Problem(component.location, f"{component.name}.not_claimed {message}")])
    return claims


def value_and_gradient(loss: Loss, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A loss's value [] or [B] for logits [B, K], and the gradient [B, K] of (the sum of) it."""
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, targets)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient.detach()


def class_weights_of(loss: Loss, targets: Tensor) -> Tensor:
    """The weight of each target [B] in the loss's mean, [B]: its class weight, as in PyTorch, or 1."""
    weight = getattr(loss, "weight", None)
    return weight[targets].double() if isinstance(weight, Tensor) else torch.ones_like(targets, dtype=torch.float64)


def referring(reference: Component, component: Component) -> Component:
    """The reference with those of the subject's arguments that it takes too, such as label_smoothing."""
    names = signature_of(load_object(reference.target)).names()
    shared = {name: value for name, value in component.arguments.items() if name in names}
    return replace(reference, arguments={**reference.arguments, **shared})
