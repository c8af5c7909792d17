"""Learning-rate schedules: the factor on the optimizer's `lr` at each step.

A schedule is made once, for a run's number of steps, and is then a plain function of the step: nothing to save, nothing
to restore. It needs no torch. The optimizers are torch's own, under torch's argument names.
"""

import math
from collections.abc import Callable
from typing import Literal

from ..argument_types import NonNegativeFloat, PositiveFloat, PositiveInt, Probability

Schedule = Callable[[int], float]  # step, counted from 0 -> factor on lr


def constant(
    *, steps: int, steps_per_epoch: int, warmup_epochs: NonNegativeFloat = 0.0, warmup_factor: Probability = 0.0
) -> Schedule:
    """The learning rate stays as it is.

    Args:
        steps: of the whole run.
        steps_per_epoch: of one epoch.
        warmup_epochs: how long the factor rises to 1 at first, in epochs; a fraction of one will do.
        warmup_factor: what it rises from.
    """
    return _warmed(lambda step: 1.0, warmup_epochs * steps_per_epoch, warmup_factor)


def step(
    *,
    steps: int,
    steps_per_epoch: int,
    step_size: PositiveInt,
    gamma: PositiveFloat = 0.1,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_factor: Probability = 0.0,
) -> Schedule:
    """The learning rate times `gamma` every `step_size` epochs, as torch's StepLR.

    Args:
        steps: of the whole run.
        steps_per_epoch: of one epoch.
        step_size: epochs between two cuts.
        gamma: what a cut multiplies by.
        warmup_epochs: how long the factor rises to 1 at first, in epochs.
        warmup_factor: what it rises from.
    """
    return _warmed(
        lambda step: gamma ** (step // (step_size * steps_per_epoch)), warmup_epochs * steps_per_epoch, warmup_factor
    )


def cosine(
    *,
    steps: int,
    steps_per_epoch: int,
    end_factor: Probability = 0.0,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_factor: Probability = 0.0,
) -> Schedule:
    """Half a cosine from 1 down to `end_factor` (Loshchilov & Hutter 2017, eq. 5, without restarts).

    Args:
        steps: of the whole run.
        steps_per_epoch: of one epoch.
        end_factor: the factor that the last step would be followed by.
        warmup_epochs: how long the factor rises to 1 at first, in epochs; the cosine takes the rest.
        warmup_factor: what it rises from.
    """
    warmup = warmup_epochs * steps_per_epoch

    def factor(step: int) -> float:
        return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * _done(step, warmup, steps))) / 2

    return _warmed(factor, warmup, warmup_factor)


def linear(
    *,
    steps: int,
    steps_per_epoch: int,
    end_factor: Probability = 0.0,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_factor: Probability = 0.0,
) -> Schedule:
    """A straight line from 1 down to `end_factor`; with warm-up, a triangle.

    Args:
        steps: of the whole run.
        steps_per_epoch: of one epoch.
        end_factor: the factor that the last step would be followed by.
        warmup_epochs: how long the factor rises to 1 at first, in epochs; the line takes the rest.
        warmup_factor: what it rises from.
    """
    warmup = warmup_epochs * steps_per_epoch
    return _warmed(lambda step: 1 + (end_factor - 1) * _done(step, warmup, steps), warmup, warmup_factor)


def one_cycle(
    *,
    steps: int,
    steps_per_epoch: int,
    pct_start: Probability = 0.3,
    div_factor: PositiveFloat = 25.0,
    final_div_factor: PositiveFloat = 10000.0,
    anneal_strategy: Literal["cos", "linear"] = "cos",
) -> Schedule:
    """One rise and one fall (Smith & Topin 2019), as torch's OneCycleLR with max_lr = lr; the momentum is left alone.

    Args:
        steps: of the whole run.
        steps_per_epoch: of one epoch.
        pct_start: the share of the steps that rises, which is this schedule's warm-up.
        div_factor: the first factor is 1 / div_factor.
        final_div_factor: the last is that divided by this.
        anneal_strategy: the shape of both ways.
    """
    first, last = 1 / div_factor, 1 / div_factor / final_div_factor
    peak = max(pct_start * steps - 1, 0.0)

    def between(start: float, end: float, done: float) -> float:
        share = done if anneal_strategy == "linear" else (1 - math.cos(math.pi * done)) / 2
        return start + (end - start) * share

    def factor(step: int) -> float:
        if step <= peak:
            return between(first, 1.0, step / peak) if peak else 1.0
        return between(1.0, last, (step - peak) / max(1.0, steps - 1 - peak))

    return factor


def _done(step: int, warmup: float, steps: int) -> float:
    """The share of the steps after the warm-up that is done, in [0, 1]."""
    return min(1.0, max(0.0, step - warmup) / max(1.0, steps - warmup))


def _warmed(factor: Schedule, warmup: float, start: float) -> Schedule:
    """`factor`, preceded by a straight rise from `start` to 1 over the first `warmup` steps."""
    return lambda step: start + (1 - start) * (step + 1) / warmup if step + 1 < warmup else factor(step)
