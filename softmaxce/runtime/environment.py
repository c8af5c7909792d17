"""The machine, the library versions and the git commit, for a run's record."""

import functools
import os
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
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads != 1 else ''})" if device.type == "cpu" else str(device)


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
    """The output of a git command in a folder, run without the programs that the repository's own settings name.

    A .git folder that came with someone's files may name a file-system monitor, hooks, filters, and a remote to fetch
    missing objects from, all of which are commands.
    """
    settings = ["-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"]
    own = _output(folder, "config", "--show-scope", "--name-only", "--get-regexp", r"^(filter|hook)\.") or ""
    for line in own.splitlines():
        scope, _, name = line.partition("\t")
        if scope in ("local", "worktree"):  # the user's own filters, of Git LFS for example, are in "global"
            settings += ["-c", f"{name}="]
    return _output(folder, *settings, *arguments)


def _output(folder: Path, *arguments: str) -> str | None:
    environment = os.environ | {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):  # no git, or no repository: no commit is known
        return None
    return done.stdout.strip()
