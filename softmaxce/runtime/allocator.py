"""Freed memory kept by the process instead of returned to the system."""

import ctypes
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """From now on this process keeps the memory that it frees; whether the C library could be told so.

    glibc takes large buffers from the kernel and gives them back when they are freed, and the next batch pays for fresh
    pages, some 0.25 us for each 4 KB. What is kept serves the next batch; the process does not shrink until it ends.

    Not where memory has a limit that is counted in addresses: what is kept comes to lie in pieces, each a little too
    small for the next batch, and counts.
    """
    return not _addresses_are_counted() and _malloc_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def _addresses_are_counted() -> bool:
    """Whether memory can run out that nobody has written to: `ulimit -v` or `-d`, or a strict vm.overcommit_memory."""
    if sys.platform == "win32":
        return False
    import resource

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    strict = Path("/proc/sys/vm/overcommit_memory")
    return any(limit != resource.RLIM_INFINITY for limit in limits) or (strict.exists() and strict.read_text() == "2\n")


def _malloc_options(options: dict[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    # Glibc says 1 where it obeys; other C libraries on Linux have no mallopt, or one that does nothing.
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in options.items())
