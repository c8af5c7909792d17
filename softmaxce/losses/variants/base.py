"""What cross-entropy's siblings have in common: their options, and how a sum over the classes becomes a loss.

There are two ways to make another loss of cross-entropy. One changes the logits and leaves the rest as it is
(`LogitAdjustingLoss`: temperature, caps, priors). The other puts a function f in the place of the logarithm,

    loss = sum_i weight_i L_i f(-log S_i)          in nats, with f(s) = s for cross-entropy itself,

(`TermwiseLoss`: focal, PolyLoss, ...). -log S_i is the surprisal of class i. It keeps all its digits however sure the
model is, and so does 1 - S_i (`complement`), which would cancel if it were computed from S_i.
"""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...argument_types import Reduction
from ..arguments import InvalidArgumentError, _arithmetic, _check, _check_ids, _classes_last, _result_dtype
from ..builtin import class_weights
from ..cross_entropy import cross_entropy

Weight = Tensor | list[float] | Literal["balanced"] | None


class ClassificationLoss(nn.Module):
    """The options that all of them have.

    Args:
        weight: a factor for each class's share of the loss, K numbers; `balanced` takes N / (K * count).
        ignore_index: images with this class id count for nothing.
        reduction: mean (weighted as PyTorch's is), sum or none (one loss an image).
        label_smoothing: the share of the label spread evenly over all classes, in [0, 1].
        class_counts: how many training images each class has; `balanced` needs it.
        num_classes: K, if known.
    Raises: ValueError if an argument does not fit.
    """

    not_claimed: ClassVar[dict[str, str]] = {}  # laws of `softmaxce check-loss` that it does not keep, and why
    mean_is_weighted: ClassVar = True  # as PyTorch's: see losses.interface.mean_divisor
    weight: Tensor | None

    def __init__(
        self,
        weight: Weight,
        ignore_index: int,
        reduction: Reduction,
        label_smoothing: float,
        class_counts: list[int] | None,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise InvalidArgumentError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        if reduction not in ("mean", "sum", "none"):
            raise InvalidArgumentError(f"reduction must be mean, sum or none, got {reduction!r}")
        if not isinstance(weight, Tensor):
            weight = class_weights(weight, class_counts, num_classes)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def _wide(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None, torch.dtype]:
        """Logits and class weights in the dtype they are computed in, and the dtype of the result."""
        _check(input, target, None, self.ignore_index, self.reduction, self.label_smoothing)
        num_classes = input.shape[0 if input.ndim == 1 else 1]
        if self.weight is not None and self.weight.shape != (num_classes,):
            raise InvalidArgumentError(
                f"weight must have one entry for each of {num_classes} classes, got the shape {list(self.weight.shape)}"
            )
        dtype = _result_dtype(input, target, None)
        wide = _arithmetic(dtype)
        return input.resolve_neg().to(wide), None if self.weight is None else self.weight.to(wide), dtype


class LogitAdjustingLoss(ClassificationLoss):
    """Cross-entropy of logits that have been changed first."""

    def adjusted(self, logits: Tensor) -> Tensor:
        """Logits [K], [B, K] or [B, K, d1, ...] -> other logits, in the same shape."""
        raise NotImplementedError

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss in nats."""
        logits, weight, dtype = self._wide(input, target)
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
    """The sum over the classes of their share of the label times a function of their surprisal."""

    def term(self, surprisal: Tensor) -> Tensor:
        """-log S, at least 0, in any shape -> what a label of that class costs; 0 for 0."""
        raise NotImplementedError

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(logits [B, K], targets [B] class ids or [B, K] probabilities) -> the loss.

        A target that is a mixture of classes (mixup, label smoothing) costs the mixture of what its classes cost.
        """
        logits, weight, dtype = self._wide(input, target)
        if target.shape == input.shape or self.label_smoothing > 0:
            losses, divisor = self._of_mixtures(logits, target, weight)
        else:
            losses = self.term(cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none"))
            shares = shares_of_ids(target, weight, self.ignore_index, logits.dtype)
            losses, divisor = (losses if weight is None else losses * shares), shares.sum()
        return reduced(losses, divisor, self.reduction).to(dtype)

    def _of_mixtures(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The losses for targets that share themselves out among the classes, and what a mean divides by."""
        soft = target.shape == logits.shape
        logits = _classes_last(logits)
        num_classes = logits.shape[-1]
        if soft:
            labels = _classes_last(target).to(logits.dtype)
            divisor = logits.new_tensor(float(labels.shape[:-1].numel()))
            kept = torch.ones_like(labels[..., :1])
        else:
            _check_ids(target, num_classes, self.ignore_index)
            counts = (target != self.ignore_index).unsqueeze(-1)
            labels = (target.unsqueeze(-1) == torch.arange(num_classes, device=target.device)) & counts
            # Where an id cannot be looked at (on CUDA), one that is no class makes a NaN of its row.
            kept = torch.where(counts & ~labels.any(-1, keepdim=True), torch.nan, counts.to(logits.dtype))
            labels = labels * kept
            logits = torch.where(counts, logits, 0)
            divisor = shares_of_ids(target, weight, self.ignore_index, logits.dtype).sum()
        labels = labels * (1 - self.label_smoothing) + kept * (self.label_smoothing / num_classes)
        if weight is not None:
            labels = labels * weight
        terms = self.term(torch.where(labels == 0, 0, surprisals(logits)))  # 0 times infinity is 0 here
        return (labels * terms).sum(-1), divisor


def surprisals(logits: Tensor) -> Tensor:
    """-log S for every class, [..., K] -> [..., K], in nats.

    The largest logit's own term is left out of the sum, so that the surprisal of a class of which the model is sure
    keeps its digits: it is log1p of the other terms.
    """
    top = logits.detach().argmax(-1, keepdim=True)
    z = logits - logits.detach().gather(-1, top)
    is_top = torch.arange(z.shape[-1], device=z.device) == top
    rest = z.exp().masked_fill(is_top, 0).sum(-1, keepdim=True)
    return torch.log1p(rest + torch.expm1(z.gather(-1, top))) - z


def complement(s: Tensor) -> Tensor:
    """1 - exp(-s) for s >= 0, and its slope exp(-s), both with all their digits.

    Near 0 the difference would cancel and expm1 does not; far from 0 expm1's slope, which autograd computes as
    expm1(-s) + 1, would cancel and exp's does not.
    """
    return torch.where(s < math.log(2), -torch.expm1(-s), 1 - torch.exp(-s))


def shares_of_ids(target: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """What each place counts for in a mean: its class's weight, or 1; 0 where it is ignored."""
    counts = target != ignore_index
    if weight is None:
        return counts.to(dtype)
    return weight[torch.where(counts, target, 0).long()] * counts


def reduced(losses: Tensor, divisor: Tensor, reduction: str) -> Tensor:
    """The losses themselves for none, their sum, or their sum over `divisor` for mean."""
    if reduction == "none":
        return losses
    return losses.sum() / divisor if reduction == "mean" else losses.sum()
