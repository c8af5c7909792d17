"""How much fits into memory when more did not: found by trying half, a quarter, and so on."""

from collections.abc import Callable

from ..errors import MemoryRanOutError, ran_out_of_memory, within_memory


def half_that_fits(size: int, attempt: Callable[[int], None]) -> int | None:
    """The first of size/2, size/4, ... 1 with which `attempt` stays within memory; None if there is none.

    No attempt asks for more than what has failed already, and there are log2(size) of them at most.

    Args:
        size: what did not fit, a batch size.
        attempt: does the same with fewer; it may call the user's own model and loss.
    """
    while (size := size // 2) >= 1:
        try:
            with within_memory("trying"):
                attempt(size)
        except MemoryRanOutError:  # the answer to the attempt; half of it comes next
            continue
        except Exception as error:  # the user's model or loss, on a batch tried; that memory ran out is told
            if ran_out_of_memory(error):
                raise
            return None  # it takes no batch as small as this; what the caller tells is that memory ran out
        return size
    return None
