"""What a run stands on: the device, the precision, the random numbers, and what machine and versions these are."""

import contextlib
import ctypes
import functools
import os
import platform
import random
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, Problem
from .processors import processors

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def choose_device(name: str) -> torch.device:
    """The device that a config or `--device` names; `auto` takes CUDA, then MPS, then the CPU.

    Raises: ConfigError if this machine has no such device.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CUDA build of torch warns where there is no driver; the answer says it
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= cuda:
        found = f"{cuda} CUDA device{'s' if cuda != 1 else ''}"
        raise ConfigError([Problem("device", f"'{name}' is not there: torch finds {found}; use auto or cpu")])
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError([Problem("device", "'mps' is not there: torch finds no Apple GPU; use auto or cpu")])
    return device


def choose_precision(asked: str, device: torch.device) -> str:
    """What a config's `precision` comes to on a device: `auto` is bf16 where that has instructions for it.

    Without them bf16 is slower than float32, on a CPU and on a GPU.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return "bf16" if device.type == "cpu" and cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a forward pass runs in `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets of this machine's processors, by Linux's names for them; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # a system that does not tell them; none are known
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def keep_freed_memory() -> bool:
    """From now on this process keeps the memory that it frees; whether the C library could be told so.

    glibc takes large buffers from the kernel and gives them back when they are freed, and the next batch pays for fresh
    pages, some 0.25 us for each 4 KB. What is kept serves the next batch; the process does not shrink until it ends.

    Not where memory has a limit that is counted in addresses: what is kept comes to lie in pieces, each a little too
    small for the next batch, and counts.
    """
    return not _addresses_are_counted() and _malloc_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def _addresses_are_counted() -> bool:
    """Whether memory can run out that nobody has written to: `ulimit -v` or `-d`, or a strict vm.overcommit_memory."""
    if sys.platform == "win32":
        return False
    import resource

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    strict = Path("/proc/sys/vm/overcommit_memory")
    return any(limit != resource.RLIM_INFINITY for limit in limits) or (strict.exists() and strict.read_text() == "2\n")


def _malloc_options(options: dict[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    # Glibc says 1 where it obeys; other C libraries on Linux have no mallopt, or one that does nothing.
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in options.items())


def share_processors() -> None:
    """Use no more threads than the processors that this process may use: more would wait for each other.

    torch counts those it may run on, but not the share of their time that a container is given. $OMP_NUM_THREADS, where
    it is set, is the user's word.
    """
    if "OMP_NUM_THREADS" not in os.environ and (given := processors()) < torch.get_num_threads():
        torch.set_num_threads(given)


def seed_everything(seed: int) -> None:
    """Seed torch (every device), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def set_deterministic(on: bool) -> None:
    """Have torch use only algorithms that give the same bits each time, and raise where there is none; or not any more.

    On CUDA it has to come before the first matrix product: cuBLAS reads its workspace's size once.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # to say so imports torch's compiler, a second
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, Any]:
    """The state of every global random-number generator, as tensors, numbers and lists."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def check_random_state(state: dict[str, Any]) -> None:
    """Try a state on generators that nobody uses. Raises: ValueError, TypeError, RuntimeError or OverflowError."""
    version, words, gauss = state["python"]
    random.Random().setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.RandomState().set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    if not 0 <= position <= len(keys):  # NumPy takes any, and reads beyond the keys
        raise ValueError(f"position {position} of {len(keys)} keys")
    torch.Generator().set_state(state["torch"])


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo what was drawn since `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def describe_device(device: torch.device) -> str:
    """The device in words, as a person knows it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on beside the config: versions, machine, device."""
    return {
        "softmaxce": version("softmaxce"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own kind of string, which YAML cannot dump
        "torchvision": version("torchvision"),
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "platform": platform.platform(),
        "device": describe_device(device),
        "cpu": torch.backends.cpu.get_cpu_capability(),  # by the instructions that torch's kernels use
        "threads": torch.get_num_threads(),
    }


def git_commit() -> str | None:
    """The commit of the folder one stands in, `-dirty` if files differ from it; None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, cwd=Path.cwd(), capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no commit is known
        return None
    return done.stdout.strip()
