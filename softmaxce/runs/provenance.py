"""What a run stands on beside its config: versions, machine, data; and what of it is not the same elsewhere."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..build import FEWER_IMAGES, hold_out, load_source
from ..config.components import takes
from ..config.keys import Config
from ..data.fingerprint import fingerprint, fingerprints
from ..data.splits import Dataset, Split
from ..errors import RunError, within_memory
from ..runtime.environment import environment, git_commit
from ..training.run import Run
from .folder import read_record
from .resume import Images, changed_splits, recorded_images, unknown_splits

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
    """All that run.json says a run stands on.

    Among it `data`, the fingerprints of the splits trained and measured on, and `data_set`, those of the data set
    before the seed held images out: runs under several seeds have that in common.
    """
    splits = {"train": run.train, "validation": run.validation, "test": run.test}
    data = {name: fingerprint(batches.split) for name, batches in splits.items() if batches is not None}
    data_set = {**data, "train": run.all_train_images or data["train"]}
    if run.config.data.validation is not None:
        del data_set["validation"]
    return {**of_machine(run.device, run.precision), "git_commit": git_commit(), "data": data, "data_set": data_set}


def of_machine(device: torch.device, precision: str) -> dict[str, Any]:
    """The same without the commit and the data, for a precision that a config asks for."""
    return {**environment(device), "precision": precision}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run stood on that is not so now: `torch 2.14.1, now 2.15`; what only one of the two says is left out.

    Args:
        before: what of_run gave when it was trained, as run.json holds it.
        now: what of_run or of_machine gives now.
    """
    told = []
    for key, phrase in PHRASES.items():
        old, new = (_shown(key, one.get(key)) for one in (before, now))
        if old is not None and new is not None and old != new:
            text = phrase.format(old)
            told.append(f"{text[:-1] if text == '1 threads' else text}, now {new}")
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


# -- images -----------------------------------------------------------------------------------------------------------


class ImagesNow:
    """Reads the images that configs name, as they are now; the data set read last serves the next that names it."""

    def __init__(self) -> None:
        self._key: Any = None
        self._source: Dataset | None = None

    def __call__(self, config: Config) -> Images:
        """A config's images. Raises: DataError, ConfigError as build_run."""
        seed = config.seed if takes(config.source, "seed") else None
        key = (config.source, config.root, seed)
        with within_memory("reading the data set", FEWER_IMAGES):
            if self._source is None or self._key != key:
                self._key, self._source = key, load_source(config)
            used = hold_out(self._source, config)
        return Images(used.classes, fingerprints(used))


def check_images(run: Path, record: Mapping[str, Any], now: Mapping[str, str], *, allow_changed_data: bool) -> None:
    """Refuse to go on with a run on other images than it was trained with; warn on stderr where that is not known.

    Args:
        run: its folder.
        record: its run.json.
        now: the fingerprints of all its splits as they are now.
        allow_changed_data: the user insists; what differs is then a warning.
    Raises: RunError, with the splits that differ and the option that insists.
    """
    before = recorded_images(record)
    if before:
        _answer(run, changed_splits(before, now), unknown_splits(before, now), allow_changed_data=allow_changed_data)
    else:
        _warn(run, list(now), "run.json holds no fingerprints of them")


def check_split(file: Path, name: str, split: Split, *, allow_changed_data: bool) -> str:
    """Refuse to measure a run on another split than its own; warn on stderr where that is not known.

    Args:
        file: the run's checkpoint; run.json lies beside it.
        name: of the split.
        split: its images as they are now.
        allow_changed_data: the user insists; what differs is then a warning.
    Returns: the split's fingerprint.
    Raises: RunError, with the split and the option that insists.
    """
    now = fingerprint(split)
    record = read_record(file.parent) if (file.parent / "run.json").is_file() else None
    before = recorded_images(record or {})
    if not before:
        why = "run.json holds no fingerprints of them" if record is not None else "there is no run.json beside it"
        _warn(file.parent if record is not None else file, [name], why)
        return now
    own, current = {key: text for key, text in before.items() if key == name}, {name: now}
    changed, unknown = changed_splits(own, current), unknown_splits(own, current)
    _answer(file.parent, changed, unknown, allow_changed_data=allow_changed_data)
    return now


def _answer(run: Path, changed: list[str], unknown: list[str], *, allow_changed_data: bool) -> None:
    if changed:
        message = f"{run}: the {' and '.join(changed)} images are not those that this run was trained with"
        if not allow_changed_data:
            raise RunError(f"{message}; put those back, or add --allow-changed-data to use the ones there are now")
        print(f"warning: {message}", file=sys.stderr)
    if unknown:
        _warn(run, unknown, "they were decoded in memory then and are read from disk now, or the other way round")


def _warn(run: Path, splits: list[str], why: str) -> None:
    names = " and ".join(splits)
    print(f"warning: {run}: whether the {names} images are those of the training is not known: {why}", file=sys.stderr)
