"""Interleaved timing: ratios are those of the durations, and the order rotates."""

import time

import pytest

from softmaxce.bench.clock import Spread, race


def test_a_call_that_sleeps_three_times_as_long_has_a_ratio_of_three() -> None:
    timed = race({"short": lambda: time.sleep(0.004), "long": lambda: time.sleep(0.012)}, rounds=7, block=1e-3)
    assert timed["short"].ratio == Spread(1.0, 1.0, 1.0)
    assert 0.004 <= timed["short"].seconds.low <= timed["short"].seconds.median <= timed["short"].seconds.high
    assert timed["long"].ratio.median == pytest.approx(3.0, rel=0.25)
    assert timed["long"].per(4).seconds.median == timed["long"].seconds.median / 4


def test_every_round_starts_with_the_next_candidate() -> None:
    order: list[str] = []

    def turn(name: str) -> None:
        time.sleep(0.002)  # longer than a block, so each turn is one call
        order.append(name)

    race({name: lambda name=name: turn(name) for name in "abc"}, rounds=3, block=1e-3)  # type: ignore[misc]
    assert "".join(order[-9:]) == "abcbcacab"


def test_quartiles_are_those_of_a_hand_calculation() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0)
