"""Cross-entropy implementations compared over a grid of shapes, dtypes and thread counts."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..build import make_loss
from ..config.components import Component
from ..errors import RunError, ran_out_of_memory
from .accuracy import Errors, errors, exact_loss_and_gradient
from .allocator import reserve
from .candidates import Loss, candidates
from .clock import Timed, clock_for, race
from .memory import peak_bytes

Shape = tuple[int, int]  # N rows of logits, C classes

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
BUFFERS = 8  # in multiples of the logits' size: more than any candidate needs at once
CONFIDENT_EVERY = 3  # every third row is that of a confident model
LEAD = (5.0, 25.0)  # of the target over the next class in such a row


@dataclass(frozen=True)
class Case:
    """One cell of the grid.

    Attributes:
        rows: N.
        classes: C.
        dtype: of the logits; a key of DTYPES.
        device: of the logits.
        threads: CPU threads for PyTorch.
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
    """One candidate's measurements in one cell.

    Attributes:
        forward: the loss alone, under no_grad, as in evaluation.
        both: forward and backward, as in training.
        memory: peak during `both`, gradient included, in multiples of the logits' bytes.
        errors: relative to float64.
    """

    forward: Timed
    both: Timed
    memory: float
    errors: Errors


def grid(
    shapes: Sequence[Shape], dtypes: Sequence[str], threads: Sequence[int], device: torch.device
) -> Iterator[Case]:
    """All combinations: by thread count, then dtype, then shape."""
    for count, dtype, (rows, classes) in itertools.product(threads, dtypes, shapes):
        yield Case(rows, classes, dtype, device, count)


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Logits [N, C] that require a gradient, and class ids [N]; the same in every call.

    The logits are standard normal; in every third row the target leads all other classes by 5 to 25, as in a trained
    model.
    """
    generator, device = torch.Generator(case.device).manual_seed(0), case.device
    logits = torch.randn(case.rows, case.classes, generator=generator, device=device)
    targets = torch.randint(case.classes, (case.rows,), generator=generator, device=device)
    confident = torch.arange(0, case.rows, CONFIDENT_EVERY, device=device)
    leads = torch.empty(len(confident), device=device).uniform_(*LEAD, generator=generator)
    logits[confident, targets[confident]] = logits[confident].amax(1) + leads
    return logits.to(DTYPES[case.dtype]).requires_grad_(), targets


def measure(case: Case, losses: Mapping[str, Loss], rounds: int) -> dict[str, Result]:
    """Measure the losses in one cell; the first is the baseline.

    Args:
        case: the cell.
        losses: name -> (logits [N, C], class ids [N]) -> the mean loss.
        rounds: timing rounds, at least 2.
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
    exact = exact_loss_and_gradient(logits, targets)
    accuracy = {name: errors(loss, logits, targets, exact) for name, loss in losses.items()}
    del exact
    synchronize = synchronizer(case.device)
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
    return {name: Result(forward[name], both[name], peaks[name], accuracy[name]) for name in losses}


def _forward_and_backward(loss: Loss, logits: Tensor, targets: Tensor) -> None:
    logits.grad = None
    loss(logits, targets).backward()


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits for the device."""
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def compare(case: Case, rounds: int, with_compiled: bool, others: Sequence[Component] = ()) -> dict[str, Result]:
    """Measure one cell: PyTorch's loss, ours, the naive one, and `others`.

    Args:
        case: the cell.
        rounds: timing rounds, at least 2.
        with_compiled: also time PyTorch's loss compiled; see candidates.why_not_compiled.
        others: further losses, built for the cell's number of classes.
    Raises:
        ConfigError: if one of `others` cannot be built.
        RunError: if the cell does not fit into memory.
    """
    built = {component.name: _built(component, case) for component in others}
    return measure(case, {**candidates(with_compiled), **built}, rounds)


def _built(component: Component, case: Case) -> Loss:
    loss = make_loss(component, [100] * case.classes, case.device)
    return lambda logits, targets: loss(logits, targets).mean()
