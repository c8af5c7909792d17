"""The inputs that laws are tested on, and the hypothesis strategies that draw and shrink them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from .subject import Subject


@dataclass(frozen=True)
class Case:
    """One batch, and what else a law needs.

    Attributes:
        logits: [B][K].
        targets: [B] class ids.
        more: further inputs by name, such as `shift`.
    """

    logits: Sequence[Sequence[float]]
    targets: Sequence[int]
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.logits[0])

    def tensors(self, subject: Subject, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Logits [B, K] in `dtype` and targets [B], on the subject's device."""
        logits = torch.tensor(self.logits, dtype=dtype, device=subject.device)
        return logits, torch.tensor(self.targets, device=subject.device)

    def lines(self) -> list[str]:
        """As the Python code that creates it."""
        rows = ", ".join(f"[{', '.join(map(_number, row))}]" for row in self.logits)
        more = [f"{name} = {value}" for name, value in self.more.items()]
        return [f"logits = torch.tensor([{rows}])", f"targets = torch.tensor({list(self.targets)})", *more]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; an infinite logit is the text "-inf"."""
        rows = [[x if abs(x) != torch.inf else _number(x).replace("torch.", "") for x in row] for row in self.logits]
        return {"logits": rows, "targets": list(self.targets), **self.more}


def _number(x: float) -> str:
    if abs(x) == torch.inf:
        return f"{'-' if x < 0 else ''}torch.inf"
    return f"{x:g}." if float(x).is_integer() and abs(x) < 1e6 else f"{x:g}"


def steps(limit: float) -> SearchStrategy[float]:
    """Multiples of 1/4 in [-limit, limit], which shrink to 0; exact in every dtype up to 32."""
    bound = int(4 * limit)
    return st.integers(-bound, bound).map(lambda n: n / 4)


@st.composite
def batches(
    draw: st.DrawFn,
    subject: Subject,
    values: SearchStrategy[float],
    max_classes: int = 6,
    min_rows: int = 1,
    max_rows: int = 3,
) -> Case:
    """Batches of a few rows, of two classes and more, or of the subject's fixed number of classes."""
    fixed = subject.num_classes
    classes = draw(st.just(fixed) if fixed else st.integers(2, max_classes))
    rows = draw(st.integers(min_rows, max_rows))
    row = st.lists(values, min_size=classes, max_size=classes)
    logits = draw(st.lists(row, min_size=rows, max_size=rows))
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return Case(logits, targets)


@st.composite
def distinct_batches(draw: st.DrawFn, subject: Subject, limit: float, max_rows: int = 2) -> Case:
    """Batches in which no two logits of a row are equal or differ by a round number, so that derivatives exist."""
    case = draw(batches(subject, steps(limit), max_classes=4, max_rows=max_rows))
    rows = [[x + (index + 1) / 100 for index, x in enumerate(row)] for row in case.logits]
    return Case(rows, case.targets)


@st.composite
def extreme_batches(draw: st.DrawFn, subject: Subject) -> Case:
    """Batches with logits at ±1e4 and masked classes at -infinity, but never the target."""
    case = draw(batches(subject, st.sampled_from([0.0, 1.0, 1e4, -1e4, -torch.inf]), max_rows=2))
    rows = [
        [0.0 if index == target and x == -torch.inf else x for index, x in enumerate(row)]
        for row, target in zip(case.logits, case.targets, strict=True)
    ]
    return Case(rows, case.targets)


@st.composite
def shifted_batches(draw: st.DrawFn, subject: Subject) -> Case:
    """Batches, and a number for each row to add to its logits."""
    case = draw(batches(subject, steps(10)))
    rows = len(case.targets)
    return Case(case.logits, case.targets, {"shift": draw(st.lists(steps(100), min_size=rows, max_size=rows))})


@st.composite
def permuted_batches(draw: st.DrawFn, subject: Subject) -> Case:
    """Batches, and a permutation of their classes."""
    case = draw(batches(subject, steps(10)))
    return Case(case.logits, case.targets, {"permutation": draw(st.permutations(range(case.num_classes)))})


@st.composite
def mixed_batches(draw: st.DrawFn, subject: Subject) -> Case:
    """Batches with a second class id for each row, and the weight of the first, as in mixup."""
    case = draw(batches(subject, steps(10)))
    ids = st.integers(0, case.num_classes - 1)
    others = draw(st.lists(ids, min_size=len(case.targets), max_size=len(case.targets)))
    weight = draw(st.sampled_from([0.5, 0.25, 0.75]))
    return Case(case.logits, case.targets, {"mixed_with": others, "share": weight})


@st.composite
def raised_batches(draw: st.DrawFn, subject: Subject) -> Case:
    """One row whose label has no larger logit than the others, even when that is `raised_by` as much."""
    case = draw(batches(subject, steps(10), max_rows=1))
    (row,), (target,) = case.logits, case.targets
    by = draw(st.integers(1, 40)) / 4
    largest = max(x for index, x in enumerate(row) if index != target)
    logits = [min(x, largest) - by if index == target else x for index, x in enumerate(row)]
    return Case([logits], [target], {"raised_by": by})


@st.composite
def wrong_rows(draw: st.DrawFn, subject: Subject, margin: float) -> Case:
    """One row whose label's logit is this far below each of the others."""
    case = draw(batches(subject, steps(4), max_rows=1))
    (row,), (target,) = case.logits, case.targets
    lowest = min(x for index, x in enumerate(row) if index != target)
    return Case([[lowest - margin if index == target else x for index, x in enumerate(row)]], [target])


def usual_batch(subject: Subject) -> SearchStrategy[Case]:
    """One batch of three rows, always the same."""
    classes = subject.num_classes or 5
    rows = [[((3 * row + 5 * column) % 7 - 3) / 2 for column in range(classes)] for row in range(3)]
    return st.just(Case(rows, [row % classes for row in range(3)]))
