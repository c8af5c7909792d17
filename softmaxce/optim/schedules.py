"""Learning-rate schedules: the factor on the optimizer's `lr` at each step.

A schedule is built once, for a run's number of steps, and is then a function of the step alone: it has no state to save
or restore. It needs no torch. The exception is plateau.py.
"""

import math
from collections.abc import Callable
from typing import Literal

from ..argument_types import NonNegativeFloat, PositiveFloat, PositiveInt, Probability

Schedule = Callable[[int], float]  # step, counted from 0 -> factor on lr


def constant(
    *, steps: int, steps_per_epoch: int, warmup_epochs: NonNegativeFloat = 0.0, warmup_factor: Probability = 0.0
) -> Schedule:
    """A constant learning rate.

    Args:
        steps: in the whole run.
        steps_per_epoch: in one epoch.
        warmup_epochs: the length of the linear warm-up, in epochs; may be a fraction.
        warmup_factor: the factor at which the warm-up begins.
    """
    return with_warmup(lambda step: 1.0, warmup_epochs * steps_per_epoch, warmup_factor)


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
        steps: in the whole run.
        steps_per_epoch: in one epoch.
        step_size: epochs between two decays.
        gamma: the factor of each decay.
        warmup_epochs: the length of the linear warm-up, in epochs.
        warmup_factor: the factor at which the warm-up begins.
    """
    return with_warmup(
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
        steps: in the whole run.
        steps_per_epoch: in one epoch.
        end_factor: the factor after the last step.
        warmup_epochs: the length of the linear warm-up, in epochs; the cosine takes the remaining steps.
        warmup_factor: the factor at which the warm-up begins.
    """
    warmup = warmup_epochs * steps_per_epoch

    def factor(step: int) -> float:
        return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * _progress(step, warmup, steps))) / 2

    return with_warmup(factor, warmup, warmup_factor)


def linear(
    *,
    steps: int,
    steps_per_epoch: int,
    end_factor: Probability = 0.0,
    warmup_epochs: NonNegativeFloat = 0.0,
    warmup_factor: Probability = 0.0,
) -> Schedule:
    """Linear decay from 1 to `end_factor`.

    Args:
        steps: in the whole run.
        steps_per_epoch: in one epoch.
        end_factor: the factor after the last step.
        warmup_epochs: the length of the linear warm-up, in epochs; the decay takes the remaining steps.
        warmup_factor: the factor at which the warm-up begins.
    """
    warmup = warmup_epochs * steps_per_epoch
    return with_warmup(lambda step: 1 + (end_factor - 1) * _progress(step, warmup, steps), warmup, warmup_factor)


def one_cycle(
    *,
    steps: int,
    steps_per_epoch: int,
    pct_start: Probability = 0.3,
    div_factor: PositiveFloat = 25.0,
    final_div_factor: PositiveFloat = 10000.0,
    anneal_strategy: Literal["cos", "linear"] = "cos",
) -> Schedule:
    """The one-cycle policy (Smith & Topin 2019), as torch's OneCycleLR with max_lr = lr and without momentum cycling.

    Args:
        steps: in the whole run.
        steps_per_epoch: in one epoch.
        pct_start: the fraction of the steps in which the factor increases, which is this schedule's warm-up.
        div_factor: the first factor is 1 / div_factor.
        final_div_factor: the last factor is the first divided by this.
        anneal_strategy: the shape of both phases.
    """
    first, last = 1 / div_factor, 1 / div_factor / final_div_factor
    peak = max(pct_start * steps - 1, 0.0)

    def between(start: float, end: float, progress: float) -> float:
        weight = progress if anneal_strategy == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return start + (end - start) * weight

    def factor(step: int) -> float:
        if step <= peak:
            return between(first, 1.0, step / peak) if peak else 1.0
        return between(1.0, last, (step - peak) / max(1.0, steps - 1 - peak))

    return factor


def _progress(step: int, warmup: float, steps: int) -> float:
    """The fraction of the steps after the warm-up that is done, in [0, 1]."""
    return min(1.0, max(0.0, step - warmup) / max(1.0, steps - warmup))


def with_warmup(factor: Schedule, warmup: float, start: float) -> Schedule:
    """`factor`, preceded by a linear warm-up from `start` to 1 over the first `warmup` steps."""
    return lambda step: start + (1 - start) * (step + 1) / warmup if step + 1 < warmup else factor(step)
