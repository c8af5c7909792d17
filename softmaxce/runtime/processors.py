"""How many processors there are for this process. Needs no torch."""

import contextlib
import math
import os
from pathlib import Path


def processors(root: Path = Path("/")) -> int:
    """How many processors this process may keep busy: by its affinity, and by its cgroup's share of time, rounded up.

    Args:
        root: where proc/ and sys/ are.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [share for share in (_share(root), _share_v1(root)) if share is not None]
    return max(1, min([count, *(math.ceil(share) for share in shares)]))


def _share(root: Path) -> float | None:
    """The processors' worth of time that a cgroup v2, or one above it, allows."""
    try:
        (line,) = [text for text in (root / "proc/self/cgroup").read_text().split() if text.startswith("0::")]
    except (OSError, ValueError):  # no cgroup v2; all processors may be used
        return None
    folder = root / "sys/fs/cgroup" / line.removeprefix("0::").lstrip("/")
    shares = []
    for level in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # no cgroup v2; all processors may be used
            quota, period = (level / "cpu.max").read_text().split()
            shares += [] if quota == "max" else [int(quota) / int(period)]
    return min(shares, default=None)


def _share_v1(root: Path) -> float | None:
    """The same by cgroup v1."""
    folder = root / "sys/fs/cgroup/cpu"
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):  # no cgroup v1; all processors may be used
        return None
    return quota / period if quota > 0 else None
