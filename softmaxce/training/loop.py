"""The training loop. It yields what happened; whoever iterates decides what to do about it."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..config.reader import Config
from ..data.batches import Batch, Batches, Preprocessing
from ..errors import MemoryRanOutError, TrainingError, within_memory
from ..inference.metrics import Scores, Tally
from ..losses.cuda import check_class_ids
from ..losses.interface import reduction_of
from ..optim import unwrapped
from ..optim.schedules import Schedule
from ..runtime.device import autocast, choose_precision, random_state, restore_random_state
from .cuda_graph import NoGraphError, StaticStep, static_step
from .ema import MovingAverage
from .memory import half_that_fits
from .nonfinite import Guard, NonFiniteError, is_bad

T = TypeVar("T")


@dataclass
class Progress:
    """How far a run has come: the part of its state that is neither weights nor random numbers.

    Attributes:
        epoch: epochs done.
        batch: batches of the next epoch done.
        seconds: of training spent on these.
        nonfinite: batches whose loss was not finite, and which were passed over.
        best_epoch: the one whose weights are kept; 0 before there is one.
        best_value: its `best_metric` on the validation split.
        best_sha256: the checksum of its checkpoint.
        waited: epochs since it improved by more than min_delta, for early stopping.
        waited_from: the figure those epochs are compared with.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    nonfinite: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    best_sha256: str | None = field(default=None, compare=False)  # of a file, not of the run
    waited: int = 0
    waited_from: float | None = None


@dataclass
class Run:
    """Everything a training run needs, built once by build.build_run; a plain record.

    Attributes:
        config: what was asked for.
        classes: the K class names.
        class_counts: how many training images each has.
        preprocessing: what images go through before the model.
        device: where everything below is.
        model: (images [B, C, H, W]) -> logits [B, K].
        loss: (logits [B, K], targets [B] or [B, K]) -> scalar or [B].
        optimizer: over the model's parameters that train.
        schedule: step -> factor on the learning rate.
        train: the training batches.
        validation: the batches that decide which epoch is best; None if none were held out.
        test: the test batches; None if the data set has none.
        mix: mixup or CutMix on a batch; None if off.
        average: the moving average of the weights; None if off.
        scaler: scales the loss for fp16 (it does nothing otherwise).
        progress: how far the run has come.
        tally: the sums of the epoch in progress; always the same one.
        graph_wanted: whether full batches are to go through a CUDA graph.
        all_train_images: the fingerprint of the data set's training images before any were held out or left out; None
            where `train` has them all.
        step: what full batches go through, once it is made.
    """

    config: Config
    classes: tuple[str, ...]
    class_counts: list[int]
    preprocessing: Preprocessing
    device: torch.device
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train: Batches
    validation: Batches | None
    test: Batches | None
    mix: Callable[[Tensor, Tensor], Batch] | None
    average: MovingAverage | None
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    tally: Tally = field(init=False)
    graph_wanted: bool = False
    all_train_images: str | None = None
    step: StaticStep | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tally = Tally(self.device)

    @property
    def precision(self) -> str:
        """What the forward pass computes in: float32, bf16 or fp16."""
        return choose_precision(self.config.precision, self.device)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and kept: the average where there is one."""
        return self.average.module if self.average is not None else self.model


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: a row of the table.

    Attributes:
        number: counted from 1.
        learning_rate: at the epoch's last step.
        train: running means over the epoch, while the weights moved.
        validation: on the held-out images; None without such.
        test: on the test images, only where there is no validation split.
        images_per_second: of the training pass.
        seconds: of the whole epoch, evaluation included.
        best: whether it is the best so far on the validation split.
        waited: epochs since the last improvement, for early stopping.
    """

    number: int
    learning_rate: float
    train: Scores
    validation: Scores | None
    test: Scores | None
    images_per_second: float
    seconds: float
    best: bool
    waited: int

    def plain(self) -> dict[str, Any]:
        """As a JSON line holds it. Losses in nats, accuracies in [0, 1]."""
        line: dict[str, Any] = {"event": "epoch", "epoch": self.number, "learning_rate": self.learning_rate}
        for name in ("train", "validation", "test"):
            if (scores := getattr(self, name)) is not None:
                line[name] = scores.plain()
        seconds = {"images_per_second": round(self.images_per_second, 1), "seconds": round(self.seconds, 3)}
        return {**line, **seconds, "best": self.best}


@dataclass(frozen=True)
class Pause:
    """A moment within an epoch, between two steps, at which the run is whole and can be saved.

    Attributes:
        epoch: the number of the epoch in progress, counted from 1.
        batch: how many of its batches are done.
        batches: how many it has.
    """

    epoch: int
    batch: int
    batches: int


