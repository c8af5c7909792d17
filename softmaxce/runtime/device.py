"""The device, the precision and the number of threads of a run."""

import contextlib
import ctypes
import functools
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, Problem
from .process_group import SINGLE, ProcessGroup, local_world_size
from .processors import processors

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, group: ProcessGroup = SINGLE) -> torch.device:
    """The device that a config or `--device` names; `auto` takes CUDA, then MPS, then the CPU.

    Of several processes each takes another GPU of its machine, as long as there are some.

    Raises: ConfigError if this machine has no such device.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CUDA build of torch warns if there is no driver; the error below says it
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if not group.is_single and device.type != "cpu":
        if device.index is not None or device.type != "cuda":
            message = f"'{name}' is one device, and {group.world_size} processes train; use auto, cuda or cpu"
            raise ConfigError([Problem("device", message)])
        device = torch.device("cuda", group.local_rank % max(1, cuda))
        torch.cuda.set_device(device)
    if device.type == "cuda" and (device.index or 0) >= cuda:
        available = f"{cuda} CUDA device{'s' if cuda != 1 else ''}"
        raise ConfigError([Problem("device", f"'{name}' is not there: torch finds {available}; use auto or cpu")])
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError([Problem("device", "'mps' is not there: torch finds no Apple GPU; use auto or cpu")])
    return device


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision that a config asks for: `auto` is bf16 if the device has instructions for it, else float32.

    Without them bf16 is slower than float32, on a CPU and on a GPU.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bf16" if device.type == "cpu" and cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context manager in which a forward pass runs in `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets of this machine's CPU, by Linux's names; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux, so no flags are known
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def share_processors() -> None:
    """Use no more threads than this process has CPUs and than OpenMP will start.

    torch counts the CPUs of the affinity mask, but not a container's CPU quota. $OMP_NUM_THREADS has precedence.

    PyTorch's convolutions (oneDNN) rely on getting as many threads as torch.get_num_threads() says. With
    $OMP_THREAD_LIMIT or $OMP_DYNAMIC OpenMP may start fewer, and a convolution then waits for ever for the others, or
    leaves their part of the result unwritten.
    """
    limits = [torch.get_num_threads()]
    if "OMP_NUM_THREADS" not in os.environ:
        limits.append(max(1, processors() // local_world_size()))
    openmp = ctypes.CDLL(getattr(torch._C, "__file__", None))  # finds the symbols of the OpenMP that torch has loaded
    with contextlib.suppress(AttributeError):  # this torch uses no OpenMP
        openmp.omp_set_dynamic(0)  # of the calling thread
        limits.append(openmp.omp_get_thread_limit())
    if min(limits) < limits[0]:
        torch.set_num_threads(min(limits))
    _one_thread_after_fork()


@functools.cache
def _one_thread_after_fork() -> None:
    """A forked child of this process uses one thread: it has none of its parent's, for which GNU's OpenMP waits."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
