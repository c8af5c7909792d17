"""The training loop. It yields what happened; whoever iterates decides what to do about it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .config import Config
from .data.batches import Batch, Batches, Preprocessing
from .errors import TrainingError
from .losses.fused import check_class_ids
from .losses.make import reduction_of
from .metrics import Scores, Tally
from .optim import Schedule
from .runtime import autocast


@dataclass
class Progress:
    """How far a run has come: the part of its state that is neither weights nor random numbers.

    Attributes:
        epoch: epochs done.
        best_epoch: the one whose weights are kept; 0 before there is one.
        best_value: its `best_metric` on the validation split.
        waited: epochs since it improved by more than min_delta, for early stopping.
        waited_from: the figure those epochs are compared with.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_value: float | None = None
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
    average: AveragedModel | None
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)

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


Track = Callable[[Iterable[Batch], int, int], Iterable[Batch]]  # (batches, how many, epoch) -> the same batches


def untracked(batches: Iterable[Batch], count: int, epoch: int) -> Iterable[Batch]:
    """The batches as they are: nobody watches."""
    return batches


def fit(run: Run, track: Track = untracked) -> Iterator[Epoch]:
    """Train from where the run stands to its last epoch, one epoch at a time.

    Args:
        run: what build.build_run made. It is changed in place; when an epoch is yielded, it is whole and can be saved.
        track: wraps each epoch's batches, to draw a progress bar.
    Raises: TrainingError if an epoch's loss is not finite.
    """
    while run.progress.epoch < run.config.epochs:
        number = run.progress.epoch + 1
        started = time.perf_counter()
        train, learning_rate = train_epoch(run, number, track)
        trained = time.perf_counter()
        if not math.isfinite(train.loss):
            raise TrainingError(
                f"the training loss is {train.loss} in epoch {number} (learning rate {learning_rate:.3g}); "
                "lower optimizer.lr, add schedule.warmup_epochs or set clip_grad_norm"
            )
        validation = test = None
        if run.validation is not None:
            validation = score(run, run.validation)
        elif run.test is not None:
            test = score(run, run.test)
        run.progress.epoch = number
        best = validation is not None and _note(run.progress, validation, run.config)
        yield Epoch(
            number=number,
            learning_rate=learning_rate,
            train=train,
            validation=validation,
            test=test,
            images_per_second=train.images / (trained - started),
            seconds=time.perf_counter() - started,
            best=best,
            waited=run.progress.waited,
        )


def train_epoch(run: Run, number: int, track: Track = untracked) -> tuple[Scores, float]:
    """One pass over the training batches: its scores, and the learning rate of its last step."""
    config = run.config
    accumulated = config.grad_accum_steps
    batches = len(run.train)
    step = (number - 1) * steps_per_epoch(batches, accumulated)
    base_rates = [group["initial_lr"] for group in run.optimizer.param_groups]
    tally = Tally(run.device)
    run.model.train()
    for index, (images, labels) in enumerate(track(run.train.epoch(number), batches, number)):
        targets = labels
        if run.mix is not None:
            images, targets = run.mix(images, labels)
        with autocast(run.device, config.precision):
            logits = run.model(images)  # [B, K]
            loss = run.loss(logits, targets).mean()
        group_size = min(accumulated, batches - index // accumulated * accumulated)
        run.scaler.scale(loss / group_size if group_size > 1 else loss).backward()
        tally.add(loss, logits, targets)
        if (index + 1) % accumulated and index + 1 < batches:
            continue
        factor = run.schedule(step)
        for group, rate in zip(run.optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        if config.clip_grad_norm is not None:
            run.scaler.unscale_(run.optimizer)
            nn.utils.clip_grad_norm_(run.model.parameters(), config.clip_grad_norm)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.optimizer.zero_grad()
        step += 1
        if run.average is not None and step % config.model_ema_steps == 0:
            run.average.update_parameters(run.model)
    check_class_ids()  # the epoch's end waits for the device anyway
    return tally.scores(), run.optimizer.param_groups[0]["lr"]


def steps_per_epoch(batches: int, accumulated: int) -> int:
    """Optimizer steps in an epoch of so many batches."""
    return -(-batches // accumulated)


def score(run: Run, batches: Batches) -> Scores:
    """The loss and the accuracy of the run's model on a split, in the run's precision."""
    logits, labels = predict(run.evaluated, batches, run.config.precision)
    hits = (logits.argmax(1) == labels).sum().item()
    return Scores(loss_of(run.loss, logits, labels), hits / len(labels), len(labels))


@torch.inference_mode()
def predict(model: nn.Module, batches: Batches, precision: str = "float32") -> tuple[Tensor, Tensor]:
    """Logits [N, K] float32 and labels [N] of a whole split, in its order, on the batches' device."""
    was_training = model.training
    model.eval()
    logits, labels = [], []
    with autocast(batches.device, precision):
        for images, ids in batches.epoch(0):
            logits.append(model(images).float())
            labels.append(ids)
    model.train(was_training)
    return torch.cat(logits), torch.cat(labels)


@torch.inference_mode()
def loss_of(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> float:
    """A loss over a whole split at once, so that no figure depends on how it was cut into batches.

    A loss with `reduction: sum` is divided by the number of images.
    """
    value = loss(logits, labels)
    if reduction_of(loss) == "sum":
        value = value / len(labels)
    number = value.mean().item()
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
