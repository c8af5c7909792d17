"""An allocator that treats every contestant alike: what has been freed stays in the process.

glibc takes large buffers from the kernel and gives them back when they are freed. Whoever asks next pays for fresh
pages, some 0.25 us for each 4 KB, which can be more than the arithmetic on them. A loss with three buffers pays thrice,
and whoever comes after one that left memory behind pays nothing: the figures would be the allocator's.
"""

import ctypes
import sys

import torch

RESERVE = 2**30  # bytes
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def never_trim() -> str:
    """From now on this process keeps the memory it frees, where the C library can be told so.

    Returns: what holds now, for the output.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        # Glibc says 1 where it obeys; other C libraries on Linux have no mallopt, or one that does nothing.
        if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt"):
            large = 2**31 - 1
            if library.mallopt(M_MMAP_MAX, 0) == 1 and library.mallopt(M_TRIM_THRESHOLD, large) == 1:
                return "freed memory stays in the process (mallopt), so page faults favour nobody"
    return "the C library's allocator as it is: page faults may favour those who allocate less"


def reserve(size: int) -> None:
    """Take so many bytes from the kernel in one piece (a gigabyte at most) and free them, for all to share.

    Without it, whoever comes first still meets fresh pages: a freed buffer is a little too small for the next one of
    its size, because of the alignment.
    """
    torch.ones(min(size, RESERVE), dtype=torch.uint8)
