"""The exact loss by mpmath, rows that are numerically difficult, and comparisons with torch's own samples."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import torch
from torch import Tensor

from .torchs_samples import op_db

OPERATION = next(entry for entry in op_db if entry.name == "nn.functional.cross_entropy")

BITS = {torch.float64: 53, torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}  # of precision
SMALLEST = {
    torch.float64: -1074,
    torch.float32: -149,
    torch.bfloat16: -133,
    torch.float16: -24,
}  # exponent of the smallest positive number


def exact_result(row: Tensor, target: int) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """The loss of one row of logits, and S - L."""
    with mpmath.workdps(50):
        z = [mpmath.mpf(number) for number in row.double().tolist()]
        largest = max(z)
        e = [mpmath.exp(number - largest) for number in z]
        total = mpmath.fsum(e)
        gradient = [number / total for number in e]
        others = mpmath.fsum(number for index, number in enumerate(e) if index != target)
        gradient[target] = -others / total
        return mpmath.log1p(others / e[target]) if e[target] else mpmath.inf, gradient


def ulp_error(got: float, true: mpmath.mpf, dtype: torch.dtype) -> float:
    """The error in units in the last place of the true value (of the smallest number, if that is subnormal)."""
    if mpmath.isinf(true) or true == 0:
        return 0.0 if got == true else math.inf
    exponent = max(int(mpmath.floor(mpmath.log(abs(true), 2))) + 1 - BITS[dtype], SMALLEST[dtype])
    return float(abs(mpmath.mpf(got) - true) / mpmath.ldexp(1, exponent))


def rows() -> dict[str, tuple[Tensor, int]]:
    """Ordinary and numerically difficult logits with their target class, in float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cases: dict[str, tuple[Tensor, int]] = {
        "ordinary, 10 classes": (normal(10), 3),
        "ordinary, 1000 classes": (normal(1000), 3),
        "ordinary, times 10": (normal(100) * 10, 3),
        "one class": (normal(1), 0),
        "all equal": (torch.full((7,), 2.5, dtype=torch.float64), 2),
        "near 10,000": (normal(50) + 1e4, 0),
        "from -10,000 to 10,000": (normal(50).sign() * 1e4 + normal(50), 0),
        "of size 1e30": (normal(20) * 1e30, 5),
        "half the classes at -infinity": (torch.where(torch.arange(40) % 2 == 0, normal(40), -math.inf), 2),
        "the target at -infinity": (torch.where(torch.arange(40) % 2 == 0, normal(40), -math.inf), 1),
        "100,000 classes": (normal(100_000), 77),
    }
    for margin in (5, 10, 17, 20, 40, 87, 100, 120, 200):
        row = normal(10)
        row[4] = row.max() + margin
        cases[f"confident by {margin}"] = row, 4
        cases[f"wrong by {margin}"] = row, 5
    return cases


ROWS = rows()


def cast_row(name: str, dtype: torch.dtype) -> tuple[Tensor, int] | None:
    """The row in this dtype; None if some of its logits overflow there."""
    row, target = ROWS[name]
    narrow = row.to(dtype)
    return (narrow, target) if torch.equal(narrow.isinf(), row.isinf()) else None


def value_and_gradient(function: Callable[..., Tensor], logits: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """The loss and its gradient, for an upstream gradient other than 1."""
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf, *args, **kwargs)
    upstream = (0.5 + 0.25 * (torch.arange(value.numel()) % 5)).reshape(value.shape).to(value.dtype)  # exact
    value.backward(upstream)
    return value.detach(), leaf.grad


def assert_as_accurate(ours: tuple[Any, ...], torchs: tuple[Any, ...], exact: tuple[Any, ...]) -> None:
    """Our results are within torch's own tolerances of the float64 results, or at least as close to them as torch's."""
    for mine, theirs, true in zip(ours, torchs, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert torch.equal(mine.isnan(), true.isnan())
        error, torchs_error = ((each.double() - true).abs().nan_to_num() for each in (mine, theirs))
        if mine.dtype.itemsize == 2:  # one rounding
            allowed = true.abs().nan_to_num() * 2.0 ** (-8 if mine.dtype == torch.bfloat16 else -11) + 3e-8
        else:
            rtol, atol = torch.testing._comparison.default_tolerances(mine, theirs)
            allowed = true.abs().nan_to_num() * rtol + atol
        assert ((error <= allowed) | (error <= torchs_error)).all()


def as_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
