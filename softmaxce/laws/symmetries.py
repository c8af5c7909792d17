"""Laws that compare a loss with itself: shifted logits, permuted classes, equivalent targets."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..losses.interface import Loss
from .cases import Case, batches, mixed_batches, permuted_batches, shifted_batches, steps
from .law import Law, compare, compare_one
from .subject import Subject, class_weights_of, value_and_gradient


def _shift(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    loss = subject.loss(case.num_classes)
    shifted = logits + torch.tensor(case.more["shift"], dtype=logits.dtype, device=logits.device)[:, None]
    expected = value_and_gradient(loss, logits, targets)
    return compare(value_and_gradient(loss, shifted, targets), expected, torch.cat([logits, shifted]))


def _permutation(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    order = case.more["permutation"]
    loss = subject.loss(case.num_classes)
    value, gradient = value_and_gradient(loss, logits, targets)
    new_ids = torch.tensor([order.index(k) for k in range(len(order))], device=targets.device)
    got = value_and_gradient(_reordered(loss, order), logits[:, order], new_ids[targets])
    return compare(got, (value, gradient[:, order]), logits)


def _reordered(loss: Loss, order: list[int]) -> Loss:
    """The loss with its per-class tensors (class weights, log-priors, ...) permuted."""
    if not isinstance(loss, nn.Module):
        return loss
    loss = copy.deepcopy(loss)
    with torch.no_grad():
        for tensor in (*loss.parameters(), *loss.buffers()):
            if tensor.shape == (len(order),):
                tensor.copy_(tensor[order])
    return loss


def _rows(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    loss = subject.loss(case.num_classes)
    value, gradient = value_and_gradient(loss, logits, targets)
    pairs = [value_and_gradient(loss, z[None], t[None]) for z, t in zip(logits, targets, strict=True)]
    values, gradients = torch.stack([v.sum() for v, _ in pairs]), torch.cat([g for _, g in pairs])
    if value.ndim == 1:
        return compare((value, gradient), (values, gradients), logits)
    if subject.reduction == "sum":
        return compare((value, gradient), (values.sum(), gradients), logits)
    weights = class_weights_of(loss, targets)
    weights = weights / weights.sum()
    message = compare((value, gradient), ((weights * values).sum(), weights[:, None] * gradients), logits)
    if message and compare_one("value", value, values.sum(), logits) is None:
        return f"{message}: it is the sum of the rows, not their mean"
    return message


def _reductions(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    losses = {name: subject.loss(case.num_classes, reduction=name) for name in ("none", "sum", "mean")}
    results = {name: value_and_gradient(loss, logits, targets) for name, loss in losses.items()}
    each, gradient = results["none"]
    if each.shape != targets.shape:
        return f"for reduction none the value has the shape {list(each.shape)}, not {list(targets.shape)}, one per row"
    divisor = class_weights_of(losses["none"], targets).sum()
    for name, by in (("sum", 1.0), ("mean", divisor)):
        if message := compare(results[name], (each.sum() / by, gradient / by), logits):
            return f"for reduction {name} {message}"
    return None


def _takes_no_reduction(subject: Subject) -> str:
    if subject.component.is_object:
        return "an object is not rebuilt with another reduction"
    return "" if subject.takes("reduction") else "it has no argument `reduction`"


def _summed(subject: Subject, num_classes: int) -> Loss:
    """The loss with reduction sum if it has one: PyTorch's weighted mean has another divisor for probabilities."""
    return subject.loss(num_classes, reduction="sum") if subject.takes("reduction") else subject.loss(num_classes)


def _one_hot(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    loss = _summed(subject, case.num_classes)
    expected = value_and_gradient(loss, logits, targets)
    return compare(value_and_gradient(loss, logits, _labels(targets, logits)), expected, logits)


def _labels(targets: Tensor, logits: Tensor) -> Tensor:
    return one_hot(targets, logits.shape[1]).to(logits.dtype)


def _soft_targets(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    others = torch.tensor(case.more["mixed_with"], device=targets.device)
    weight = case.more["share"]
    loss = _summed(subject, case.num_classes)
    first, second = (value_and_gradient(loss, logits, _labels(ids, logits)) for ids in (targets, others))
    mixed = weight * _labels(targets, logits) + (1 - weight) * _labels(others, logits)
    value, gradient = (weight * one + (1 - weight) * other for one, other in zip(first, second, strict=True))
    return compare(value_and_gradient(loss, logits, mixed), (value, gradient), logits)


shift = Law(
    "adding a constant to a row's logits changes nothing",
    "softmax guarantees it; a penalty, cap or clamp on the logits breaks it",
    _shift,
    shifted_batches,
)

permutation = Law(
    "the order of the classes does not matter",
    "an index that is off by one; a class that is treated differently; max or argsort with ties",
    _permutation,
    permuted_batches,
)

rows = Law(
    "a batch's loss is the mean of its rows' losses",
    "softmax, max or sum over dim 0 in place of dim 1; the divisor; for a sum, give the loss reduction = 'sum'",
    _rows,
    lambda subject: batches(subject, steps(10), min_rows=2, max_rows=4),
)

reductions = Law(
    "reductions sum and mean agree with none",
    "the divisor of mean; a reduction that is ignored",
    _reductions,
    lambda subject: batches(subject, steps(10)),
    not_applicable=_takes_no_reduction,
)

class_ids = Law(
    "one-hot targets give the same loss as class ids",
    "the branch for float targets [B, K]; if it takes class ids only, add this law to not_claimed",
    _one_hot,
    lambda subject: batches(subject, steps(10)),
)

soft_targets = Law(
    "a mixed target costs the mixture of its classes' losses",
    "argmax or rounding of the targets; a function of the whole loss, not of each class's term: if that is intended, "
    "add this law to not_claimed",
    _soft_targets,
    mixed_batches,
)
