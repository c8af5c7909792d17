"""Cross-entropy against cross-entropy, over a grid of shapes, dtypes and threads."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..build import make_loss
from ..config.components import Component
from ..errors import RunError, ran_out_of_memory
from .accuracy import Errors, errors, truth
from .allocator import reserve
from .candidates import Loss, contestants
from .clock import Timed, clock_for, race
from .memory import peak_bytes

Shape = tuple[int, int]  # N rows of logits, C classes

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
BUFFERS = 8  # of the logits' size, more than any contestant needs at once
SURE = 3  # of so many rows one is of a sure model, with the target ahead of the next class by AHEAD
AHEAD = (5.0, 25.0)


@dataclass(frozen=True)
class Case:
    """One cell of the grid.

    Attributes:
        rows: N.
        classes: C.
        dtype: of the logits; a key of DTYPES.
        device: where they are.
        threads: that PyTorch may use on the CPU.
    """

    rows: int
    classes: int
    dtype: str
    device: torch.device
    threads: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.classes} {self.dtype}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Result:
    """What one contestant came to in one cell.

    Attributes:
        forward: the loss alone, under no_grad, as in evaluation.
        both: forward and backward, as in training.
        memory: the peak during `both`, the gradient included, as a multiple of the logits' own bytes.
        errors: relative to float64.
    """

    forward: Timed
    both: Timed
    memory: float
    errors: Errors


def grid(
    shapes: Sequence[Shape], dtypes: Sequence[str], threads: Sequence[int], device: torch.device
) -> Iterator[Case]:
    """The cells: for each number of threads each dtype, for each dtype each shape."""
    for count, dtype, (rows, classes) in itertools.product(threads, dtypes, shapes):
        yield Case(rows, classes, dtype, device, count)


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Logits [N, C] that ask for a gradient, and class ids [N], the same at every call.

    The logits are standard normal; in every third row the target is ahead of all others by 5 to 25, as it is once a
    model has learnt.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(case.rows, case.classes, generator=generator)
    targets = torch.randint(case.classes, (case.rows,), generator=generator)
    sure = torch.arange(0, case.rows, SURE)
    gaps = torch.empty(len(sure)).uniform_(*AHEAD, generator=generator)
    logits[sure, targets[sure]] = logits[sure].amax(1) + gaps
    logits = logits.to(case.device, DTYPES[case.dtype])
    return logits.requires_grad_(), targets.to(case.device)


def measure(case: Case, losses: Mapping[str, Loss], rounds: int) -> dict[str, Result]:
    """Run the losses against each other in one cell; the first is what the others are compared with.

    Args:
        case: the cell.
        losses: name -> (logits [N, C], class ids [N]) -> the mean loss.
        rounds: of timing, at least 2.
    Raises: RunError if the cell does not fit into memory.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        return _measure(case, losses, rounds)
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise RunError(f"{case} does not fit into memory; leave it out of --shapes") from None
        raise
    finally:
        torch.set_num_threads(threads)


def _measure(case: Case, losses: Mapping[str, Loss], rounds: int) -> dict[str, Result]:
    logits, targets = inputs(case)
    if case.device.type == "cpu":
        reserve(BUFFERS * logits.nbytes)
    exact = truth(logits, targets)
    wrong = {name: errors(loss, logits, targets, exact) for name, loss in losses.items()}
    del exact
    synchronize = _synchronize(case.device)
    steps = {name: partial(_forward_and_backward, loss, logits, targets) for name, loss in losses.items()}
    clock = clock_for(case.device, case.threads)
    both = race(steps, rounds, synchronize, clock)
    logits.grad = None
    peaks = {}
    for name, step in steps.items():
        peaks[name] = peak_bytes(step, case.device) / logits.nbytes
        logits.grad = None
    with torch.no_grad():
        calls = {name: partial(loss, logits, targets) for name, loss in losses.items()}
        forward = race(calls, rounds, synchronize, clock)
    return {name: Result(forward[name], both[name], peaks[name], wrong[name]) for name in losses}


def _forward_and_backward(loss: Loss, logits: Tensor, targets: Tensor) -> None:
    logits.grad = None
    loss(logits, targets).backward()


def _synchronize(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def compare(case: Case, rounds: int, with_compiled: bool, others: Sequence[Component] = ()) -> dict[str, Result]:
    """One cell: PyTorch's loss, ours, the naive one, and more.

    Args:
        case: the cell.
        rounds: of timing, at least 2.
        with_compiled: whether PyTorch's loss runs compiled, too; see contestants.why_not_compiled.
        others: further losses, which are built for the cell's number of classes.
    Raises:
        ConfigError: if one of `others` cannot be built.
        RunError: if the cell does not fit into memory.
    """
    built = {component.name: _built(component, case) for component in others}
    return measure(case, {**contestants(with_compiled), **built}, rounds)


def _built(component: Component, case: Case) -> Loss:
    made = make_loss(component, [100] * case.classes, case.device)
    return lambda logits, targets: made(logits, targets).mean()