class Pauses(Protocol):
    """Who decides when to pause."""

    def after_step(self) -> bool:
        """Asked after every step of the optimizer: whether to pause now."""

    def at_once(self) -> bool:
        """Asked after every batch of an evaluation, which is made again after a pause."""


class Never:
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
    for event in fit_with_pauses(run, Never(), track):
        if isinstance(event, Epoch):
            yield event


def fit_with_pauses(run: Run, pauses: Pauses, track: Track = untracked) -> Iterator[Epoch | Pause]:
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
            scores = score(run, held_out, pauses.at_once)
            if scores is None:
                yield Pause(number, run.progress.batch, len(run.train))
        validation, test = (scores, None) if run.validation is not None else (None, scores)
        seconds = run.progress.seconds
        run.progress.epoch, run.progress.batch, run.progress.seconds = number, 0, 0.0
        best = validation is not None and _note(run.progress, validation, run.config)
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


def train_epoch(run: Run, number: int, pauses: Pauses | None = None, track: Track = untracked) -> tuple[Scores, float]:
    """One pass over the training batches: its scores, and the learning rate of its last step."""
    for _ in _train_epoch(run, number, pauses or Never(), track):
        pass
    run.progress.batch, run.progress.seconds = 0, 0.0
    return run.tally.scores(), run.optimizer.param_groups[0]["lr"]


