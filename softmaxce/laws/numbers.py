"""Laws of floating point: extreme logits, every dtype, autocast."""

import torch

from .cases import Case, batches, extreme_batches, steps
from .law import Law, compare, compare_one, show
from .subject import Subject, value_and_gradient

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _finite(subject: Subject, case: Case) -> str | None:
    if -torch.inf in [x for row in case.logits for x in row] and not _has_a_limit(subject, case):
        return None
    for dtype in (torch.float32, torch.float64):
        results = value_and_gradient(subject.loss(case.num_classes, dtype), *case.tensors(subject, dtype))
        for what, result in zip(("value", "gradient"), results, strict=True):
            if not result.isfinite().all():
                return f"in {_name(dtype)} the {what} is {show(result)}"
    return None


def _has_a_limit(subject: Subject, case: Case) -> bool:
    """Whether the loss has a limit as the masked logits go to -infinity. With label smoothing, for one, it diverges."""
    logits, targets = case.tensors(subject)
    loss = subject.loss(case.num_classes)
    far, farther = (loss(logits.clamp(min=lowest), targets) for lowest in (-2e4, -4e4))
    if not (far.isfinite().all() and farther.isfinite().all()):
        return True
    return compare_one("value", farther, far, logits.clamp(min=-1e4)) is None


def _where_it_diverges(subject: Subject) -> str:
    """A remark on losses that are infinite at a masked class, because their limit is."""
    masked = Case([[0.0, -torch.inf, *[0.0] * ((subject.num_classes or 2) - 2)]], [0])
    value, _ = value_and_gradient(subject.loss(masked.num_classes), *masked.tensors(subject))
    return "" if value.isfinite().all() else "infinite only where its limit is, as with label smoothing at -inf"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtypes(subject: Subject, case: Case) -> str | None:
    expected = value_and_gradient(subject.loss(case.num_classes), *case.tensors(subject))
    for dtype in DTYPES:
        logits, targets = case.tensors(subject, dtype)
        got = value_and_gradient(subject.loss(case.num_classes, dtype), logits, targets)
        allowed = {dtype, torch.float32} if dtype.itemsize == 2 else {dtype}
        if got[0].dtype not in allowed:
            return f"logits in {_name(dtype)} give a loss in {_name(got[0].dtype)}"
        if message := compare(got, expected, logits, dtype):
            return f"in {_name(dtype)} {message}"
    return None


def _autocast(subject: Subject, case: Case) -> str | None:
    expected = value_and_gradient(subject.loss(case.num_classes), *case.tensors(subject))
    loss = subject.loss(case.num_classes, torch.float32)
    for dtype in (torch.bfloat16, torch.float32):
        logits, targets = case.tensors(subject, dtype)
        with torch.autocast(subject.device.type, torch.bfloat16):
            got = value_and_gradient(loss, logits, targets)
        if message := compare(got, expected, logits, torch.bfloat16):
            return f"under autocast, of logits in {_name(dtype)}, {message}"
    return None


finite = Law(
    "the loss is finite at logits of ±1e4 and classes at -inf",
    "subtract each row's largest logit before exp (log_softmax does); no log or division of a probability; 0 * inf",
    _finite,
    extreme_batches,
    examples=150,
    remark=_where_it_diverges,
)

dtypes = Law(
    "float32, bfloat16 and float16 agree with float64",
    "an epsilon or an exp outside the range of the narrow dtype; .float() of float64; constants in another dtype",
    _dtypes,
    lambda subject: batches(subject, steps(8)),
)

autocast = Law(
    "autocast to bfloat16 agrees with float64",
    "operations that autocast leaves in 16 bits: compute in float32 (logits.float()) where digits matter",
    _autocast,
    lambda subject: batches(subject, steps(8)),
    examples=30,
)
