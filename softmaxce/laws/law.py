"""What a law is, and the search for the smallest input that breaks it."""

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

Answer = Literal["holds", "broken", "not claimed", "not asked"]
LONGEST_SHRINKING = 4.0  # seconds of work; after that the smallest input found so far is it


def nothing(subject: Subject) -> str:
    """Nothing to say."""
    return ""


@dataclass(frozen=True)
class Law:
    """A sentence that is true of a sound loss, and the way to try it.

    Attributes:
        claim: the sentence.
        look_at: what to look at where it is broken.
        test: (subject, case) -> what is wrong, or None. What it raises counts as wrong too.
        cases: subject -> the inputs to try.
        examples: how many of them.
        unasked: subject -> why the law does not concern it; empty if it does.
        remark: subject -> what to add where the law holds.
    """

    claim: str
    look_at: str
    test: Callable[[Subject, Case], str | None]
    cases: Callable[[Subject], SearchStrategy[Case]]
    examples: int = 100
    unasked: Callable[[Subject], str] = nothing
    remark: Callable[[Subject], str] = nothing


@dataclass(frozen=True)
class LawResult:
    """What became of one law.

    Attributes:
        law: its id.
        claim: its sentence.
        answer: holds, broken, not claimed (by the loss, or skipped) or not asked.
        detail: what is wrong; or why it is not claimed or not asked; or a remark.
        case: the smallest input found that breaks it.
        look_at: what to look at where it is broken.
        examples: how many inputs were tried.
        seconds: how long that took.
    """

    law: str
    claim: str
    answer: Answer
    detail: str = ""
    case: Case | None = None
    look_at: str = ""
    examples: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        line: dict[str, Any] = {"law": self.law, "claim": self.claim, "verdict": self.answer}
        if self.detail:
            line["detail"] = self.detail
        if self.case is not None:
            line |= {"smallest_input": self.case.to_dict(), "look_at": self.look_at}
        return {**line, "examples": self.examples, "seconds": round(self.seconds, 3)}


class Broken(Exception):
    """A case breaks the law; hypothesis goes on to look for a smaller one."""


def judge(name: str, law: Law, subject: Subject) -> LawResult:
    """Try a law on inputs drawn from the subject's seed, and shrink the first that breaks it."""
    if reason := law.unasked(subject):
        return LawResult(name, law.claim, "not asked", reason)
    started = time.perf_counter()
    broken: list[tuple[Case, str]] = []
    found_at = 0.0
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
        nonlocal found_at, tried
        too_late = broken and time.process_time() - found_at > LONGEST_SHRINKING
        if too_late and case not in [known for known, _ in broken]:
            return
        tried += 1
        if message := what_is_wrong(law, subject, case):
            found_at = found_at or time.process_time()
            broken.append((case, message))
            raise Broken

    with quiet(), contextlib.suppress(Broken, Flaky):  # flaky: the loss differs from call to call
        search()
    seconds = time.perf_counter() - started
    if broken:
        case, message = broken[-1]  # hypothesis ends with the smallest
        return LawResult(name, law.claim, "broken", message, case, law.look_at, tried, seconds)
    return LawResult(name, law.claim, "holds", law.remark(subject), examples=tried, seconds=seconds)


def what_is_wrong(law: Law, subject: Subject, case: Case) -> str | None:
    """What a case shows to be wrong with the subject, or None."""
    try:
        return law.test(subject, case)
    except Exception as error:  # whatever the loss raises is the finding
        if ran_out_of_memory(error):
            raise
        return f"it raises {in_one_line(error).rstrip('.')}"


# -- comparing --------------------------------------------------------------------------------------------------------


def tolerance(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """How far a result may be off: some units of rounding of the dtype, for the largest logit and the result's size.

    A logit z is known to a relative unit, so its exp is known to |z| units; and a few operations add a unit each.
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
    """What is wrong with a value and a gradient, given the right ones; None where they are near enough."""
    for what, mine, true in zip(("value", "gradient"), got, expected, strict=True):
        if message := compare_one(what, mine, true, logits, dtype):
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
    """A few numbers as a person reads them."""
    if tensor.ndim == 0:
        return f"{tensor.item():.{digits}g}"
    if tensor.ndim == 2 and len(tensor) == 1:
        return show(tensor[0], digits)
    return f"[{', '.join(show(each, digits) for each in tensor)}]"
