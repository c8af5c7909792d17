"""The learning-rate range test: the training loss while the learning rate grows from step to step."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from ..config.keys import Config
from ..data.progressive_resizing import resized, smaller_size
from ..errors import ConfigError, Problem, as_training_error, within_memory
from .freezing import prepare_epoch
from .nonfinite import NonFiniteError
from .optimizer import add_loss_parameters, build_optimizer
from .run import Run
from .step import TrainingStep

DIVERGED = 4.0  # times the smallest loss, as in fastai and Lightning
LATEST = 5  # steps whose median decides about that
SMOOTHING = 0.03  # standard deviation of the Gaussian, as a fraction of the steps
FEWEST = 10  # steps from which a rate can be read
NOISE = 2.0  # standard deviations of a batch's loss by which the smoothed loss has to fall
SMALLEST_FALL = 0.01  # of the first loss, likewise


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: of the steps, `optimizer.lr` of each, geometrically spaced.
        losses: the training loss of each step's images before its update, nats per image; none that is not finite.
        smoothed: the losses smoothed over neighboring steps, by a Gaussian.
        stopped_at: the rate at which the loss diverged; None if it did not.
        steepest: the rate at which the smoothed loss falls fastest over the logarithm of the rate; None if there is no
            such rate, and `reason` says why.
        tenth_of_minimum: a tenth of the rate with the smallest smoothed loss; None likewise, and if that is the last.
        reason: why no rate is named; a caution where one is; or empty.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    stopped_at: float | None
    steepest: float | None
    tenth_of_minimum: float | None
    reason: str

    @property
    def suggested(self) -> float | None:
        """The rate to try: a tenth of the minimum's, which depends less on noise, else the steepest; or None."""
        return self.steepest if self.tenth_of_minimum is None else self.tenth_of_minimum


def range_test(run: Run, low: float, high: float, steps: int, advance: Callable[[], None] = lambda: None) -> RangeTest:
    """Train with a learning rate that grows geometrically from `low` to `high`, until the loss diverges.

    Smith 2017 (arXiv:1506.01186), with the exponential growth of fastai and Lightning. Batches, augmentation, mixup and
    accumulation are those of the run's first epoch and, where that has fewer steps, of the next; which layers are
    frozen, and the size of the images, is as of the first. The schedule is not applied.

    Args:
        run: as build.build_run made it from `at_rate(config, low)`. It is changed, and cannot be trained afterwards.
        low: the first `optimizer.lr`.
        high: the last one.
        steps: from one to the other; at least FEWEST.
        advance: called after each step.
    Raises: ConfigError if `optimizer.lr` is the rate of no parameter that is trained; whatever training raises.
    """
    rates: list[float] = np.geomspace(low, high, steps).tolist()
    losses: list[float] = []
    stopped_at, smallest = None, math.inf
    prepare_epoch(run, 1)
    set_rate = rate_setter(run)
    with as_training_error(lambda: f"step {len(losses) + 1} of the range test"), within_memory("training"):
        for rate, loss in _steps(run, rates, set_rate):
            losses.append(loss)
            latest = statistics.median(losses[-LATEST:])
            smallest = min(smallest, latest)
            if not math.isfinite(loss) or latest - smallest > (DIVERGED - 1) * abs(smallest):
                stopped_at = rate
                break
            advance()
    losses = [loss for loss in losses if math.isfinite(loss)]  # the last alone may not be
    return analyze(rates[: len(losses)], losses, stopped_at)


def at_rate(config: Config, rate: float) -> Config:
    """The config with another `optimizer.lr`, and without what a few steps do not need: compilation, averages."""
    # Not the rate itself: a group with a rate of its own (head_lr) that happened to be the same would be merged.
    arguments = {**config.optimizer.arguments, "lr": math.nextafter(rate, math.inf)}
    return replace(
        config,
        optimizer=replace(config.optimizer, arguments=arguments),
        compile=False,
        cuda_graph=False,
        model_ema_decay=None,
        swa=None,
    )


def rate_setter(run: Run) -> Callable[[float], None]:
    """A function that sets the rates of a run's optimizer to those that a config with another `optimizer.lr` has.

    A rate in proportion to `optimizer.lr` (layer_decay) changes with it; one of its own (head_lr, Muon's adamw_lr) does
    not. Which is which is read from an optimizer that is built with twice the rate.

    Raises: ConfigError if no parameter that is trained now has a rate that changes.
    """
    base = float(run.config.optimizer.arguments["lr"])
    groups = run.optimizer.param_groups
    now = [float(group["initial_lr"]) for group in groups]
    doubled = _initial_rates(run, 2 * base)
    slopes = [(doubled[id(group["params"][0])] - rate) / base for group, rate in zip(groups, now, strict=True)]
    trained = [any(parameter.requires_grad for parameter in group["params"]) for group in groups]
    if not any(slope and moves for slope, moves in zip(slopes, trained, strict=True)):
        message = "is the rate of no parameter that the first epoch trains"
        tuning = run.config.fine_tuning
        if tuning is not None and tuning.freeze != "none":
            message += ", as the backbone is frozen and the head has head_lr; test without: --set fine_tuning=none"
        raise ConfigError([Problem("optimizer.lr", message)])

    def set_rate(rate: float) -> None:
        for group, first, slope in zip(groups, now, slopes, strict=True):
            group["lr"] = first + slope * (rate - base)

    return set_rate


