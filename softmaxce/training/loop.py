"""The training loop. It yields each epoch's result; the caller decides what to do with it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ..argument_types import LOWER_IS_BETTER
from ..config.keys import Config
from ..data.batches import Batch
from ..data.progressive_resizing import resized, smaller_size
from ..errors import MemoryRanOutError, TrainingError, within_memory
from .evaluation import evaluate_epoch
from .freezing import prepare_epoch
from .memory import smaller_steps
from .nonfinite import NonFiniteError
from .run import Epoch, Progress, Run
from .shared_step import REQUESTS, SharedTrainingStep
from .step import TrainingStep, try_graph
from .swa import average_epoch
from .tally import Scores


@dataclass(frozen=True)
class CheckpointEvent:
    """A moment within an epoch, between two steps, at which the run can be saved.

    Attributes:
        epoch: the number of the epoch in progress, counted from 1.
        batch: how many of its batches are done.
        batches: how many it has.
    """

    epoch: int
    batch: int
    batches: int


class CheckpointPolicy(Protocol):
    """When to yield a CheckpointEvent."""

    def should_checkpoint(self) -> bool:
        """Called after every step of the optimizer: whether to save the run now."""

    def should_abort_evaluation(self) -> bool:
        """Called after every batch of an evaluation: whether to save the run now, and then repeat the evaluation."""

    def requests(self) -> list[float]:
        """Of several processes only: as shared_step.Requests."""

    def agree(self, totals: list[float]) -> None:
        """Of several processes only: as shared_step.Requests."""


class NeverCheckpoint:
    """No CheckpointEvents."""

    def should_checkpoint(self) -> bool:
        """False."""
        return False

    def should_abort_evaluation(self) -> bool:
        """False."""
        return False

    def requests(self) -> list[float]:
        """None."""
        return [0.0] * REQUESTS

    def agree(self, totals: list[float]) -> None:
        """Nothing was requested."""


Track = Callable[[Iterable[Batch], int, int], Iterable[Batch]]  # (batches, images done, epoch) -> the same batches


def untracked(batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
    """The batches as they are, without a progress bar."""
    return batches


def fit(run: Run, track: Track = untracked) -> Iterator[Epoch]:
    """Train from the run's progress to its last epoch, one epoch at a time.

    Args:
        run: as build.build_run made it. It is changed in place; when an epoch is yielded, it can be saved.
        track: wraps each epoch's batches, to draw a progress bar.
    Raises:
        NonFiniteError: if a loss or a gradient is not finite. The run is then after that step, with the weights from
            before it (on a GPU, see NonFiniteMonitor); calling fit again resumes with the next.
        MemoryRanOutError: with the batch size that fits; smaller steps have then been tried on the run, which cannot be
            used any more.
    """
    for event in fit_with_checkpoints(run, NeverCheckpoint(), track):
        if isinstance(event, Epoch):
            yield event


def fit_with_checkpoints(
    run: Run, policy: CheckpointPolicy, track: Track = untracked
) -> Iterator[Epoch | CheckpointEvent]:
    """As `fit`, and a CheckpointEvent within an epoch whenever `policy` says so; the run can be saved then too."""
    while run.progress.epoch < run.config.epochs:
        number = run.progress.epoch + 1
        try:
            with within_memory("training"):
                yield from _train_epoch(run, number, policy, track)
        except MemoryRanOutError as error:
            has_graph = run.static_step is not None
            run.static_step, run.use_graph = None, False  # which frees the graph's memory
            graph = "; without its CUDA graph a step takes less: cuda_graph: false" if has_graph else ""
            raise MemoryRanOutError(f"epoch {number}: {error}; {smaller_steps(run)}{graph}") from None
        learning_rate = run.optimizer.param_groups[0]["lr"]
        trained = time.perf_counter()
        average_epoch(run, number)
        train = run.tally.scores()
        if train.images and not math.isfinite(train.loss):
            raise TrainingError(
                f"the training loss of epoch {number} is {train.loss} (learning rate {learning_rate:.3g})"
            )
        held_out = run.validation if run.validation is not None else run.test
        scores = None
        while held_out is not None and scores is None:
            scores = evaluate_epoch(run, held_out, policy.should_abort_evaluation)
            if scores is None:
                yield CheckpointEvent(number, run.progress.batch, len(run.train))
        validation, test = (scores, None) if run.validation is not None else (None, scores)
        seconds = run.progress.seconds
        run.progress.epoch, run.progress.batch, run.progress.seconds = number, 0, 0.0
        observe = getattr(run.schedule, "observe", None)  # of a schedule that depends on how training goes
        if observe is not None and validation is not None:
            observe(validation.to_dict())
            run.progress.schedule = run.schedule.state()  # type: ignore[attr-defined]
        best = validation is not None and _update_best(run.progress, validation, run.config)
        yield Epoch(
            number=number,
            learning_rate=learning_rate,
            train=train,
            validation=validation,
            test=test,
            images_per_second=train.images / max(seconds, 1e-9),
            seconds=seconds + time.perf_counter() - trained,
            best=best,
            epochs_without_improvement=run.progress.epochs_without_improvement,
        )


def train_epoch(
    run: Run, number: int, policy: CheckpointPolicy | None = None, track: Track = untracked
) -> tuple[Scores, float]:
    """One epoch of training without an evaluation: its scores, and the learning rate of its last step."""
    for _ in _train_epoch(run, number, policy or NeverCheckpoint(), track):
        pass
    run.progress.batch, run.progress.seconds = 0, 0.0
    return run.tally.scores(), run.optimizer.param_groups[0]["lr"]


def _train_epoch(run: Run, number: int, policy: CheckpointPolicy, track: Track) -> Iterator[CheckpointEvent]:
    """Train on the epoch's batches from `run.progress.batch` on; `run.tally` has the metrics."""
    progress, batches, accumulated = run.progress, len(run.train), run.config.grad_accum_steps
    began = time.perf_counter() - progress.seconds
    prepare_epoch(run, number)
    size = smaller_size(run.config, run.preprocessing.shape, number)
    if run.use_graph and run.static_step is None and size is None:
        try_graph(run)  # which is replayed on images of full size alone
    if progress.batch == 0:
        run.tally.clear()
    step = TrainingStep(run, number) if run.group.is_single else SharedTrainingStep(run, number, policy)
    start = progress.batch
    index = start - 1
    try:
        tracked = track(run.train.epoch(number, start), run.tally.images, number)
        for index, (images, labels) in enumerate(tracked, start):
            targets = labels
            if index % accumulated == 0:
                step.begin(index)
            if run.mix is not None:
                images, targets = run.mix(images, labels)
            images = resized(images, size)
            step.forward_backward(images, targets, index)
            if (index + 1) % accumulated and index + 1 < batches:
                continue
            step.update()
            progress.batch = index + 1
            if policy.should_checkpoint() and progress.batch < batches:
                step.finish()
                progress.seconds = time.perf_counter() - began
                yield CheckpointEvent(number, progress.batch, batches)
        step.finish()
    except NonFiniteError:  # the caller may resume with the next step and the weights from before this one
        run.optimizer.zero_grad()
        progress.nonfinite += 1
        progress.batch = min(batches, (index // accumulated + 1) * accumulated)
        progress.seconds = time.perf_counter() - began
        raise
    except BaseException as error:
        step.report_failure(error)
        raise
    progress.seconds = time.perf_counter() - began


def _update_best(progress: Progress, validation: Scores, config: Config) -> bool:
    """Compare an epoch with the best so far and, for early stopping, the reference; True if it is the best.

    What is not finite improves on nothing.
    """
    sign = -1 if config.best_metric in LOWER_IS_BETTER else 1
    value = validation.to_dict()[config.best_metric]
    if not math.isfinite(value):
        progress.epochs_without_improvement += 1
        return False
    min_delta = config.early_stopping.min_delta if config.early_stopping else 0.0
    if progress.reference_value is None or sign * (value - progress.reference_value) > min_delta:
        progress.epochs_without_improvement, progress.reference_value = 0, value
    else:
        progress.epochs_without_improvement += 1
    if progress.best_value is None or sign * (value - progress.best_value) > 0:
        progress.best_epoch, progress.best_value = progress.epoch, value
        return True
    return False
