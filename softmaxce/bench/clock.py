"""Interleaved timing of several calls, in rotating order: what slows the machine down affects all of them."""

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

BLOCK = 2e-3  # seconds that one candidate runs before the next
ATTEMPTS = 3  # to get a block without a context switch
WARM_UP = 5e-2  # seconds per candidate before the first round


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
    """One candidate's time.

    Attributes:
        seconds: per call.
        ratio: to the first candidate's time in the same round.
    """

    seconds: Spread
    ratio: Spread

    def per(self, parts: int) -> "Timed":
        """The time of one part of a call that consists of `parts` equal ones."""
        whole = self.seconds
        return Timed(Spread(whole.median / parts, whole.low / parts, whole.high / parts), self.ratio)


def race(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    block: float = BLOCK,
) -> dict[str, Timed]:
    """Time calls relative to the first of them.

    In each round every candidate runs for about `block` seconds (at least once); each round starts with another
    candidate. The ratio is computed within a round, where conditions are alike, and its median over the rounds is
    reported. A block with an involuntary context switch is repeated, up to three times in all; if all were interrupted,
    the fastest counts.

    Args:
        calls: name -> what to time; the first is the baseline.
        rounds: at least 2.
        synchronize: waits for the device.
        clock: returns seconds; see clock_for.
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
    return {name: Timed(Spread.of(times), ratios(times, base)) for name, times in seconds.items()}


def turns(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The result of each call in each round; the first call of a round is another one each time."""
    names = list(calls)
    results: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            results[name].append(calls[name]())
    return results


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The ratio to the baseline within each round: median and quartiles over the rounds."""
    return Spread.of([value / other for value, other in zip(values, base, strict=True)])


def clock_for(device: torch.device, threads: int) -> Callable[[], float]:
    """The clock to use: CPU time for one thread on the CPU, which excludes other processes; else wall-clock time."""
    return time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter


def _block(
    call: Callable[[], object], count: int, synchronize: Callable[[], None], clock: Callable[[], float]
) -> float:
    """Seconds per call over `count` calls in a row, if possible without a context switch."""
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
    """Involuntary context switches of this process so far; 0 where the system does not count them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def _warm_up(
    call: Callable[[], object], synchronize: Callable[[], None], clock: Callable[[], float], block: float
) -> int:
    """Warm up; return the number of calls that make a block."""
    call()  # the first call may compile
    synchronize()
    calls, began = 0, clock()
    while calls < 2 or clock() - began < min(WARM_UP, 10 * block):
        call()
        calls += 1
    synchronize()
    return max(1, round(block / ((clock() - began) / calls)))
