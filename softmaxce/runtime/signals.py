"""Signals that stop or save a run between two steps, and the steps after which a run is saved."""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from ..errors import INTERRUPTED, TERMINATED

STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
SAVE = getattr(signal, "SIGUSR1", None)  # Windows has none


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
    """

    def __init__(self) -> None:
        self.waiting = False
        self.stop: signal.Signals | None = None
        self.save = False
        self.on_stop: Callable[[], None] | None = None
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
            raise Terminated if self.stop == signal.SIGTERM else KeyboardInterrupt

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == SAVE:
            self.save = True
            return
        again = self.stop is not None
        self.stop = signal.Signals(number)
        if again or not self.waiting:
            self.raise_if_stopped()
        if self.on_stop is not None:
            self.on_stop()


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
        self.last, self.since = position(), time.monotonic()

    def saved(self) -> None:
        """Begin to wait for the next; call it after a checkpoint was written."""
        self.last, self.since = self.position(), time.monotonic()
        self.signals.save = self.planned = False

    def should_checkpoint(self) -> bool:
        """Called after each step. Returns: whether to pause now."""
        steps = self.every.steps
        self.planned = bool(
            (steps and self.position() // steps > self.last // steps)
            or (self.every.minutes and time.monotonic() - self.since >= 60 * self.every.minutes)
        )
        return self.planned or self.signals.save or self.signals.stop is not None

    def should_abort_evaluation(self) -> bool:
        """Whether to pause even within an evaluation, which is then repeated."""
        return self.signals.stop is not None
