"""The machine, the library versions and the git commit, for a run's record."""

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .version import softmaxce_version


def describe_device(device: torch.device) -> str:
    """The device for messages, with the GPU's name or the number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on besides the config: versions, machine, device."""
    return {
        "softmaxce": softmaxce_version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which YAML cannot dump
        "torchvision": version("torchvision"),
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "platform": platform.platform(),
        "device": describe_device(device),
        "cpu": torch.backends.cpu.get_cpu_capability(),  # the instruction set that torch's kernels use
        "threads": torch.get_num_threads(),
    }


def git_commit(folder: Path) -> str | None:
    """The commit of a folder's repository, `-dirty` if files differ from it; None outside a repository."""
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


@functools.cache
def softmaxce_commit() -> str | None:
    """The commit of the checkout that softmaxce is imported from; None if it is installed otherwise.

    An environment inside the user's repository is not a checkout of softmaxce: git does not track the files in it.
    """
    package = Path(__file__).parents[1]
    tracked = _git(package, "ls-files", "--error-unmatch", "--", "errors.py")
    return git_commit(package) if tracked else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or no repository: no commit is known
        return None
    return done.stdout.strip()
