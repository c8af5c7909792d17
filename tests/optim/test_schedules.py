"""Schedules against torch's own schedulers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from softmaxce.optim import schedules


def torchs(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """The learning rates of torch's scheduler, from lr = 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


STEPS, EPOCH = 60, 10


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (schedules.constant(steps=STEPS, steps_per_epoch=EPOCH), lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        (
            schedules.step(steps=STEPS, steps_per_epoch=EPOCH, step_size=2, gamma=0.3),
            lambda o: lr_scheduler.StepLR(o, 2 * EPOCH, 0.3),
        ),
        (schedules.cosine(steps=STEPS, steps_per_epoch=EPOCH), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (
            schedules.cosine(steps=STEPS, steps_per_epoch=EPOCH, end_factor=0.2),
            lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.2),
        ),
        (
            schedules.linear(steps=STEPS, steps_per_epoch=EPOCH, end_factor=0.1),
            lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, STEPS),
        ),
        (
            schedules.one_cycle(steps=STEPS, steps_per_epoch=EPOCH),
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, STEPS, cycle_momentum=False),
        ),
        (
            schedules.one_cycle(
                steps=STEPS, steps_per_epoch=EPOCH, pct_start=0.2, div_factor=5, anneal_strategy="linear"
            ),
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, STEPS, pct_start=0.2, div_factor=5, anneal_strategy="linear", cycle_momentum=False
            ),
        ),
    ],
    ids=["constant", "step", "cosine", "cosine to 0.2", "linear", "one cycle", "one cycle linear"],
)
def test_the_schedule_is_torchs(
    ours: schedules.Schedule, reference: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
) -> None:
    assert [ours(step) for step in range(STEPS)] == pytest.approx(torchs(reference, STEPS), abs=1e-9)


@given(st.integers(1, 50), st.integers(2, 20), st.floats(0, 3))
def test_every_factor_lies_between_0_and_1(epochs: int, per_epoch: int, warmup: float) -> None:
    steps = epochs * per_epoch
    for make in (schedules.constant, schedules.cosine, schedules.linear):
        schedule = make(steps=steps, steps_per_epoch=per_epoch, warmup_epochs=min(warmup, epochs))
        factors = [schedule(step) for step in range(steps)]
        assert all(0 <= factor <= 1 + 1e-12 for factor in factors)


def test_warm_up_rises_in_a_straight_line_to_1() -> None:
    schedule = schedules.constant(steps=20, steps_per_epoch=5, warmup_epochs=2)
    assert [schedule(step) for step in range(12)] == pytest.approx([(i + 1) / 10 for i in range(10)] + [1, 1])


def test_the_first_cosine_step_after_warm_up_is_at_the_top() -> None:
    schedule = schedules.cosine(steps=20, steps_per_epoch=5, warmup_epochs=1)
    assert schedule(5) == 1.0
    assert schedule(19) == pytest.approx((1 + math.cos(math.pi * 14 / 15)) / 2)
