"""What a run stands on beside its config: versions, machine, data; and what of it is not the same elsewhere."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .data.splits import InMemory, Split
from .runtime import environment, git_commit
from .train import Run

# How a difference is told, in this order.
PHRASES = {
    "softmaxce": "softmaxce {}",
    "git_commit": "commit {}",
    "python": "Python {}",
    "torch": "torch {}",
    "torchvision": "torchvision {}",
    "numpy": "NumPy {}",
    "pillow": "Pillow {}",
    "cuda": "CUDA {}",
    "cudnn": "cuDNN {}",
    "platform": "{}",
    "device": "{}",
    "cpu": "{} instructions",
    "threads": "{} threads",
    "precision": "{}",
}


def of_run(run: Run) -> dict[str, Any]:
    """All that run.json says a run stands on."""
    splits = {"train": run.train, "validation": run.validation, "test": run.test}
    data = {name: fingerprint(batches.split) for name, batches in splits.items() if batches is not None}
    return {**of_machine(run.device, run.precision), "git_commit": git_commit(), "data": data}


def of_machine(device: torch.device, precision: str) -> dict[str, Any]:
    """The same without the commit and the data, for a precision that a config asks for."""
    return {**environment(device), "precision": precision}


def fingerprint(split: Split) -> str:
    """A split's images and labels in 16 hexadecimal digits.

    `pixels:` where the split lies decoded in memory; `files:` where it is read from the disk as it is needed, and then
    of the files' names and sizes, not of what is in them.
    """
    digest = hashlib.blake2b(repr((len(split), split.shape)).encode(), digest_size=8)
    digest.update(split.labels.cpu().contiguous().numpy().data)
    if isinstance(split, InMemory):
        digest.update(split.images.cpu().contiguous().numpy().data)
        return f"pixels:{digest.hexdigest()}"
    for file in split.files:
        digest.update(f"{Path(file).parent.name}/{Path(file).name} {_size(file)}\n".encode())
    return f"files:{digest.hexdigest()}"


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError:  # gone since it was listed: another fingerprint, and an error when a batch needs it
        return -1


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run stood on that is not so now: `torch 2.14.1, now 2.15`; what only one of the two says is left out.

    Args:
        before: what of_run gave when it was trained, as run.json holds it.
        now: what of_run or of_machine gives now; its `data` may name some of the splits.
    """
    told = []
    for key, phrase in PHRASES.items():
        old, new = (_shown(key, one.get(key)) for one in (before, now))
        if old is not None and new is not None and old != new:
            text = phrase.format(old)
            told.append(f"{text[:-1] if text == '1 threads' else text}, now {new}")
    recorded = before.get("data")
    for name, new in now.get("data", {}).items():
        old = recorded.get(name) if isinstance(recorded, Mapping) else None
        if isinstance(old, str) and old != new and old.partition(":")[0] == new.partition(":")[0]:
            told.append(f"other {name} images")
    return told


def _shown(key: str, value: Any) -> str | None:
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value)
    if key == "git_commit":
        return text[:10] + "-dirty" * text.endswith("-dirty")
    if key == "device" and text.startswith("cpu"):
        return "cpu"  # its threads are told of their own
    return text
