"""Peak memory of a call, beyond what was allocated before it, and of the process."""

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The peak size of all tensors allocated during the call, in bytes.

    On the CPU this is computed from PyTorch's profiler; buffers that other libraries allocate are not included.
    """
    gc.collect()  # garbage that is collected during the call would be taken off its peak
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # some builds print every start and stop to stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def peak_resident() -> int | None:
    """The peak resident memory of this process in bytes, libraries included; None where it is not known.

    Only Linux reports it; getrusage would include the parent's memory at the time of the fork.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else None
