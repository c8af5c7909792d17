"""Keep freed memory in the process while benchmarking, so that page faults favor no candidate.

Fresh pages can cost more than the arithmetic on them. A loss with three buffers would pay for them three times, and one
that runs after a candidate whose memory is still mapped would not pay at all.
"""

import torch

from ..runtime.allocator import keep_freed_memory

RESERVE = 2**30  # bytes


def never_trim() -> str:
    """Keep freed memory in this process from now on, if the C library is glibc.

    Returns: a note for the output.
    """
    if keep_freed_memory():
        return "freed memory stays in the process (mallopt), so page faults favor no candidate"
    return "the C library's allocator as it is: page faults may favor candidates that allocate less"


def reserve(size: int) -> None:
    """Map up to `size` bytes (at most a gigabyte) in one piece and free them, for all candidates to reuse.

    Otherwise the first candidate would still get fresh pages: because of alignment a freed buffer is a bit too small
    for the next one of its size.
    """
    torch.ones(min(size, RESERVE), dtype=torch.uint8)