def _train_epoch(run: Run, number: int, pauses: Pauses, track: Track) -> Iterator[Pause]:
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
    guard = Guard(
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
                yield Pause(number, progress.batch, batches)
        guard.settle()
    except NonFiniteError:  # whoever calls may go on: after these batches, from the weights there are
        run.optimizer.zero_grad()
        progress.nonfinite += 1
        progress.batch = min(batches, (index // accumulated + 1) * accumulated)
        progress.seconds = before + time.perf_counter() - started
        raise
    check_class_ids()  # the epoch's end waits for the device anyway
    progress.seconds = before + time.perf_counter() - started


def forward_backward(
    run: Run,
    precision: contextlib.AbstractContextManager[Any],
    group_size: int,
    check: Callable[[Tensor], T],
    images: Tensor,
    targets: Tensor,
) -> T:
    """A batch's gradients, and its share in the sums of the epoch; the same whether it runs or is captured.

    Args:
        run: the run.
        precision: the context of the forward pass.
        group_size: batches whose gradients are averaged before a step.
        check: looks at the loss before the backward pass.
        images, targets: the batch.
    Returns: what `check` says.
    """
    with precision:
        logits = run.model(images)  # [B, K]
        loss = mean_of(run.loss(logits, targets))
    answer = check(loss)
    run.scaler.scale(loss / group_size if group_size > 1 else loss).backward()
    run.tally.add(loss, logits, targets)
    return answer


def mean_of(loss: Tensor) -> Tensor:
    """A loss as one number []: the mean, unless it is one already; in a small model's step every operation counts."""
    return loss.mean() if loss.ndim else loss


def make_static_step(run: Run) -> StaticStep:
    """The run's forward and backward pass for full batches, made on a made-up one; the run stays as it is.

    Raises: NoGraphError with the reason, if a CUDA graph cannot be had.
    """
    size, device = run.config.data.batch_size, run.device
    run.tally.room = 0
    before = random_state()
    try:
        pixels = torch.randint(256, (size, *run.preprocessing.shape), dtype=torch.uint8, device=device)
        images, targets = run.train.prepared(pixels), torch.arange(size, device=device) % len(run.classes)
        if run.mix is not None:
            images, targets = run.mix(images, targets)
    finally:
        restore_random_state(before)
    accumulated = run.config.grad_accum_steps
    body = partial(forward_backward, run, autocast(device, run.precision), accumulated, is_bad)
    sums = (run.tally.loss, run.tally.hits)
    copied = accumulated > 1 or ":" in run.config.optimizer.name  # a user's may keep the gradients it was given
    return static_step(body, images, targets, (run.model, run.loss), sums, copied=copied)


def _try_graph(run: Run) -> None:
    """Make the run's CUDA graph, or say why there is none. Raises: TrainingError if the config insists on one."""
    try:
        run.step = make_static_step(run)
    except NoGraphError as error:
        run.graph_wanted = False
        if run.config.cuda_graph is True:
            raise TrainingError(f"no CUDA graph: {error}; cuda_graph: auto trains without") from None
        tell_no_graph(str(error))


def tell_no_graph(why: str) -> None:
    """One line: on stderr, if nobody has set up a log."""
    logging.getLogger(__name__).warning("no CUDA graph: %s", why)


def smaller_steps(run: Run) -> str:
    """What to do when a training step did not fit into memory: smaller ones are tried, on blank images."""
    size = min(run.config.data.batch_size, run.train.num_images)
    fits = half_that_fits(size, lambda fewer: try_step(run, fewer))
    if fits is None:
        return "no smaller batch fits either; take a smaller model or smaller images, or a machine with more memory"
    accumulated = -(-size // fits) * run.config.grad_accum_steps
    return (
        f"a step of {fits} images, tried just now, fits: set data.batch_size: {fits} "
        f"and grad_accum_steps: {accumulated} for as many images a step as before"
    )


def try_step(run: Run, size: int) -> None:
    """Take a training step on `size` blank images. It changes the run."""
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    run.optimizer.zero_grad()
    run.model.train()
    images = run.train.prepared(torch.zeros(size, *run.preprocessing.shape, dtype=torch.uint8, device=run.device))
    targets = torch.zeros(size, dtype=torch.int64, device=run.device)
    if run.mix is not None:
        images, targets = run.mix(images, targets)
    with autocast(run.device, run.precision):
        loss = mean_of(run.loss(run.model(images), targets))
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()


def steps_per_epoch(batches: int, accumulated: int) -> int:
    """Optimizer steps in an epoch of so many batches."""
    return -(-batches // accumulated)


def score(run: Run, batches: Batches, stop: Callable[[], bool] = lambda: False) -> Scores | None:
    """The loss and the accuracy of the run's model on a split, in the run's precision; None if stopped between.

    The memory of a CUDA graph is given up for it if need be.
    """
    try:
        outputs = predict_until(stop, run.evaluated, batches, run.precision)
    except MemoryRanOutError:
        if run.step is None or run.config.cuda_graph is True:
            raise
        run.step, run.graph_wanted = None, False
        tell_no_graph("an evaluation needs its memory")
        return score(run, batches, stop)
    if outputs is None:
        return None
    logits, labels = outputs
    hits = (logits.max(1).indices == labels).sum().item()  # as argmax, twice as fast
    return Scores(loss_of(run.loss, logits, labels), hits / len(labels), len(labels))


def predict(model: nn.Module, batches: Batches, precision: str = "float32") -> tuple[Tensor, Tensor]:
    """Logits [N, K] float32 and labels [N] of a whole split, in its order, on the batches' device."""
    outputs = predict_until(lambda: False, model, batches, precision)
    assert outputs is not None
    return outputs


def predict_until(
    stop: Callable[[], bool], model: nn.Module, batches: Batches, precision: str
) -> tuple[Tensor, Tensor] | None:
    """As `predict`; None if `stop`, asked after each batch, says so.

    Raises: MemoryRanOutError, with the batch size that fits.
    """
    evaluate = within_memory("evaluating")(_predict_until)
    try:
        return evaluate(stop, model, batches, precision)
    except MemoryRanOutError as error:
        size = min(batches.batch_size, batches.num_images)
        fits = half_that_fits(size, lambda fewer: _try_batch(model, batches, precision, fewer))
        remedy = "no smaller batch fits either; take a machine with more memory"
        if fits is not None:
            remedy = f"{fits} images at once, tried just now, fit: set data.eval_batch_size: {fits}"
            remedy += f", or --batch-size {fits} with eval and predict"
        raise MemoryRanOutError(f"{error}; {remedy}") from None


@torch.inference_mode()
def _predict_until(
    stop: Callable[[], bool], model: nn.Module, batches: Batches, precision: str
) -> tuple[Tensor, Tensor] | None:
    was_training = model.training
    model.eval()
    labels: list[Tensor] = []
    with autocast(batches.device, precision):
        for images, ids in batches.epoch(0):
            found = model(images)  # [B, K]
            del images  # so that the next ones are written where these were, in the cache
            if not labels:  # one piece from the start: small ones would lie between the batches and scatter memory
                logits = torch.empty(batches.num_images, found.shape[1], device=batches.device)
                places = iter(logits.split(batches.batch_size))
            next(places).copy_(found)
            labels.append(ids)
            if stop():
                break
    model.train(was_training)
    return None if stop() else (logits[: sum(map(len, labels))], torch.cat(labels))


@torch.inference_mode()
def _try_batch(model: nn.Module, batches: Batches, precision: str, size: int) -> None:
    if batches.device.type == "cuda":
        torch.cuda.empty_cache()
    with autocast(batches.device, precision):
        model(batches.prepared(torch.zeros(size, *batches.split.shape, dtype=torch.uint8, device=batches.device)))


@torch.inference_mode()
def loss_of(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> float:
    """A loss over a whole split at once, so that no figure depends on how it was cut into batches.

    A loss with `reduction: sum` is divided by the number of images.
    """
    value = loss(logits, labels)
    if reduction_of(loss) == "sum":
        value = value / len(labels)
    number = mean_of(value).item()
    check_class_ids()
    return number


def _note(progress: Progress, validation: Scores, config: Config) -> bool:
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
