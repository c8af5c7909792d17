"""The number of CPUs that this process may use. Needs no torch."""

import contextlib
import math
import os
from pathlib import Path

from .cgroup import cgroup_folders


def processors(root: Path = Path("/")) -> int:
    """The number of CPUs this process may use: its affinity mask, or its cgroup's CPU quota, rounded up, if smaller.

    Args:
        root: the folder that holds proc/ and sys/.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in cgroup_folders("cpu", root) if (quota := _quota(folder)) is not None]
    return max(1, min([count, *map(math.ceil, quotas)]))


def _quota(folder: Path) -> float | None:
    """The CPUs that a cgroup allows; None if it does not limit them."""
    with contextlib.suppress(OSError, ValueError):  # not of version 2
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # not of version 1
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    return None
