"""Settings of the C library's memory allocator."""

import ctypes
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
LARGE = 1 << 20  # bytes
MAPPINGS = 65536  # glibc's own limit of buffers that are mapped


def keep_freed_memory() -> bool:
    """From now on, keep freed memory in this process instead of returning it to the system.

    glibc maps large buffers from the kernel and unmaps them when they are freed, so each batch pays for fresh pages,
    about 0.25 us per 4 KB. Memory that is kept serves the next batch; the process does not shrink until it ends.

    Not where a limit counts addresses: kept memory is fragmented into pieces slightly too small for the next batch,
    and all of them count against the limit.

    Returns: whether the C library accepted the setting.
    """
    return not _addresses_are_counted() and _malloc_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def return_large_buffers() -> None:
    """From now on, return freed buffers of more than 1 MiB to the system: where images are read from files.

    Small allocations for the files fall between the buffers of a batch and stay in glibc's per-thread caches; a buffer
    beside one is too small for the next batch's, which is aligned, and gigabytes of such pieces remain. So it is
    without any setting too (glibc 2.36): glibc itself soon keeps buffers of up to 32 MiB.
    """
    _malloc_options({M_MMAP_THRESHOLD: LARGE, M_MMAP_MAX: MAPPINGS})


def return_freed_memory() -> None:
    """Return memory that is free to the system now, and from now on large buffers when they are freed."""
    return_large_buffers()
    if not _malloc_options({M_TRIM_THRESHOLD: LARGE}):
        return
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    library.free(library.malloc(LARGE // 2))  # trims the end of this thread's arena, which malloc_trim leaves
    library.malloc_trim(0)


def _addresses_are_counted() -> bool:
    """Whether a limit counts memory that was never written to: `ulimit -v` or `-d`, or strict vm.overcommit_memory."""
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
    # glibc returns 1 on success; other C libraries on Linux have no mallopt, or one without effect.
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in options.items())
