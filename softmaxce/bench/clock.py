"""Timing several calls against each other: interleaved, in rotating order, so that what slows the machine slows all."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BLOCK = 2e-3  # seconds that one contestant runs before the next one's turn
ATTEMPTS = 3  # at a block that nothing interrupts
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
    clock: Callable[[], float] = time.perf_counter,
    block: float = BLOCK,
) -> dict[str, Timed]:
    """Time the calls against the first of them.

    In each round each contestant runs for about `block` seconds (at least once), and the next round starts with the
    next one. The ratio is taken within a round, where the machine is the same for all, and then its median over rounds.
    A block during which the system gave the processor to somebody else is run again, up to three times in all; where
    all were disturbed, the fastest counts.

    Args:
        calls: name -> what to time; the first is what the others are compared with.
        rounds: how many, at least 2.
        synchronize: waits for the device.
        clock: seconds; see clock_for.
        block: seconds.
    """
    counts = {name: _warm_up(call, synchronize, clock, block) for name, call in calls.items()}
    blocks = {name: partial(_block, call, counts[name], synchronize, clock) for name, call in calls.items()}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        seconds = turns(blocks, rounds)
    finally:
        if collecting:
            gc.enable()
    base = next(iter(seconds.values()))
    return {name: Timed(Spread.of(taken), ratios(taken, base)) for name, taken in seconds.items()}


def turns(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each call returns in each round; every round starts with the next one."""
    names = list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(calls[name]())
    return found


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratio of two figures, which is taken within each round."""
    return Spread.of([one / other for one, other in zip(mine, theirs, strict=True)])


def clock_for(device: torch.device, threads: int) -> Callable[[], float]:
    """What to read the time off.

    For one thread on the CPU it is the processor's time, which stands still while another program runs there; else the
    time of day.
    """
    return time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter


def _block(
    call: Callable[[], object], count: int, synchronize: Callable[[], None], clock: Callable[[], float]
) -> float:
    """Seconds a call, over so many calls in a row that nothing interrupted, if that can be had."""
    fastest = float("inf")
    for _ in range(ATTEMPTS):
        synchronize()
        switches, began = _interruptions(), clock()
        for _ in range(count):
            call()
        synchronize()
        fastest = min(fastest, (clock() - began) / count)
        if _interruptions() == switches:
            break
    return fastest


def _interruptions() -> int:
    """How often the system took the processor from this process, where it tells."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def _warm_up(
    call: Callable[[], object], synchronize: Callable[[], None], clock: Callable[[], float], block: float
) -> int:
    """Run it until it is warm; how many calls make a block."""
    call()  # the first one may compile
    synchronize()
    calls, began = 0, clock()
    while calls < 2 or clock() - began < min(WARM_UP, 10 * block):
        call()
        calls += 1
    synchronize()
    return max(1, round(block / ((clock() - began) / calls)))
