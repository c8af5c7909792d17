"""Imports without a search for garbage among what is imported."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """What is imported within stays to the end and is never looked through for garbage.

    Python's collector would do that again and again while torch is imported and once more when the process ends: a
    quarter of the time of both. Once torch is there this does nothing: what is there then may become garbage.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
