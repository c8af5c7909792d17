"""The training step of one of several processes: its share of the batch, and its sum with the others'."""

import contextlib
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..losses.interface import mean_divisor
from ..runtime.random_state import own_random_numbers
from .nonfinite import NonFiniteError
from .run import Run
from .step import TrainingStep
from .step_reduction import StepReduction

REQUESTS = 4  # of a Requests


class Requests(Protocol):
    """What a process asks the others for between two steps: to stop, to save."""

    def requests(self) -> list[float]:
        """REQUESTS numbers, each 1 or 0."""

    def agree(self, totals: list[float]) -> None:
        """The sums of all processes' requests, after the step."""


class SharedTrainingStep(TrainingStep):
    """A TrainingStep on this process's share of each batch.

    The gradient is that of the whole batches: each process adds d * loss / images, with the d that its loss's mean
    divides by, and the sum over the processes is scaled by images / sum(d). An error, and a loss that is not finite,
    wait for the step's all-reduce, whose flags end the step in all processes alike.

    Args:
        run: the run, the same in every process.
        epoch: its number, counted from 1.
        policy: of checkpoints; it brings this process's signals to the others.
    """

    def __init__(self, run: Run, epoch: int, policy: Requests) -> None:
        super().__init__(run, epoch)
        self.policy, self.group = policy, run.group
        self._error: BaseException | None = None
        self._nonfinite: str | None = None  # what is not finite of this process's share
        modules = [part for part in (run.model, run.loss) if isinstance(part, nn.Module)]
        accumulated = run.config.grad_accum_steps
        self._sums = torch.zeros(2 * accumulated + 1, device=run.device)  # losses and divisors by batch; num_correct
        self._reduction = StepReduction(
            run.group,
            run.parameters,
            modules,
            len(self._sums) + 2 + REQUESTS,
            copied=":" in run.config.optimizer.name,
            overlapping=not run.config.sync_batchnorm,  # whose layers reduce in the backward pass too
        )

    def begin(self, index: int) -> None:
        """Begin the step whose first batch is number `index` of the epoch, counted from 0."""
        super().begin(index)
        self._first = index
        self._sums.zero_()

    def forward_backward(self, images: Tensor, targets: Tensor, index: int) -> None:
        """Add the gradients of this process's share of a batch to the step's. It raises nothing; `update` does."""
        if self._error is not None or self._nonfinite is not None:
            return
        has_share = bool(self.group.share(self.run.train.images_in(index)))  # else the batch is too small for all
        if not has_share and not self.run.config.sync_batchnorm:
            return
        self.monitor.batch = (index, images, targets)
        try:
            key = (self.run.config.seed, self.monitor.epoch, index, self.group.rank)
            with own_random_numbers(key, self.run.device):
                if has_share:
                    self._add_share(images, targets, index - self._first)
                else:  # whose layers wait for each other
                    self.backward(self.forward(images, targets)[1] * 0)
        except BaseException as error:  # raised by `update`, in all processes
            if not isinstance(error, Exception):
                raise
            self._error = error

    def _add_share(self, images: Tensor, targets: Tensor, number: int) -> None:
        logits, loss = self.forward(images, targets)
        divisor = mean_divisor(self.run.loss, targets)
        if isinstance(divisor, Tensor) and not divisor.item():  # every image of the share is ignored, not of the batch
            return
        if not math.isfinite(value := loss.item()):
            self._nonfinite = f"the training loss is {value}"
            return
        part = loss / self._batches if self._is_sum else loss / (self._images / divisor)
        last = number == self._batches - 1
        with self._reduction.overlapped() if last else contextlib.nullcontext():
            self.backward(part)
        ids = targets if targets.ndim == 1 else targets.argmax(1)
        self._sums[number] += loss.detach() if self._is_sum else loss.detach() * divisor
        self._sums[len(self._sums) // 2 + number] += divisor
        self._sums[-1] += (logits.detach().argmax(1) == ids).sum()

    def update(self) -> None:
        """Take the step with the gradients of all processes. Raises: as TrainingStep, the same in all processes."""
        error = None
        try:
            super().update()
        except NonFiniteError as own:
            error = own
        except _PeerNonFiniteError:  # the batch of another process
            pass
        else:
            return
        self._nonfinite = None
        self._reduction.restore_statistics()
        raise self._first_nonfinite(error) from None

    def _finish_mean(self) -> None:
        """Sum the step over the processes. Raises: what any of them has to report."""
        sums, failed = self._reduce()
        self.policy.agree(sums[-REQUESTS:])
        if failed:
            self.group.fail(self._error)
        if sums[-REQUESTS - 1]:
            if self._nonfinite is None:
                raise _PeerNonFiniteError
            self.monitor.fail(self._nonfinite)
        half = len(self._sums) // 2
        losses, divisors = sums[:half], sums[half : 2 * half]
        for number in range(self._batches):
            images = self.run.train.images_in(self._first + number)
            mean = losses[number] / divisors[number] if divisors[number] else math.nan
            loss = losses[number] if self._is_sum else mean * images
            self.run.tally.add_sums(loss, round(sums[2 * half]) if not number else 0, images)
        divisor = sum(divisors[: self._batches])
        if not self._is_sum and divisor != self._images:
            factor = self._images / divisor if divisor else math.nan
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def _reduce(self) -> tuple[list[float], bool]:
        """The step's sums over all processes, and whether one of them failed."""
        failed = self._error is not None
        flags = [float(failed), float(self._nonfinite is not None), *self.policy.requests()]
        own = torch.cat([self._sums, torch.tensor(flags, device=self._sums.device)])
        batches = (self._first, self._first + self._batches - 1)  # only an epoch's last is smaller than the others
        most, fewest = (self.group.working(self.run.train.images_in(index)) for index in batches)
        without = failed or self._nonfinite is not None
        sums = self._reduction(own, most, failed=without, all_work=fewest == self.group.world_size)
        return sums, sums[-REQUESTS - 2] > 0

    def report_failure(self, error: BaseException) -> None:
        """End all processes with this one, whose error came up outside `update`. Raises: the error."""
        if self.group.failed_together or not isinstance(error, Exception):
            return
        self._error = error
        self._finish_mean()

    def _first_nonfinite(self, own: NonFiniteError | None) -> NonFiniteError:
        """The report of the first process that has one: all do the same, and rank 0 saves that batch."""
        report: tuple[Any, ...] | None = None
        if own is not None:
            batch = own.images.cpu(), own.targets.cpu()
            report = (own.what, own.epoch, own.batch, own.learning_rate, own.layer, *batch)
        first = next(one for one in self.group.gather(report) if one is not None)
        return NonFiniteError(*first)


class _PeerNonFiniteError(Exception):
    """The loss of another process's share is not finite."""
