"""Laws of a loss for classification: which rows cost more than others, and where the gradient must not vanish.

They need no reference, and detect common mistakes: a missing minus, softmax applied twice, log(p + 1e-9).
"""

from torch import Tensor

from .cases import Case, batches, raised_batches, steps, wrong_rows
from .law import Law, show, tolerance
from .subject import Subject, value_and_gradient

CONFIDENT = 40.0  # the margin of a confident row: the other classes' probabilities are 4e-18, not yet 0
LESS_CONFIDENT = 5.0  # the margin of the row that it is compared with
MIN_GRADIENT_RATIO = 0.1  # of the gradients at these two margins


def _monotonic(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    raised = _raise_label(logits, targets, case.more["raised_by"])
    loss = subject.loss(case.num_classes)
    before, after = (value_and_gradient(loss, z, targets)[0].sum() for z in (logits, raised))
    if after <= before + tolerance(logits, before, logits.dtype):
        return None
    return f"the loss rises from {show(before)} to {show(after)}"


def _minimum(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    confident = _raise_label(logits * 0 - CONFIDENT, targets, CONFIDENT)
    loss = subject.loss(case.num_classes)
    value, minimum = (value_and_gradient(loss, z, targets)[0].sum() for z in (logits, confident))
    if value >= minimum - tolerance(confident, minimum, logits.dtype):
        return None
    return f"the loss is {show(value)}, but {show(minimum)} where the label's logit is {CONFIDENT:g} above the others"


def _saturation(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    loss = subject.loss(case.num_classes)
    wrong, less_confident = (
        -value_and_gradient(loss, z, targets)[1].gather(1, targets[:, None]).sum()
        for z in (logits, _raise_label(logits, targets, CONFIDENT - LESS_CONFIDENT))
    )
    if wrong > 0 and wrong >= MIN_GRADIENT_RATIO * less_confident:
        return None
    if wrong < 0 and less_confident < 0:
        return (
            f"the gradient with respect to the label's logit has the wrong sign: it is {show(-wrong)} where that is "
            f"{CONFIDENT:g} below the others, and must be negative there, so that a step raises it"
        )
    return (
        f"the gradient with respect to the label's logit vanishes: it is {show(-wrong)} where that is {CONFIDENT:g} "
        f"below the others, and {show(-less_confident)} where it is {LESS_CONFIDENT:g} below"
    )


def _raise_label(logits: Tensor, targets: Tensor, by: float) -> Tensor:
    return logits.scatter_add(1, targets[:, None], logits.new_full((len(targets), 1), by))


def _smoothed(subject: Subject) -> str:
    smoothing = subject.component.arguments.get("label_smoothing")
    return "with label smoothing a confident row does not have the smallest loss" if smoothing else ""


monotonic = Law(
    "a larger logit of the label does not raise the loss",
    "the sign: cross-entropy is minus the label's log-probability; which class is picked",
    _monotonic,
    raised_batches,
)

minimum = Law(
    "no row has a smaller loss than one that is confident in its label",
    "the sign; which class is picked; if the loss smooths its labels, add this law to not_claimed",
    _minimum,
    lambda subject: batches(subject, steps(10), max_rows=1),
    not_applicable=_smoothed,
)

saturation = Law(
    "a row that is confident in a wrong class has a gradient",
    "the sign, if the gradient has the wrong one: cross-entropy is minus the label's log-probability; if it vanishes, "
    "softmax applied twice (the loss takes logits); log(p + epsilon) or a clamp of p; a bounded loss: if that is "
    "intended, add this law to not_claimed",
    _saturation,
    lambda subject: wrong_rows(subject, CONFIDENT),
    examples=30,
)
