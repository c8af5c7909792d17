"""What a law is, and the search for the smallest input that violates it."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ..errors import in_one_line, ran_out_of_memory
from .cases import Case
from .quiet import quiet
from .subject import Subject

Status = Literal["passed", "failed", "exempt", "not applicable"]
JSON_WORDS = {"passed": "holds", "failed": "broken", "exempt": "not claimed", "not applicable": "not asked"}
MAX_SHRINKING = 4.0  # CPU seconds; after that the smallest input so far is reported


def nothing(subject: Subject) -> str:
    return ""


@dataclass(frozen=True)
class Law:
    """A property of every sound loss, and a test of it.

    Attributes:
        claim: the property, as a sentence.
        look_at: where to look for the cause if the test fails.
        test: (subject, case) -> what is wrong, or None. An exception counts as a failure too.
        cases: subject -> the strategy that generates the inputs.
        examples: the number of inputs to try.
        not_applicable: subject -> why the law does not apply to it; empty if it does.
        remark: subject -> a remark on a passed test.
    """

    claim: str
    look_at: str
    test: Callable[[Subject, Case], str | None]
    cases: Callable[[Subject], SearchStrategy[Case]]
    examples: int = 100
    not_applicable: Callable[[Subject], str] = nothing
    remark: Callable[[Subject], str] = nothing


@dataclass(frozen=True)
class LawResult:
    """The result of testing one law.

    Attributes:
        law: its name.
        claim: the property, as a sentence.
        status: passed, failed, exempt (by the loss itself, or by --skip) or not applicable.
        detail: what is wrong; or why it is exempt or not applicable; or a remark.
        case: the smallest input that violates it.
        look_at: where to look for the cause.
        examples: the number of inputs tried.
        seconds: the time that took.
    """

    law: str
    claim: str
    status: Status
    detail: str = ""
    case: Case | None = None
    look_at: str = ""
    examples: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `verdict` keeps the words of the first version."""
        line: dict[str, Any] = {"law": self.law, "claim": self.claim, "verdict": JSON_WORDS[self.status]}
        if self.detail:
            line["detail"] = self.detail
        if self.case is not None:
            line |= {"smallest_input": self.case.to_dict(), "look_at": self.look_at}
        return {**line, "examples": self.examples, "seconds": round(self.seconds, 3)}


class Violated(Exception):
    """A case violates the law; hypothesis then searches for a smaller one."""


def check_law(name: str, law: Law, subject: Subject) -> LawResult:
    """Test a law on inputs generated from the subject's seed, and shrink the first that violates it."""
    if reason := law.not_applicable(subject):
        return LawResult(name, law.claim, "not applicable", reason)
    started = time.perf_counter()
    failures: list[tuple[Case, str]] = []
    first_failure = 0.0
    tried = 0

    @seed(subject.seed)
    @settings(
        max_examples=law.examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(law.cases(subject))
    def search(case: Case) -> None:
        nonlocal first_failure, tried
        too_late = failures and time.process_time() - first_failure > MAX_SHRINKING
        if too_late and case not in [known for known, _ in failures]:
            return
        tried += 1
        if message := what_is_wrong(law, subject, case):
            first_failure = first_failure or time.process_time()
            failures.append((case, message))
            raise Violated

    with quiet(), contextlib.suppress(Violated, Flaky):  # reported below; flaky: the loss differs between calls
        search()
    seconds = time.perf_counter() - started
    if failures:
        case, message = failures[-1]  # hypothesis ends with the smallest
        return LawResult(name, law.claim, "failed", message, case, law.look_at, tried, seconds)
    return LawResult(name, law.claim, "passed", law.remark(subject), examples=tried, seconds=seconds)


def what_is_wrong(law: Law, subject: Subject, case: Case) -> str | None:
    """What is wrong with the subject on this case, or None."""
    try:
        return law.test(subject, case)
    except Exception as error:  # whatever the loss raises is the result of the test
        if ran_out_of_memory(error):
            raise
        return f"it raises {in_one_line(error).rstrip('.')}"


# -- comparing --------------------------------------------------------------------------------------------------------


def tolerance(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The error that rounding allows: some eps of the dtype, times the largest |logit| and the largest |result|.

    A logit z has a relative error of eps, so its exp has one of |z| eps; and each operation adds one more eps.
    """
    units = 4 if dtype.itemsize == 2 else 32
    size = max(1.0, _largest(logits)) * max(1.0, _largest(expected))
    return units * torch.finfo(dtype).eps * size


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach().abs().double()
    return float(finite[finite.isfinite()].max()) if finite.isfinite().any() else 0.0


def compare(
    got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], logits: Tensor, dtype: torch.dtype = torch.float64
) -> str | None:
    """What is wrong with a value and a gradient, given the exact ones; None if they are within the tolerance."""
    for what, computed, exact in zip(("value", "gradient"), got, expected, strict=True):
        if message := compare_one(what, computed, exact, logits, dtype):
            return message
    return None


def compare_one(
    what: str, got: Tensor, expected: Tensor, logits: Tensor, dtype: torch.dtype = torch.float64
) -> str | None:
    """As `compare`, for one tensor."""
    if got.shape != expected.shape:
        return f"the {what} has the shape {list(got.shape)}, not {list(expected.shape)}"
    allowed = tolerance(logits, expected, dtype)
    difference = (got.double() - expected.double()).abs()
    if ((difference <= allowed) | (got.double() == expected.double())).all():
        return None
    digits = next((n for n in (6, 9, 12) if show(got, n) != show(expected, n)), 17)
    return f"the {what} is {show(got, digits)}, not {show(expected, digits)}"


def show(tensor: Tensor, digits: int = 6) -> str:
    """A tensor of up to two dimensions as text."""
    if tensor.ndim == 0:
        return f"{tensor.item():.{digits}g}"
    if tensor.ndim == 2 and len(tensor) == 1:
        return show(tensor[0], digits)
    return f"[{', '.join(show(each, digits) for each in tensor)}]"
