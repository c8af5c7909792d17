"""Settings that make the commands start and end faster, and libraries imported without the current folder's settings.

The first are safe to leave out:

| setting | gain |
| --- | --- |
| `fast_imports`: no garbage collection during imports | a fifth of the time to import torch, a third of that to exit |
| `GOMP_SPINCOUNT`: OpenMP threads sleep after 10,000 spins | on shared cores, milliseconds per parallel region |
| commands are imported when they are called (main.py) | `--help` and config mistakes do not import torch, a second |
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

# Files that a library reads from the current folder when it is imported -> the library.
SETTINGS = {"matplotlibrc": "matplotlib", ".numba_config.yaml": "numba.core.config"}


def import_without_settings() -> None:
    """Import the libraries for which the current folder holds settings, from a folder that holds none."""
    present = [name for name in SETTINGS if os.path.lexists(name)]
    if not present:
        return
    with contextlib.chdir(Path(__file__).parent):
        for name in present:
            importlib.import_module(SETTINGS[name])


def limit_openmp_spinning() -> None:
    """Let the threads of GNU's OpenMP, which PyTorch ships, sleep soon after a parallel region.

    By default they spin for milliseconds, which delays every other thread that waits for the core, including this
    process's own. 10,000 favors cores that are not shared (docs/benchmarks.md, "Shared cores"). It takes effect only
    before torch is imported; the user's $OMP_WAIT_POLICY and $GOMP_SPINCOUNT have precedence.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@contextlib.contextmanager
def fast_imports() -> Iterator[None]:
    """Imports inside run without garbage collection, and what they create is never collected (gc.freeze).

    The objects of an imported module live until the end; without this, the collector traverses them again and again
    while torch is imported, and once more when the process ends. Once torch is imported nothing is frozen, because
    that would also keep objects that may become garbage. ctrl-C and SIGTERM wait for the end of the imports.
    """
    with _deferred_signals():
        if "torch" in sys.modules:
            yield
            return
        gc.disable()
        try:
            yield
        finally:
            gc.freeze()
            gc.enable()


@contextlib.contextmanager
def silent_interrupts() -> Iterator[None]:
    """Let ctrl-C end the process by the signal's default action, which prints no traceback: nothing has begun yet."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _deferred_signals() -> Iterator[None]:
    """Deliver ctrl-C and SIGTERM after the block; a second one ends the process at once, by its default action.

    An exception that a signal handler raises while torch is imported can pass through C++, which then aborts.
    """
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)

    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):  # else it is ignored, or ends the process as it is
                handlers[number] = handler
                signal.signal(number, record)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
