"""The number of CPUs that this process may use. Needs no torch."""

import contextlib
import math
import os
from pathlib import Path


def processors(root: Path = Path("/")) -> int:
    """The number of CPUs this process may use: its affinity mask, or its cgroup's CPU quota, rounded up, if smaller.

    Args:
        root: the folder that holds proc/ and sys/.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in (_quota(root), _quota_v1(root)) if quota is not None]
    return max(1, min([count, *(math.ceil(quota) for quota in quotas)]))


def _quota(root: Path) -> float | None:
    """The CPUs that a cgroup v2, or one of its ancestors, allows."""
    try:
        (line,) = [text for text in (root / "proc/self/cgroup").read_text().split() if text.startswith("0::")]
    except (OSError, ValueError):  # no cgroup v2, so no quota
        return None
    folder = root / "sys/fs/cgroup" / line.removeprefix("0::").lstrip("/")
    quotas = []
    for level in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # no cgroup v2, so no quota
            quota, period = (level / "cpu.max").read_text().split()
            quotas += [] if quota == "max" else [int(quota) / int(period)]
    return min(quotas, default=None)


def _quota_v1(root: Path) -> float | None:
    """The CPUs that a cgroup v1 allows."""
    folder = root / "sys/fs/cgroup/cpu"
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):  # no cgroup v1, so no quota
        return None
    return quota / period if quota > 0 else None
