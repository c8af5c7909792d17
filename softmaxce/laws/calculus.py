"""Laws of values and derivatives: against a reference, and against finite differences."""

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from . import exact
from .cases import Case, batches, distinct_batches, steps
from .law import Law, compare_one, show
from .subject import Subject, value_and_gradient

# -- against a reference ----------------------------------------------------------------------------------------------


def without_reference(subject: Subject) -> str:
    """A value can be checked only against a reference."""
    return "" if subject.reference is not None else "no --reference to compare with"


def source_of_reference(subject: Subject) -> str:
    """Where the correct values come from."""
    assert subject.reference is not None
    return "mpmath's, with 50 digits" if _is_exact(subject.reference) else "in float64"


def _is_exact(reference: Subject) -> bool:
    """Whether exact.cross_entropy computes this reference."""
    arguments = reference.component.arguments
    others = [key for key, value in arguments.items() if key not in exact.KNOWN and value not in (None, -100)]
    is_known = reference.component.name in exact.CROSS_ENTROPIES
    return is_known and not others and not isinstance(arguments.get("weight"), str)


def reference_values(subject: Subject, case: Case) -> tuple[Tensor, Tensor]:
    """The reference's value and gradient: with 50 digits if it is cross-entropy, else in float64."""
    reference = subject.reference
    assert reference is not None
    if _is_exact(reference):
        known = {key: each for key, each in reference.component.arguments.items() if key in exact.KNOWN}
        value, gradient = exact.cross_entropy(case, **known)
        return value.to(subject.device), gradient.to(subject.device)
    return value_and_gradient(reference.loss(case.num_classes), *case.tensors(subject))


def _against_the_reference(subject: Subject, case: Case, which: int) -> str | None:
    expected = reference_values(subject, case)
    for dtype in (torch.float64, torch.float32):
        logits, targets = case.tensors(subject, dtype)
        got = value_and_gradient(subject.loss(case.num_classes, dtype), logits, targets)
        if got[0].ndim == 1 and expected[0].ndim == 0:  # one loss per image: training uses their mean
            got = got[0].mean(), got[1] / len(targets)
        what = ("value", "gradient")[which]
        if message := compare_one(what, got[which], expected[which], logits, dtype):
            return f"in {str(dtype).removeprefix('torch.')} {message}"
    return None


def moderate_and_large_logits(subject: Subject) -> SearchStrategy[Case]:
    """Moderate logits, with a small tolerance, and differences whose exp overflows in float32 and float64."""
    return batches(subject, steps(10)) | batches(subject, steps(450))


value = Law(
    "the value equals the reference's",
    "the formula (sign, log, the class picked, smoothing, weights, divisor); overflow",
    lambda subject, case: _against_the_reference(subject, case, 0),
    moderate_and_large_logits,
    not_applicable=without_reference,
    remark=source_of_reference,
)

gradient = Law(
    "the gradient equals the reference's",
    "a custom backward (for cross-entropy it is softmax - one-hot, times the upstream gradient); a detach()",
    lambda subject, case: _against_the_reference(subject, case, 1),
    moderate_and_large_logits,
    not_applicable=without_reference,
    remark=source_of_reference,
)


# -- against finite differences ---------------------------------------------------------------------------------------


def _gradcheck(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    loss = subject.loss(case.num_classes)

    def scaled(z: Tensor, targets: Tensor = targets) -> Tensor:
        return 0.5 * loss(z, targets)  # detects a backward that ignores the upstream gradient

    if gradcheck(scaled, logits.clone().requires_grad_(), raise_exception=False):
        return None
    analytic = value_and_gradient(scaled, logits, targets)[1]
    numeric = torch.zeros_like(logits)
    for index in range(logits.numel()):
        step = torch.zeros_like(logits)
        step.view(-1)[index] = 1e-6
        numeric.view(-1)[index] = (scaled(logits + step) - scaled(logits - step)).sum() / 2e-6
    if torch.allclose(analytic, numeric, 1e-3, 1e-5):
        gradcheck(scaled, logits.clone().requires_grad_())  # it failed for another reason, which this raises
    return f"of half the loss, backward gives {show(analytic)}, finite differences {show(numeric)}"


def _gradgradcheck(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    loss = subject.loss(case.num_classes)
    if gradgradcheck(lambda z: loss(z, targets), logits.requires_grad_(), raise_exception=False):
        return None
    return "the second derivative of autograd differs from finite differences of the gradient"


first_derivative = Law(
    "the gradient matches finite differences",
    "a custom backward (is it times the upstream gradient?); a detach(); .float(), too coarse for small differences",
    _gradcheck,
    lambda subject: distinct_batches(subject, 6),
    examples=25,
)

second_derivative = Law(
    "the second derivative matches finite differences",
    "a custom backward must itself be made of differentiable operations on saved tensors, or not be claimed",
    _gradgradcheck,
    lambda subject: distinct_batches(subject, 3, max_rows=1),
    examples=10,
)
