"""An allocator that treats every contestant alike: what has been freed stays in the process.

A loss with three buffers would pay for fresh pages thrice, which can be more than the arithmetic on them, and whoever
comes after one that left memory behind would pay nothing: the figures would be the allocator's.
"""

import torch

from ..runtime.allocator import keep_freed_memory

RESERVE = 2**30  # bytes


def never_trim() -> str:
    """From now on this process keeps the memory it frees, where the C library can be told so.

    Returns: what holds now, for the output.
    """
    if keep_freed_memory():
        return "freed memory stays in the process (mallopt), so page faults favour nobody"
    return "the C library's allocator as it is: page faults may favour those who allocate less"


def reserve(size: int) -> None:
    """Take so many bytes from the kernel in one piece (a gigabyte at most) and free them, for all to share.

    Without it, whoever comes first still meets fresh pages: a freed buffer is a little too small for the next one of
    its size, because of the alignment.
    """
    torch.ones(min(size, RESERVE), dtype=torch.uint8)
