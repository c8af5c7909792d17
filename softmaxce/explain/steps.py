"""The numbers of an explanation: from the logits of one image to its loss, its gradient and one step along it."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..losses.reference import one_hot, softmax

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """One step of gradient descent on the logits themselves.

    Attributes:
        size: what the gradient is multiplied by.
        logits: K, after the step: z - size * gradient.
        probabilities: K, after the step.
        loss: nats, after the step.
    """

    size: float
    logits: Numbers
    probabilities: Numbers
    loss: float


@dataclass(frozen=True)
class Steps:
    """Cross-entropy of one row of K logits with every intermediate value, in float64.

    Attributes:
        raw_logits: K, the network's output.
        temperature: what they are divided by; 1 for none.
        logits: K, z: the raw logits over the temperature.
        largest: the largest of them.
        shifted: K, z - largest; at most 0.
        exponentials: K, exp(shifted); in (0, 1].
        exponential_sum: their sum, at least 1.
        probabilities: K, S: softmax.
        log_probabilities: K, log S, from the logits in one step, so that none is log 0.
        label: K, L: one-hot, or a soft label.
        label_smoothing: the part of L that is distributed evenly over all classes.
        smoothed: K, L after smoothing.
        weight: K, class weights; None without them.
        targets: K, Q: the smoothed label times the weights.
        terms: K, -Q log S; their sum is the loss.
        main: the class with the largest label entry, the first of them.
        loss: nats.
        bits: the same in bits.
        least: the minimum of the loss over all probabilities for these targets: 0 for a one-hot label.
        least_at: K, the probabilities with that loss: Q / sum(Q); zeros if all Q are 0.
        gradient: K, of the loss with respect to z: sum(Q) S - Q, which is S - L without weights.
        step: one step of gradient descent.
    """

    raw_logits: Numbers
    temperature: float
    logits: Numbers
    largest: float
    shifted: Numbers
    exponentials: Numbers
    exponential_sum: float
    probabilities: Numbers
    log_probabilities: Numbers
    label: Numbers
    label_smoothing: float
    smoothed: Numbers
    weight: Numbers | None
    targets: Numbers
    terms: Numbers
    main: int
    loss: float
    bits: float
    least: float
    least_at: Numbers
    gradient: Numbers
    step: Step

    @property
    def has_one_term(self) -> bool:
        """Whether the loss is -log S of one class: no weights, and one entry of the (smoothed) label that is not 0."""
        return self.weight is None and sum(target > 0 for target in self.targets) == 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def take_steps(
    logits: Tensor,
    target: int | Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> Steps:
    """Compute every step of cross-entropy for one row of logits.

    Args:
        logits: [K] float, finite.
        target: the class id, or [K] a soft label, no entry negative.
        weight: [K], a factor for each class's term, no entry negative.
        label_smoothing: in [0, 1].
        temperature: more than 0.
    Returns: the steps; the loss is that of one image (PyTorch's reduction="none").
    Raises:
        ValueError: if a number is not finite, or an argument does not fit.
        IndexError: if the class id is outside [0, K).

    Bridle 1990; smoothing: Szegedy et al. 2016, section 7; temperature: Guo et al. 2017, section 4.2.
    """
    raw, label, weights = _checked(logits, target, weight, label_smoothing, temperature)
    z = raw / temperature
    shifted = z - z.max()
    exponentials, probabilities, log_probabilities = shifted.exp(), softmax(z), _log_softmax(z)
    smoothed = label * (1 - label_smoothing) + label.sum() * label_smoothing / len(z)
    q = smoothed if weights is None else smoothed * weights
    total, terms = q.sum(), _terms(q, log_probabilities)
    loss = terms.sum().item()
    # sum(Q) S - Q without cancellation where S is nearly 1: the sums without one class are never small differences.
    gradient = probabilities * _without(q) - q * _without(exponentials) / exponentials.sum()
    least_at = q / total if total > 0 else q
    size = 1 / total.item() if weights is not None and total > 0 else 1.0
    moved = z - size * gradient
    return Steps(
        raw_logits=_numbers(raw),
        temperature=temperature,
        logits=_numbers(z),
        largest=z.max().item(),
        shifted=_numbers(shifted),
        exponentials=_numbers(exponentials),
        exponential_sum=exponentials.sum().item(),
        probabilities=_numbers(probabilities),
        log_probabilities=_numbers(log_probabilities),
        label=_numbers(label),
        label_smoothing=label_smoothing,
        smoothed=_numbers(smoothed),
        weight=None if weights is None else _numbers(weights),
        targets=_numbers(q),
        terms=_numbers(terms),
        main=int(label.argmax()),
        loss=loss,
        bits=loss / math.log(2),
        least=abs(_terms(q, least_at.clamp_min(5e-324).log()).sum().item()),
        least_at=_numbers(least_at),
        gradient=_numbers(gradient),
        step=Step(size, _numbers(moved), _numbers(softmax(moved)), _terms(q, _log_softmax(moved)).sum().item()),
    )


def _checked(
    logits: Tensor, target: int | Tensor, weight: Tensor | None, label_smoothing: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """take_steps' arguments as float64 tensors [K]: logits, label, weights. Raises: ValueError, IndexError."""
    raw = logits.detach().cpu().double()
    if raw.ndim != 1 or len(raw) < 2:
        raise ValueError(f"logits must be one row of two classes or more, got the shape {list(raw.shape)}")
    if not raw.isfinite().all():
        raise ValueError(f"logits must be finite, got {raw.tolist()}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    label = one_hot(torch.tensor(target), len(raw)).double() if isinstance(target, int) else target.cpu().double()
    weights = None if weight is None else weight.detach().cpu().double()
    for name, values in (("target", label), ("weight", weights)):
        if values is not None and (values.shape != raw.shape or not values.isfinite().all() or (values < 0).any()):
            raise ValueError(f"{name} must be {len(raw)} numbers, none negative, got {values.tolist()}")
    return raw, label, weights


def _log_softmax(z: Tensor) -> Tensor:
    """log S, accurate also where S is nearly 1: the largest logit's exp is 1 and is left to log1p."""
    shifted = z - z.max()
    return shifted - torch.log1p(_without(shifted.exp())[z.argmax()])


def _without(values: Tensor) -> Tensor:
    """[K]: the sum of all values but the i-th; for the largest it is summed without it, not subtracted from the sum."""
    largest = values.argmax()
    others = values.sum() - values
    others[largest] = values.masked_fill(torch.arange(len(values)) == largest, 0).sum()
    return others


def _terms(q: Tensor, log_probabilities: Tensor) -> Tensor:
    """-Q log S, which is 0 and not -0 where Q is 0."""
    return torch.where(q == 0, 0.0, -q * log_probabilities)


def _numbers(values: Tensor) -> Numbers:
    return tuple(values.tolist())
