"""Laws of a loss for classification: which rows cost more than others, and where the gradient must not vanish.

They need no reference, and find the classic mistakes: a missing minus, softmax applied twice, log(p + 1e-9).
"""

from torch import Tensor

from .cases import Case, batches, raised_batches, steps, wrong_rows
from .law import Law, show, tolerance
from .subject import Subject, value_and_gradient

CERTAIN = 40.0  # a row with this margin is certain of its class: the others' probabilities are 4e-18, not yet 0
UNSURE = 5.0  # the margin of a row to compare with
KEPT = 0.1  # this part of the gradient has to remain at a certain row


def _monotonic(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    raised = _raise_label(logits, targets, case.more["raised_by"])
    loss = subject.loss(case.num_classes)
    before, after = (value_and_gradient(loss, z, targets)[0].sum() for z in (logits, raised))
    if after <= before + tolerance(logits, before, logits.dtype):
        return None
    return f"it rises from {show(before)} to {show(after)}"


def _minimum(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    certain = _raise_label(logits * 0 - CERTAIN, targets, CERTAIN)
    loss = subject.loss(case.num_classes)
    value, least = (value_and_gradient(loss, z, targets)[0].sum() for z in (logits, certain))
    if value >= least - tolerance(certain, least, logits.dtype):
        return None
    return f"it is {show(value)} here, and {show(least)} where the label's logit is {CERTAIN:g} above the others"


def _saturation(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    loss = subject.loss(case.num_classes)
    wrong, unsure = (
        -value_and_gradient(loss, z, targets)[1].gather(1, targets[:, None]).sum()
        for z in (logits, _raise_label(logits, targets, CERTAIN - UNSURE))
    )
    if wrong > 0 and wrong >= KEPT * unsure:
        return None
    return (
        f"the gradient of the label's logit is {show(-wrong)} where that is {CERTAIN:g} below the others, "
        f"{show(-unsure)} where it is {UNSURE:g} below"
    )


def _raise_label(logits: Tensor, targets: Tensor, by: float) -> Tensor:
    return logits.scatter_add(1, targets[:, None], logits.new_full((len(targets), 1), by))


def _smoothed(subject: Subject) -> str:
    smoothing = subject.component.arguments.get("label_smoothing")
    return "with label smoothing a row that is certain of its label does not have the least loss" if smoothing else ""


monotonic = Law(
    "a larger logit of the label does not raise the loss",
    "the sign: cross-entropy is minus the label's log-probability; which class is picked",
    _monotonic,
    raised_batches,
)

minimum = Law(
    "no row has a smaller loss than one that is certain of its label",
    "the sign; which class is picked; if the loss smooths its labels, add this law to not_claimed",
    _minimum,
    lambda subject: batches(subject, steps(10), max_rows=1),
    not_applicable=_smoothed,
)

saturation = Law(
    "a row that is certain of a wrong class has a gradient",
    "softmax applied twice (the loss takes logits); log(p + epsilon) or a clamp of p; a bounded loss: if that is "
    "intended, add this law to not_claimed",
    _saturation,
    lambda subject: wrong_rows(subject, CERTAIN),
    examples=30,
)