def _initial_rates(run: Run, rate: float) -> dict[int, float]:
    """The learning rate of each parameter, by its id, of an optimizer with this `optimizer.lr`."""
    optimizer_config = replace(run.config.optimizer, arguments={**run.config.optimizer.arguments, "lr": rate})
    config = replace(run.config, optimizer=optimizer_config)
    optimizer = build_optimizer(config, run.model)
    add_loss_parameters(optimizer, config, run.model, run.loss)
    return {id(p): float(group["initial_lr"]) for group in optimizer.param_groups for p in group["params"]}


def unchanged_rates(run: Run) -> list[str]:
    """The config's keys with learning rates that a range test leaves as they are."""
    tuning = run.config.fine_tuning
    keys = ["fine_tuning.head_lr"] if tuning is not None and tuning.head_lr is not None else []
    return keys + [f"optimizer.{name}" for name in run.config.optimizer.arguments if name.endswith("_lr")]


def _steps(run: Run, rates: list[float], set_rate: Callable[[float], None]) -> Iterator[tuple[float, float]]:
    """Take a step at each rate: the rate, and the loss before its update, which is NaN if the step was not finite."""
    taken, accumulated = 0, run.config.grad_accum_steps
    size = smaller_size(run.config, run.preprocessing.shape, 1)
    for epoch in itertools.count(1):
        step = TrainingStep(run, epoch)
        for index, (images, labels) in enumerate(run.train.epoch(epoch)):
            if index % accumulated == 0:
                if taken == len(rates):
                    return
                step.begin(index)
                set_rate(rates[taken])
                run.tally.clear()
            targets: Tensor = labels
            if run.mix is not None:
                images, targets = run.mix(images, labels)
            try:
                step.forward_backward(resized(images, size), targets, index)
                if (index + 1) % accumulated and index + 1 < len(run.train):
                    continue
                loss = run.tally.scores().loss
                step.update()
                step.finish()
            except NonFiniteError:  # the loss has diverged, which is an answer of the test
                loss = math.nan
            yield rates[taken], loss
            taken += 1


# -- which rate -------------------------------------------------------------------------------------------------------


def analyze(rates: list[float], losses: list[float], stopped_at: float | None = None) -> RangeTest:
    """Smooth a curve, and name the rates that it suggests, or say why there are none.

    The loss has to fall by 1% of its first value and by twice the standard deviation of a step's loss, which tells a
    fall from noise.

    Args:
        rates: geometrically spaced.
        losses: finite, of the steps at these rates.
        stopped_at: the rate at which the loss diverged.
    """
    if len(losses) < FEWEST:
        where = f"at {stopped_at:.2g}, " if stopped_at is not None else ""
        reason = f"the loss diverges {where}after {len(losses)} steps; lower --min-lr, or take more --steps"
        return RangeTest(rates, losses, list(losses), stopped_at, None, None, reason)
    values = np.array(losses)
    smoothed: NDArray[np.float64] = gaussian_filter1d(values, max(1.0, SMOOTHING * len(values)), mode="nearest")
    lowest = int(smoothed.argmin())
    fall, noise = smoothed[0] - smoothed[lowest], float(np.std((values - smoothed)[: max(lowest, FEWEST)]))
    steepest = tenth = None
    reason = ""
    if fall < max(NOISE * noise, SMALLEST_FALL * abs(smoothed[0])):
        reason = _no_fall(rates, smoothed, noise, stopped_at)
    else:
        steepest = rates[int(np.gradient(smoothed)[: lowest + 1].argmin())]
        if stopped_at is not None or lowest < len(rates) - 1:
            tenth = rates[lowest] / 10
        else:
            reason = (
                f"the loss is smallest at the last rate, {rates[-1]:.2g}; a larger --max-lr may show where it rises"
            )
    return RangeTest(rates, losses, smoothed.tolist(), stopped_at, steepest, tenth, reason)


def _no_fall(rates: list[float], smoothed: NDArray[np.float64], noise: float, stopped_at: float | None) -> str:
    """Why no rate is named: the curve rises, or it is flat."""
    rise = smoothed.max() - smoothed[0]
    if stopped_at is not None or rise >= max(NOISE * noise, SMALLEST_FALL * abs(smoothed[0])):
        return f"the loss rises and does not fall, from {rates[0]:.2g} on; lower --min-lr"
    remedy = "raise --max-lr" if noise < SMALLEST_FALL * abs(smoothed[0]) else "raise --max-lr or data.batch_size"
    return f"the loss is flat from {rates[0]:.2g} to {rates[-1]:.2g}; {remedy}, or take more --steps"
