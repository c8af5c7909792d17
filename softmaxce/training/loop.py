"""The training loop. It yields what happened; whoever iterates decides what to do about it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import nn

from ..config.keys import Config
from ..data.batches import Batch
from ..errors import MemoryRanOutError, TrainingError, within_memory
from ..losses.cuda import check_class_ids
from ..optim import unwrapped
from ..runtime.device import autocast
from .evaluation import evaluate_epoch
from .memory import smaller_steps
from .nonfinite import NonFiniteError, NonFiniteMonitor
from .run import Epoch, Progress, Run
from .step import _try_graph, forward_backward
from .tally import Scores


@dataclass(frozen=True)
class CheckpointEvent:
    """A moment within an epoch, between two steps, at which the run is whole and can be saved.

    Attributes:
        epoch: the number of the epoch in progress, counted from 1.
        batch: how many of its batches are done.
        batches: how many it has.
    """

    epoch: int
    batch: int
    batches: int


class CheckpointPolicy(Protocol):
    """Who decides when to pause."""

    def after_step(self) -> bool:
        """Asked after every step of the optimizer: whether to pause now."""

    def at_once(self) -> bool:
        """Asked after every batch of an evaluation, which is made again after a pause."""


class NeverCheckpoint:
    """No pause."""

    def after_step(self) -> bool:
        """No."""
        return False

    def at_once(self) -> bool:
        """No."""
        return False


Track = Callable[[Iterable[Batch], int, int], Iterable[Batch]]  # (batches, images done, epoch) -> the same batches


def untracked(batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
    """The batches as they are: nobody watches."""
    return batches


def fit(run: Run, track: Track = untracked) -> Iterator[Epoch]:
    """Train from where the run stands to its last epoch, one epoch at a time.

    Args:
        run: what build.build_run made. It is changed in place; when an epoch is yielded, it is whole and can be saved.
        track: wraps each epoch's batches, to draw a progress bar.
    Raises: NonFiniteError if a loss or a gradient is not finite. The run then stands after that batch, with the weights
        it had before (but see Guard, for a GPU), and calling fit again goes on with the next.
        MemoryRanOutError, with the batch size that fits; smaller steps have then been tried on the run, which is spent.
    """
    for event in fit_with_pauses(run, NeverCheckpoint(), track):
        if isinstance(event, Epoch):
            yield event


def fit_with_pauses(run: Run, pauses: CheckpointPolicy, track: Track = untracked) -> Iterator[Epoch | CheckpointEvent]:
    """As `fit`, and whenever `pauses` says so a Pause within an epoch; the run is whole and can be saved then too."""
    while run.progress.epoch < run.config.epochs:
        number = run.progress.epoch + 1
        try:
            with within_memory("training"):
                yield from _train_epoch(run, number, pauses, track)
        except MemoryRanOutError as error:
            graph = "; without its CUDA graph a step takes less: cuda_graph: false" if run.step is not None else ""
            run.step, run.graph_wanted = None, False  # and its memory is free
            raise MemoryRanOutError(f"epoch {number}: {error}; {smaller_steps(run)}{graph}") from None
        learning_rate = run.optimizer.param_groups[0]["lr"]
        trained = time.perf_counter()
        train = run.tally.scores()
        if not math.isfinite(train.loss):
            raise TrainingError(
                f"the training loss of epoch {number} is {train.loss} (learning rate {learning_rate:.3g})"
            )
        held_out = run.validation if run.validation is not None else run.test
        scores = None
        while held_out is not None and scores is None:
            scores = evaluate_epoch(run, held_out, pauses.at_once)
            if scores is None:
                yield CheckpointEvent(number, run.progress.batch, len(run.train))
        validation, test = (scores, None) if run.validation is not None else (None, scores)
        seconds = run.progress.seconds
        run.progress.epoch, run.progress.batch, run.progress.seconds = number, 0, 0.0
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
            waited=run.progress.waited,
        )


def train_epoch(
    run: Run, number: int, pauses: CheckpointPolicy | None = None, track: Track = untracked
) -> tuple[Scores, float]:
    """One pass over the training batches: its scores, and the learning rate of its last step."""
    for _ in _train_epoch(run, number, pauses or NeverCheckpoint(), track):
        pass
    run.progress.batch, run.progress.seconds = 0, 0.0
    return run.tally.scores(), run.optimizer.param_groups[0]["lr"]


def _train_epoch(run: Run, number: int, pauses: CheckpointPolicy, track: Track) -> Iterator[CheckpointEvent]:
    """What is left of a pass over the training batches; run.tally holds its sums."""
    config, progress = run.config, run.progress
    accumulated = config.grad_accum_steps
    batches = len(run.train)
    step = (number - 1) * steps_per_epoch(batches, accumulated) + steps_per_epoch(progress.batch, accumulated)
    start, before, started = progress.batch, progress.seconds, time.perf_counter()
    run.model.train()
    if run.graph_wanted and run.step is None:
        _try_graph(run)
    base_rates = [group["initial_lr"] for group in run.optimizer.param_groups]
    if progress.batch == 0:
        run.tally.clear()
    skipping = config.on_nonfinite == "skip"
    guard = NonFiniteMonitor(
        *(run.model, run.loss, run.optimizer, run.scaler, run.precision, run.device, number),
        deferred=run.step is not None or (run.device.type == "cuda" and not skipping),
        skipping=skipping,
    )
    static, scaled = run.step, run.scaler.is_enabled()
    precision = autocast(run.device, run.precision)
    take_step, clear = unwrapped.stepper(run.optimizer), unwrapped.clearer(run.optimizer)
    index = start - 1
    try:
        chosen = track(run.train.epoch(number, start), run.tally.images, number)
        for index, (images, labels) in enumerate(chosen, start):
            if index % accumulated == 0:
                factor = run.schedule(step)
                for group, rate in zip(run.optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * factor
            targets = labels
            if run.mix is not None:
                images, targets = run.mix(images, labels)
            group_size = min(accumulated, batches - index // accumulated * accumulated)
            if static is not None and group_size == accumulated and static.takes(images, targets):
                guard.note(static(images, targets))
            else:
                check = partial(guard.check_loss, index=index, images=images, targets=targets)
                forward_backward(run, precision, group_size, check, images, targets)
            run.tally.images += len(labels)
            if (index + 1) % accumulated and index + 1 < batches:
                continue
            norm = None
            if config.clip_grad_norm is not None:
                run.scaler.unscale_(run.optimizer)
                norm = nn.utils.clip_grad_norm_(run.model.parameters(), config.clip_grad_norm)
            guard.check_gradients(norm, index, images, targets)
            if scaled:
                run.scaler.step(run.optimizer)
                run.scaler.update()
            else:
                take_step()
            clear()
            step += 1
            if run.average is not None and step % config.model_ema_steps == 0:
                run.average.update_parameters(run.model)
            progress.batch = index + 1
            if guard.follows:
                guard.after_step()
            if pauses.after_step() and index + 1 < batches:
                guard.settle()
                check_class_ids()
                progress.seconds = before + time.perf_counter() - started
                yield CheckpointEvent(number, progress.batch, batches)
        guard.settle()
    except NonFiniteError:  # whoever calls may go on: after these batches, from the weights there are
        run.optimizer.zero_grad()
        progress.nonfinite += 1
        progress.batch = min(batches, (index // accumulated + 1) * accumulated)
        progress.seconds = before + time.perf_counter() - started
        raise
    check_class_ids()  # the epoch's end waits for the device anyway
    progress.seconds = before + time.perf_counter() - started


def steps_per_epoch(batches: int, accumulated: int) -> int:
    """Optimizer steps in an epoch of so many batches."""
    return -(-batches // accumulated)


def _update_best(progress: Progress, validation: Scores, config: Config) -> bool:
    """Count the epoch's figure towards best and early stopping; True if it is the best so far."""
    sign = 1 if config.best_metric == "accuracy" else -1
    value = getattr(validation, config.best_metric)
    min_delta = config.early_stopping.min_delta if config.early_stopping else 0.0
    if progress.waited_from is None or sign * (value - progress.waited_from) > min_delta:
        progress.waited, progress.waited_from = 0, value
    else:
        progress.waited += 1
    if progress.best_value is None or sign * (value - progress.best_value) > 0:
        progress.best_epoch, progress.best_value = progress.epoch, value
        return True
    return False
