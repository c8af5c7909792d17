"""Base classes of the losses derived from cross-entropy: their common options, and the loss as a sum over classes.

There are two ways to derive a loss from cross-entropy. One changes the logits (`LogitAdjustingLoss`: temperature, caps,
priors). The other replaces the logarithm by a function f,

    loss = sum_i weight_i L_i f(-log S_i)          in nats, with f(s) = s for cross-entropy itself,

(`TermwiseLoss`: focal, PolyLoss, ...). -log S_i is the surprisal of class i. It keeps all its digits however confident
the model is, and so does 1 - S_i (`complement`), which would cancel if it were computed from S_i.
"""

import inspect
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...argument_types import ClassWeighting, Int64, NonNegativeFloat, Probability, Reduction
from ..arguments import (
    arithmetic_dtype,
    check_arguments,
    check_options,
    check_weight_shape,
    classes_last,
    num_classes_of,
    result_dtype,
)
from ..builtin import class_weights
from ..cross_entropy import cross_entropy
from ..interface import refuse_script
from ..targets import reduce_losses, target_distribution, weights_of_ids, zero_where_ignored


class ClassificationLoss(nn.Module):
    """The options that all derived losses have after their own.

    A subclass takes them as `*args: Any, **kwargs: Any` at the end of its constructor and passes them on; its signature
    then lists them, for a config as well as for help().

    Args:
        weight: a factor for each class's term, K numbers; or a name, as of softmax_cross_entropy.
        ignore_index: images with this class id count for nothing.
        reduction: mean (weighted as PyTorch's is), sum or none (one loss per image).
        label_smoothing: the part of the label that is spread evenly over all classes, in [0, 1].
        class_counts: how many training images each class has; the names need it.
        num_classes: K, if known.
    Raises: ValueError if an argument is invalid.
    """

    __prepare_scriptable__ = refuse_script
    not_claimed: ClassVar[dict[str, str]] = {}  # laws of `softmaxce check-loss` from which it is exempt, and why
    mean_is_weighted: ClassVar = True  # as PyTorch's: see losses.interface.mean_divisor
    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | list[NonNegativeFloat] | ClassWeighting | None = None,
        ignore_index: Int64 = -100,
        reduction: Reduction = "mean",
        label_smoothing: Probability = 0.0,
        *,
        class_counts: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_options(reduction, label_smoothing)
        if not isinstance(weight, Tensor):
            weight = class_weights(weight, class_counts, num_classes)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put the base class's options in place of *args and **kwargs in the subclass's signature."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__signature__ = _full_signature(cls)  # type: ignore[attr-defined]

    def _prepare(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None, torch.dtype]:
        """Logits and class weights in the dtype of the arithmetic, and the dtype of the result."""
        check_arguments(input, target, None, self.ignore_index, self.reduction, self.label_smoothing)
        if self.weight is not None:
            check_weight_shape(self.weight, num_classes_of(input))
        dtype = result_dtype(input, target, None)
        wide = arithmetic_dtype(dtype)
        return input.resolve_neg().to(wide), None if self.weight is None else self.weight.to(wide), dtype


def _full_signature(cls: type) -> inspect.Signature:
    """A class's signature: its own parameters, and its base's in place of *args and **kwargs if it has both."""
    own = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    named = [p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    base = cls.__mro__[1]
    if len(own) - len(named) < 2 or not issubclass(base, ClassificationLoss):
        return inspect.Signature(own)
    names = {p.name for p in named}
    inherited = [p for p in inspect.signature(base).parameters.values() if p.name not in names]
    return inspect.Signature(sorted(named + inherited, key=lambda parameter: parameter.kind))


class LogitAdjustingLoss(ClassificationLoss):
    """Cross-entropy of adjusted logits."""

    def adjusted(self, logits: Tensor) -> Tensor:
        """Logits [K], [B, K] or [B, K, d1, ...] -> other logits, in the same shape."""
        raise NotImplementedError

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss in nats."""
        logits, weight, dtype = self._prepare(input, target)
        if target.shape != input.shape:  # a NaN in an ignored row must not come through `adjusted` backwards
            counts = target != self.ignore_index
            logits = torch.where(counts.unsqueeze(1) if input.ndim > 1 else counts, logits, 0)
        return cross_entropy(
            self.adjusted(logits),
            target,
            weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        ).to(dtype)


class TermwiseLoss(ClassificationLoss):
    """The sum over the classes of the label times a function of the class's surprisal."""

    def term(self, surprisal: Tensor) -> Tensor:
        """-log S, at least 0, in any shape -> the loss of a label of that class; 0 for 0."""
        raise NotImplementedError

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss.

        The loss of a mixture of classes (mixup, label smoothing) is the mixture of the classes' losses.
        """
        logits, weight, dtype = self._prepare(input, target)
        divisor: Tensor | float
        if target.shape == input.shape or self.label_smoothing > 0:
            losses, divisor = self._of_mixtures(logits, target, weight)
        else:
            losses = self.term(cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none"))
            weights = weights_of_ids(target, weight, self.ignore_index, logits.dtype)
            losses, divisor = (losses if weight is None else losses * weights), weights.sum()
        return reduce_losses(losses, divisor, self.reduction).to(dtype)

    def _of_mixtures(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """The losses for targets that are distributions over the classes, and what a mean divides by."""
        is_soft = target.shape == logits.shape
        logits = classes_last(logits)
        labels, divisor, counts = target_distribution(
            target, logits, weight, self.ignore_index, self.label_smoothing, is_soft=is_soft
        )
        logits = zero_where_ignored(logits, counts)
        terms = self.term(torch.where(labels == 0, 0, surprisals(logits)))  # 0 times infinity is 0 here
        return (labels * terms).sum(-1), divisor


def surprisals(logits: Tensor) -> Tensor:
    """-log S for every class, [..., K] -> [..., K], in nats.

    The largest logit's own term is left out of the sum, so that the surprisal of a class of high
    probability keeps its digits: it is log1p of the other terms.
    """
    top = logits.detach().argmax(-1, keepdim=True)
    z = logits - logits.detach().gather(-1, top)
    is_top = torch.arange(z.shape[-1], device=z.device) == top
    rest = z.exp().masked_fill(is_top, 0).sum(-1, keepdim=True)
    return torch.log1p(rest + torch.expm1(z.gather(-1, top))) - z


def complement(s: Tensor) -> Tensor:
    """1 - exp(-s) for s >= 0, and its derivative exp(-s), both without cancellation.

    Near 0 the difference would cancel and expm1 does not; far from 0 expm1's slope, which autograd computes as
    expm1(-s) + 1, would cancel and exp's does not.
    """
    return torch.where(s < math.log(2), -torch.expm1(-s), 1 - torch.exp(-s))
