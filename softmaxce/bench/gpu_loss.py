"""The loss kernels of `bench gpu`: beside PyTorch's, eager and compiled, and Liger's, and against the copying speed."""

import gc
import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ran_out_of_memory
from ..losses import cuda
from ..losses.cross_entropy import cross_entropy
from .candidates import COMPILED, OURS, TORCH, Loss, compiled, why_not_compiled
from .clock import race
from .gpu import Report
from .loss import DTYPES, Case, Shape, inputs, synchronizer

LIGER = "liger"
COPIED = 2**30  # bytes of the buffer whose copy gives the memory's speed; less where memory is short
CHECKED = 16  # rows whose gradient is compared with float64
TOLERANCE = 0.03  # PyTorch's log-probabilities in bfloat16 are off by up to 0.03 with so many classes


def compare(report: Report, device: str, shapes: Sequence[Shape], dtypes: Sequence[str], rounds: int) -> None:
    """Time forward and backward of each candidate. A row per shape and dtype.

    `shape`: [N, C]; `dtype`; `losses`: name -> `seconds`, the median of one forward and backward pass; `ratio`, to
    PyTorch's, and its `quartiles`, where PyTorch's fits into memory; `of_copy_speed`: the least number of bytes that
    has to be moved, which is the logits read once and their gradient written once, divided by the time and by the bytes
    per second of a copy. 1 is the most that is possible; less is further traffic, or the time of launches where the
    logits are few.

    Args:
        report: where the results go.
        device: cuda, or cpu to try the program.
        shapes: (N, C) of the logits.
        dtypes: of the logits; keys of loss.DTYPES.
        rounds: of timing, at least 2.
    """
    where = torch.device(device)
    speed = copy_speed(where)
    report.note(f"copying {speed / 1e9:.0f} GB/s (bytes read and written, of a buffer of up to 1 GiB)")
    losses = _candidates(report, where, dtypes)
    for rows, classes in shapes:
        for dtype in dtypes:
            _free(where)
            case = Case(rows, classes, dtype, where, torch.get_num_threads())
            timed: dict[str, dict[str, Any]] = {}
            with report.errors_of(f"{rows}x{classes} {dtype}"):
                timed = _timed(report, case, losses, rounds)
            if timed:
                least = 2 * rows * classes * DTYPES[dtype].itemsize
                for result in timed.values():
                    result["of_copy_speed"] = least / result["seconds"] / speed
                report.row(shape=[rows, classes], dtype=dtype, losses=timed)


def copy_speed(device: torch.device) -> float:
    """Bytes per second, read and written, of the fastest of some copies within the device's memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**28
    source = torch.zeros(min(COPIED, free // 4), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    result = race({"copy": partial(target.copy_, source)}, 5, synchronizer(device))
    return 2 * source.nbytes / result["copy"].seconds.low


def _candidates(report: Report, device: torch.device, dtypes: Sequence[str]) -> dict[str, Callable[[], Loss]]:
    """Each candidate as a function that makes it, PyTorch's first."""
    losses: dict[str, Callable[[], Loss]] = {TORCH: lambda: functional.cross_entropy, OURS: lambda: cross_entropy}
    if device.type == "cuda":
        for dtype in dtypes:
            if not cuda.available(device, DTYPES[dtype]):
                report.failed(
                    f"softmaxce's kernels do not work here for {dtype}: the reference implementation is timed"
                )
    why = why_not_compiled(device)
    if why is None:
        losses[COMPILED] = compiled
    else:
        report.note(f"torch.compile does not work on this machine and is left out: {why}")
    try:
        liger = importlib.import_module("liger_kernel.transformers").LigerCrossEntropyLoss
    except ImportError:  # it is optional
        report.note("Liger is left out: the package liger-kernel is not installed")
    else:
        losses[LIGER] = liger
        report.note(f"{LIGER}: LigerCrossEntropyLoss, which overwrites its logits with their gradient, on a copy")
    return losses


def _timed(
    report: Report, case: Case, losses: Mapping[str, Callable[[], Loss]], rounds: int
) -> dict[str, dict[str, Any]]:
    """The candidates that work in a cell and fit into memory: name -> `seconds`, `ratio` and `quartiles`."""
    size = f"{case.rows}x{case.classes} {case.dtype}"
    made = _within_memory(partial(inputs, case))
    if made is None:
        report.note(f"{size} does not fit into memory")
        return {}
    logits, targets = made
    exact = _exact(logits, targets)
    steps: dict[str, Callable[[], Tensor]] = {}
    for name, make in losses.items():
        with report.errors_of(f"{name} on {size}"):
            tried = _within_memory(partial(_try, make, logits, targets, copied=name == LIGER))
            if tried is None:
                report.note(f"{name} on {size} does not fit into memory")
            elif _differs(tried[1], exact):
                report.failed(f"{name} on {size}: the gradient differs from float64's")
            else:
                steps[name] = tried[0]
        _free(case.device)
    if not steps:
        return {}
    result = race(steps, rounds, synchronizer(case.device))
    rows: dict[str, dict[str, Any]] = {name: {"seconds": timed.seconds.median} for name, timed in result.items()}
    if TORCH in result:
        for name, timed in result.items():
            rows[name] |= {"ratio": timed.ratio.median, "quartiles": [timed.ratio.low, timed.ratio.high]}
    return rows


def _step(loss: Loss, logits: Tensor, targets: Tensor, *, copied: bool) -> Callable[[], Tensor]:
    """Forward and backward pass; it returns the gradient, which is not accumulated."""
    if copied:
        logits = logits.detach().clone().requires_grad_()

    def step() -> Tensor:
        (gradient,) = torch.autograd.grad(loss(logits, targets), logits)
        return gradient

    return step


def _try(make: Callable[[], Loss], logits: Tensor, targets: Tensor, *, copied: bool) -> tuple[Any, Tensor]:
    """A candidate's step, and the first rows of its gradient."""
    step = _step(make(), logits, targets, copied=copied)
    return step, step()[:CHECKED].double()


def _differs(gradient: Tensor, exact: Tensor) -> bool:
    """Whether a gradient is not the exact one up to 16 bits' rounding: its norm, and its rows' sums, which are 0."""
    within = (gradient - exact).norm() <= TOLERANCE * exact.norm()
    return not (within and gradient.sum(1).abs().max() <= TOLERANCE * exact.abs().max())


def _exact(logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the mean loss in the first rows, in float64."""
    few, ids = logits[:CHECKED].detach().double(), targets[:CHECKED, None]
    return (few.softmax(1).scatter_add(1, ids, -torch.ones_like(ids, dtype=torch.float64))) / len(logits)


def _within_memory(make: Callable[[], Any]) -> Any:
    """What `make` returns; None if it does not fit into memory."""
    try:
        return make()
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
    return None


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
