"""The cost of a loss relative to PyTorch's cross-entropy: time of a forward and backward pass, peak memory.

A quick measurement of one loss; `softmaxce bench loss` measures more, over a grid.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ..errors import in_one_line, ran_out_of_memory
from ..losses.interface import Loss
from ..runtime.allocator import keep_freed_memory, return_freed_memory
from .quiet import quiet
from .subject import Subject, value_and_gradient

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

SHAPES = ((128, 10), (1024, 1000))  # a training step of a small model, and of a large one
ROUNDS = 7
SECONDS = 0.03  # per round and loss
MEMORY = 10 * 2**20  # float32 logits, 40 MiB


@dataclass(frozen=True)
class Cost:
    """The time of one batch.

    Attributes:
        rows, num_classes: of the logits, float32.
        seconds, torch_seconds: of a forward and backward pass; medians, on one thread.
    """

    rows: int
    num_classes: int
    seconds: float
    torch_seconds: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.torch_seconds

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Memory:
    """Peak memory of a forward and backward pass beyond the logits, in multiples of the logits' size."""

    rows: int
    num_classes: int
    peak: float
    torch_peak: float


@dataclass(frozen=True)
class Costs:
    """Times and memory, or the reason why they could not be measured."""

    times: list[Cost]
    memory: Memory | None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        memory = asdict(self.memory) if self.memory else None
        return {"times": [cost.to_dict() for cost in self.times], "memory": memory, "problem": self.problem or None}


def measure(subject: Subject) -> Costs:
    """Measure the loss; takes a second or two."""
    try:
        with quiet():
            peaks = memory(subject)
            return Costs(times(subject), peaks)
    except Exception as error:  # the loss may raise anything
        if ran_out_of_memory(error):
            raise
        return Costs([], None, f"it raises {in_one_line(error)}")


def times(subject: Subject) -> list[Cost]:
    """The time of forward and backward pass, measured alternately with PyTorch's."""
    keep_freed_memory()  # so that a loss with more buffers does not pay for more fresh pages
    costs = []
    for rows, num_classes in SHAPES:
        num_classes = subject.num_classes or num_classes
        mine, theirs = (_timer(subject, loss, rows, num_classes) for loss in _pair(subject, num_classes))
        number = max(1, int(SECONDS / max(theirs.timeit(3).mean, mine.timeit(3).mean)))
        rounds = [(mine.timeit(number).mean, theirs.timeit(number).mean) for _ in range(ROUNDS)]
        costs.append(Cost(rows, num_classes, *map(statistics.median, zip(*rounds, strict=True))))
    return costs


def memory(subject: Subject) -> Memory | None:
    """Peak memory, the loss's and PyTorch's; None where it cannot be measured (on a CPU, outside Linux)."""
    num_classes = subject.num_classes or 2560
    rows = MEMORY // num_classes
    peaks = []
    for loss in _pair(subject, num_classes):
        logits, targets = _batch(subject, rows, num_classes)
        step = partial(value_and_gradient, loss, logits, targets)
        peak = _peak_cuda(step, subject.device) if subject.device.type == "cuda" else _peak_linux(step)
        if peak is None:
            return None
        size = logits.numel() * logits.element_size()
        peaks.append(peak / size - 1)  # the leaf is a copy of the logits
    return Memory(rows, num_classes, *peaks)


def _pair(subject: Subject, num_classes: int) -> tuple[Loss, Loss]:
    return subject.loss(num_classes, torch.float32), functional.cross_entropy


def _batch(subject: Subject, rows: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(subject.seed)
    logits = torch.randn(rows, num_classes, generator=generator) * 3
    targets = torch.randint(num_classes, (rows,), generator=generator)
    return logits.to(subject.device), targets.to(subject.device)


def _timer(subject: Subject, loss: Loss, rows: int, num_classes: int) -> "Timer":
    with quiet():  # its import warns if there is no CUDA
        from torch.utils.benchmark import Timer
    logits, targets = _batch(subject, rows, num_classes)

    def step() -> None:
        leaf.grad = None
        loss(leaf, targets).sum().backward()

    leaf = logits.requires_grad_()
    # On a CPU the process's own time, which other processes do not lengthen; on a GPU the Timer waits for it.
    if subject.device.type == "cpu":
        return Timer("step()", globals={"step": step}, timer=time.process_time)
    return Timer("step()", globals={"step": step})


def _peak_cuda(step: Callable[[], Any], device: torch.device) -> float:
    step()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def _peak_linux(step: Callable[[], Any]) -> float | None:
    """Bytes by which the process grew at most: the kernel keeps a high-water mark, which can be reset."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None
    step()
    gc.collect()  # else garbage that is collected during the step would make room for its blocks
    return_freed_memory()  # so that the step's blocks count as new memory
    try:
        reset.write_text("5")
        before = _kilobytes(status, "VmRSS")
        step()
        return 1024.0 * (_kilobytes(status, "VmHWM") - before)
    except (OSError, StopIteration):  # a system without this counter; reported as unknown
        return None


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
