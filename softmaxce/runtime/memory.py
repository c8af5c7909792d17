"""The memory that this process may use. Needs no torch."""

import contextlib
import os
from pathlib import Path

from .cgroup import cgroup_folders

LIMITS = "memory.max", "memory.high", "memory.limit_in_bytes"  # two of cgroup v2, one of v1


def total_memory(root: Path = Path("/")) -> int | None:
    """Bytes of this machine's memory, or that its cgroup allows, if that is less; None where the system does not say.

    Args:
        root: the folder that holds proc/ and sys/.
    """
    limits = []
    with contextlib.suppress(AttributeError, ValueError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for folder in cgroup_folders("memory", root):
        for name in LIMITS:
            with contextlib.suppress(OSError, ValueError):  # no such limit, or `max`
                limits.append(int((folder / name).read_text()))
    return min(limits, default=None)
