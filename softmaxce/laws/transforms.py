"""Laws of a loss under PyTorch's machinery: determinism, torch.compile, torch.func.vmap."""

import re
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import in_one_line
from .cases import Case, batches, steps, usual_batch
from .law import Law, compare, compare_one, show
from .subject import Subject, value_and_gradient

MANY = 100_000  # logits: enough for several threads


def _determinism(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    copies = MANY // logits.numel()
    loss = subject.loss(case.num_classes)
    for z, t, where in (
        (logits, targets, ""),
        (logits.repeat(copies, 1), targets.repeat(copies), f"of its rows {copies} times, "),
    ):
        first = value_and_gradient(loss, z, t)
        again = value_and_gradient(loss, z, t)
        with _deterministic():
            strict = [value_and_gradient(loss, z, t) for _ in range(2)]
        for (one, other), how in (((first, again), ""), (strict, " under torch.use_deterministic_algorithms")):
            for what, a, b in zip(("value", "gradient"), one, other, strict=True):
                if not torch.equal(a, b):
                    differing = (a != b) | a.isnan()
                    shown = [show(each[differing].reshape(-1)[0], 17) for each in (a, b)]
                    return f"{where}the {what} is {shown[0]}, then {shown[1]}{how}"
    return None


class _deterministic:
    """PyTorch's deterministic mode, as a context manager."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)


def backend() -> str:
    """What torch.compile can use here: inductor needs a C++ compiler (Triton, on a GPU); tracing needs nothing."""
    return "inductor" if any(map(shutil.which, ("c++", "g++", "clang++", "cl"))) else "aot_eager"


def compiles_with(backend_name: str) -> Callable[[Subject, Case], str | None]:
    """The test of the law `compile` with one of torch.compile's backends."""

    def test(subject: Subject, case: Case) -> str | None:
        logits, targets = case.tensors(subject, torch.float32)
        loss = subject.loss(case.num_classes, torch.float32)
        expected = value_and_gradient(loss, logits, targets)

        def call(z: Tensor, t: Tensor) -> Tensor:
            return loss(z, t)

        torch.compiler.reset()
        try:
            got = value_and_gradient(
                torch.compile(call, fullgraph=True, dynamic=False, backend=backend_name), logits, targets
            )
        finally:
            torch.compiler.reset()
        return compare(got, expected, logits, torch.float32)

    return test


def _traced_only(subject: Subject) -> str:
    return "" if backend() == "inductor" else "traced in one graph by aot_eager; there is no C++ compiler for inductor"


def _compile(subject: Subject, case: Case) -> str | None:
    return compiles_with(backend())(subject, case)


def _first_sentence(message: str) -> str:
    """PyTorch's reason why it cannot vmap, without its requests to file an issue; with the line of the user's code."""
    line = re.search(r" \([^()]+:\d+\)$", message)
    return re.split(r"[.,] (?=We |[Pp]lease )", message)[0] + (line[0] if line else "")


def _vmap(subject: Subject, case: Case) -> str | None:
    logits, targets = case.tensors(subject)
    z, t = torch.stack([logits, logits.flip(0)]), torch.stack([targets, targets.flip(0)])  # [2, B, K], [2, B]
    loss = subject.loss(case.num_classes)

    def total(z: Tensor, t: Tensor) -> Tensor:
        return loss(z, t).sum()

    pairs: list[tuple[Any, Any]] = [value_and_gradient(loss, *pair) for pair in zip(z, t, strict=True)]
    values, gradients = (torch.stack(list(column)) for column in zip(*pairs, strict=True))
    try:
        batched = torch.func.vmap(loss)(z, t)
    except RuntimeError as error:
        if not str(error).startswith("vmap: "):
            raise
        return f"it raises {_first_sentence(in_one_line(error))}"
    if message := compare_one("value", batched, values, logits):
        return f"under vmap {message}"
    message = compare_one("gradient", torch.func.vmap(torch.func.grad(total))(z, t), gradients, logits)
    return f"under vmap {message}" if message else None


determinism = Law(
    "the same input gives the same bits",
    "random numbers (dropout, noise); state kept between calls; scatter_add, index_add or atomics on a GPU",
    _determinism,
    lambda subject: batches(subject, steps(10)),
    examples=3,
)

compiles = Law(
    "torch.compile takes it without a graph break",
    "values that Python reads: .item(), float(tensor), `if tensor`, NumPy, print; shapes that depend on values",
    _compile,
    usual_batch,
    examples=1,
    remark=_traced_only,
)

vmap = Law(
    "torch.func.vmap gives the same as a loop",
    ".item() or `if tensor`; shapes that depend on values: F.one_hot without num_classes, a mask as an index; in-place "
    "writes; a custom autograd.Function needs setup_context and generate_vmap_rule",
    _vmap,
    lambda subject: batches(subject, steps(10)),
    examples=10,
)
