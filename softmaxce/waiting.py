"""What is shown on stderr while something takes long: a count on a terminal, one line elsewhere."""

import sys
import threading
import time
from types import TracebackType

from . import streams

ON_TERMINAL = 0.5  # seconds until something is shown, and between two updates
ELSEWHERE = 5.0


class Counting:
    """Counts what is done, in any threads; the count is removed from the terminal at the end.

    Args:
        what: what is done, such as `decoding images`.
        total: how many there are.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._next = time.monotonic() + (ON_TERMINAL if self._terminal else ELSEWHERE)
        self._width = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "Counting":
        return self

    def advance(self) -> None:
        """One more is done."""
        with self._lock:
            self.done += 1
            now = time.monotonic()
            if now < self._next or sys.stderr is None:
                return
            text = f"{self.what}: {self.done:,} of {self.total:,}"
            if not self._terminal:
                streams.line(text, err=True)
                self._next = float("inf")
                return
            self._width = len(text)
            self._next = now + ON_TERMINAL
            sys.stderr.write(f"\r{text}")
            sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            sys.stderr.write(f"\r{' ' * self._width}\r")
            sys.stderr.flush()
