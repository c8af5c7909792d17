"""Signals that stop or save a run between two steps, and the steps after which a run is saved."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from ..errors import INTERRUPTED, TERMINATED

STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
SAVE = getattr(signal, "SIGUSR1", None)  # Windows has none
ECHO = 2.0  # seconds in which torchrun forwards a signal that the terminal has sent to its processes too


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. It is handled as ctrl-C, with another exit status."""


class Signals:
    """SIGINT, SIGTERM and SIGUSR1 as requests to a run, inside a `with`; the previous handlers are restored after it.

    Python delivers signals to the main thread only: in another thread no handler is installed.

    Attributes:
        waiting: while True, SIGINT and SIGTERM are recorded in `stop`, and the caller ends after it has saved; a second
            signal raises KeyboardInterrupt or Terminated at once. While False, the first one does.
        stop: the signal that requested the end; None before there is one.
        save: SIGUSR1 requested a checkpoint; the caller resets it after saving.
        on_stop: called from the signal handler after a signal was recorded in `stop`.
        shared: this process trains with others. What was received is then a request, which `requests` passes on, and
            `stop` and `save` are what all processes have agreed on.
        received: the signal to this process that requests the end.
    """

    def __init__(self) -> None:
        self.waiting = False
        self.stop: signal.Signals | None = None
        self.save = False
        self.on_stop: Callable[[], None] | None = None
        self.shared = False
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._save_requested = self._raising = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (*STATUS, *([SAVE] if SAVE is not None else [])):
                self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed from Python

    def raise_if_stopped(self) -> None:
        """Raises: KeyboardInterrupt or Terminated if a signal has requested the end."""
        if self.stop is not None:
            raise interruption(STATUS[self.stop])

    @property
    def status(self) -> int:
        """The exit status of the signal that this process has received."""
        return STATUS[self.received or signal.SIGINT]

    def requests(self) -> tuple[float, float, float]:
        """What this process asks the others for, each 1 or 0: to end by SIGINT, by SIGTERM, to save."""
        save, self._save_requested = self._save_requested, False
        return float(self.received == signal.SIGINT), float(self.received == signal.SIGTERM), float(save)

    def agree(self, totals: Sequence[float]) -> None:
        """Take over the sums of all processes' `requests`."""
        if totals[0] or totals[1]:
            self.stop = signal.SIGTERM if totals[1] else signal.SIGINT
        self.save = self.save or totals[2] > 0

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, also where the signals are shared, the first one raises KeyboardInterrupt or Terminated at once."""
        before, self._raising = self._raising, True
        try:
            if self.received is not None:
                raise interruption(self.status)
            yield
        finally:
            self._raising = before

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == SAVE:
            self.save, self._save_requested = self.save or not self.shared, True
            return
        again = self.received is not None
        now = time.monotonic()
        if again and "TORCHELASTIC_RUN_ID" in os.environ and now - self._received_at < ECHO:
            return
        self.received, self._received_at = signal.Signals(number), now
        if not self.shared:
            self.stop = self.received
        if again or self._raising or not (self.waiting or self.shared):
            raise interruption(self.status)
        if self.on_stop is not None:
            self.on_stop()


@contextlib.contextmanager
def default_actions() -> Iterator[None]:
    """Inside, ctrl-C and SIGTERM end the process at once: in a long call of C++ code, Python's handlers do not run."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signal.SIG_DFL) for number in STATUS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruption(status: int) -> KeyboardInterrupt:
    """The exception that ends a command with this status."""
    return Terminated() if status == TERMINATED else KeyboardInterrupt()


@dataclass(frozen=True)
class Every:
    """How often to save within an epoch, in steps or minutes; 0 is never."""

    steps: int = 0
    minutes: float = 0.0


def every(text: str | None) -> Every:
    """A config's `checkpoint_every`, `500 steps` or `10 minutes`, parsed; None is never within an epoch."""
    if text is None:
        return Every()
    number, unit = text.split()
    return Every(steps=int(number)) if unit.startswith("step") else Every(minutes=float(number))


class Pauses:
    """When to interrupt training for a checkpoint: after a time, at some steps of an epoch, on a signal.

    Attributes:
        planned: whether the pause is one that every run of this config makes, not one for a signal.
    """

    def __init__(self, every: Every, signals: Signals, position: Callable[[], int] = lambda: 0) -> None:
        """`position` gives the steps done of the current epoch: a resumed run pauses where an undisturbed one does."""
        self.every = every
        self.signals = signals  # if one has requested a checkpoint already, it is due after the first step
        self.position = position
        self.planned = False
        self._minutes_agreed = False
        self.last, self.since = position(), time.monotonic()

    def saved(self) -> None:
        """Begin to wait for the next; call it after a checkpoint was written."""
        self.last, self.since = self.position(), time.monotonic()
        self.signals.save = self.planned = False

    def should_checkpoint(self) -> bool:
        """Called after each step. Returns: whether to pause now."""
        steps = self.every.steps
        minutes = self._minutes_agreed if self.signals.shared else self._minutes_are_over()
        self.planned = bool((steps and self.position() // steps > self.last // steps) or minutes)
        return self.planned or self.signals.save or self.signals.stop is not None

    def _minutes_are_over(self) -> bool:
        return bool(self.every.minutes and time.monotonic() - self.since >= 60 * self.every.minutes)

    def should_abort_evaluation(self) -> bool:
        """Whether to pause even within an evaluation, which is then repeated."""
        return self.signals.received is not None

    def requests(self) -> list[float]:
        """Called before a step of several processes: what this one asks for, each 1 or 0."""
        return [*self.signals.requests(), float(self._minutes_are_over())]

    def agree(self, totals: Sequence[float]) -> None:
        """Called after the step with the sums of all processes' `requests`."""
        self.signals.agree(totals[:3])
        self._minutes_agreed = totals[3] > 0
