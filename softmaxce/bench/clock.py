"""Timing several calls against each other: interleaved, in rotating order, so that what slows the machine slows all."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

BLOCK = 2e-3  # seconds that one contestant runs before the next one's turn
WARM_UP = 5e-2  # seconds of each contestant before the first round


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The median and quartiles of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timed:
    """One contestant's time.

    Attributes:
        seconds: a call.
        ratio: to the first contestant's time in the same round.
    """

    seconds: Spread
    ratio: Spread

    def per(self, parts: int) -> "Timed":
        """The time of one of so many equal parts of the call."""
        taken = self.seconds
        return Timed(Spread(taken.median / parts, taken.low / parts, taken.high / parts), self.ratio)


def race(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    synchronize: Callable[[], None] = lambda: None,
    block: float = BLOCK,
) -> dict[str, Timed]:
    """Time the calls against the first of them.

    In each round each contestant runs for about `block` seconds (at least once), and the next round starts with the
    next one. The ratio is taken within a round, where the machine is the same for all, and then its median over rounds.

    Args:
        calls: name -> what to time; the first is what the others are compared with.
        rounds: how many, at least 2.
        synchronize: waits for the device.
        block: seconds.
    """
    names = list(calls)
    counts = {name: _warm_up(call, synchronize, block) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds):
            start = index % len(names)
            for name in names[start:] + names[:start]:
                call, count = calls[name], counts[name]
                synchronize()
                began = time.perf_counter()
                for _ in range(count):
                    call()
                synchronize()
                seconds[name].append((time.perf_counter() - began) / count)
    finally:
        if collecting:
            gc.enable()
    base = seconds[names[0]]
    return {
        name: Timed(Spread.of(taken), Spread.of([mine / theirs for mine, theirs in zip(taken, base, strict=True)]))
        for name, taken in seconds.items()
    }


def _warm_up(call: Callable[[], object], synchronize: Callable[[], None], block: float) -> int:
    """Run it until it is warm; how many calls make a block."""
    call()  # the first one may compile
    synchronize()
    calls, began = 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - began < min(WARM_UP, 10 * block):
        call()
        calls += 1
    synchronize()
    return max(1, round(block / ((time.perf_counter() - began) / calls)))
