"""Provenance: the versions, machine and images of a run, and how they differ from those there are now."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from .. import streams
from ..build import FEWER_IMAGES, SourceReader
from ..config.components import takes
from ..config.keys import Config
from ..config.signatures import NotStatic, source_file
from ..config.users_code import users_code
from ..data.fingerprint import count_in, fingerprint, fingerprints
from ..data.held_out import hold_out
from ..data.splits import Split
from ..errors import RunError, is_users, within_memory
from ..runtime.environment import environment, git_commit, softmaxce_commit
from ..training.run import Run
from .folder import SPLITS
from .resume import Images, changed_splits, recorded_images, recorded_root, unknown_splits

# How a difference is described, in this order.
PHRASES = {
    "softmaxce": "softmaxce {}",
    "softmaxce_commit": "softmaxce at commit {}",
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
    "processes": "{} processes",
    "precision": "{}",
}


def of_run(run: Run) -> dict[str, Any]:
    """The `environment` of run.json.

    `data` has the fingerprints of the splits that the run trains and evaluates on; `data_set` those of the data set
    before validation images were held out, which runs with different seeds have in common.
    """
    splits = {name: getattr(run, name) for name in SPLITS}
    data = {name: fingerprint(batches.split) for name, batches in splits.items() if batches is not None}
    data_set = {**data, "train": run.all_train_images or data["train"]}
    if run.config.data.validation is not None:
        del data_set["validation"]
    commits = {"softmaxce_commit": softmaxce_commit(), "git_commit": git_commit(Path.cwd())}
    root = {"data_root": str(run.config.root.resolve())} if takes(run.config.source, "root") else {}
    code = {"code": of_code(run.config)}
    machine = {**of_machine(run.device, run.precision), "processes": run.group.world_size}
    return {**machine, **commits, **code, **root, "data": data, "data_set": data_set}


def of_code(config: Config) -> dict[str, str]:
    """The SHA-256 of each file with code of the user's that a config names, by its name in the config.

    What these files import themselves is not part of it, nor are installed packages, which have versions.
    """
    digests = {}
    for name in users_code(config):
        module = name.rpartition(":")[0]
        try:
            file = source_file(module)
            if is_users(str(file)):
                digests[module] = hashlib.sha256(file.read_bytes()).hexdigest()
        except (ValueError, NotStatic, OSError):  # an extension module, for example, has no source
            continue
    return digests


def of_machine(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions, machine, device and precision, without commits and data."""
    return {**environment(device), "precision": precision}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The entries that differ, such as `torch 2.14.1, now 2.15`. An entry that only one of the two has is ignored.

    Args:
        before: of_run when the run was trained, as in run.json.
        now: the same now, as far as it is known.
    """
    changes = []
    for key in differing_entries(before, now):
        if key in PHRASES:
            text = PHRASES[key].format(_shown(key, before[key]))
            text = {"1 threads": "1 thread", "1 processes": "1 process"}.get(text, text)
            changes.append(f"{text}, now {_shown(key, now[key])}")
        else:
            changes.append(f"another {key}")
    return changes


def differing_entries(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the entries that `differences` describes."""
    shown = {key: [_shown(key, one.get(key)) for one in (before, now)] for key in PHRASES}
    names = [key for key, (old, new) in shown.items() if old is not None and new is not None and old != new]
    code = before.get("code"), now.get("code")
    if isinstance(code[0], dict) and isinstance(code[1], dict):
        names += [name for name in code[0] if name in code[1] and code[0][name] != code[1][name]]
    return names


def _shown(key: str, value: Any) -> str | None:
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value)
    if key in ("git_commit", "softmaxce_commit"):
        return text[:10] + "-dirty" * text.endswith("-dirty")
    if key == "device" and text.startswith("cpu"):
        return "cpu"  # the number of threads is an entry of its own
    return text


# -- images -----------------------------------------------------------------------------------------------------------


class ImagesNow:
    """Reads the images that configs name, as they are now. Caches the data set that was read last."""

    def __init__(self) -> None:
        self._read = SourceReader()

    def __call__(self, config: Config) -> Images:
        """A config's images. Raises: DataError, ConfigError as build_run."""
        with within_memory("reading the data set", FEWER_IMAGES):
            used = hold_out(self._read(config), config)
        return Images(used.classes, fingerprints(used))


def check_classes(folder: Path, trained: Sequence[str], current: Sequence[str]) -> None:
    """Refuse to resume a run on data with other class names. Raises: RunError."""
    for old, new in zip_longest(trained, current):
        if old != new:
            raise RunError(
                f"{folder}: the data has other classes than this run was trained on: {new!r} instead of {old!r}"
            )


def check_images(
    run: Path, record: Mapping[str, Any], now: Mapping[str, str], *, allow_changed_data: bool
) -> list[str]:
    """Refuse to resume a run on other images than it was trained with.

    Args:
        run: its folder.
        record: its run.json.
        now: the fingerprints of all its splits as they are now.
        allow_changed_data: return a warning instead.
    Returns: warnings, also where it is not known whether the images are the same.
    Raises: RunError, with the splits that differ.
    """
    before = recorded_images(record)
    if not before:
        return [_unknown(run, list(now), "run.json holds no fingerprints of them")]
    return _compare(run, before, now, allow_changed_data)


def check_recorded_root(run: Path, config: Config, record: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """Refuse data that was read from the folder that run.json names, unless it is known to be that of the training.

    Args:
        run: its folder.
        config: as resume.at_recorded_root returned it.
        record: its run.json.
        now: the fingerprints of all splits.
    Returns: a message that says which folder was read; empty if it is another one than run.json names.
    Raises: RunError.
    """
    root, before = config.root, recorded_images(record)
    if root == config.roots[0] or root != recorded_root(record):
        return ""
    missing = f"{run}: its data is not in {config.roots[0].absolute()}"
    if not before or changed_splits(before, now) or unknown_splits(before, now):
        raise RunError(
            f"{missing}, and the images in {root}, which run.json names, are not known to be those of the training; "
            "name the folder with --data, or to resume the run with --set data.root=FOLDER"
        )
    return f"{missing}; the same images are read from {root}"


def check_split(run: Path, name: str, split: Split, record: Mapping[str, Any], *, allow_changed_data: bool) -> str:
    """Refuse to evaluate a run on a split whose images have changed; warn on stderr where that is not known.

    Args:
        run: its folder, or a checkpoint without run.json, or an exported model.
        name: the split's name.
        split: its images as they are now.
        record: its run.json, or the part of it that an exported model has; empty without one.
        allow_changed_data: warn instead.
    Returns: the split's fingerprint.
    Raises: RunError, with the split.
    """
    now = fingerprint(split)
    before = recorded_images(record)
    if before:
        recorded, current = {key: text for key, text in before.items() if key == name}, {name: now}
        warnings = _compare(run, recorded, current, allow_changed_data)
    elif record:
        warnings = [_unknown(run, [name], "run.json holds no fingerprints of them")]
    else:
        warnings = [_unknown(run, [name], "there is no run.json beside it")]
    for warning in warnings:
        streams.warning(warning)
    return now


def _compare(run: Path, before: Mapping[str, str], now: Mapping[str, str], allow_changed_data: bool) -> list[str]:
    warnings = []
    changed, unknown = changed_splits(before, now), unknown_splits(before, now)
    if changed:
        counts = [text for name in changed if (text := _counts(name, before, now, label=len(changed) > 1))]
        message = f"{run}: the {' and '.join(changed)} images are not those of the run"
        message += f" ({'; '.join(counts)})" if counts else ""
        if not allow_changed_data:
            raise RunError(f"{message}; restore them, or add --allow-changed-data to use the current images")
        warnings.append(message)
    if unknown:
        warnings.append(_unknown(run, unknown, "only one of the two reads them from disk, the other from memory"))
    return warnings


def _counts(name: str, before: Mapping[str, str], now: Mapping[str, str], *, label: bool) -> str:
    """How many images a split had and has, `31 then, 32 now`; empty if an earlier version did not record it."""
    then, current = (count_in(texts[name]) if name in texts else 0 for texts in (before, now))
    if then is None or current is None:
        return ""
    text = f"{then:,} then, {current:,} now" if then != current else f"{then:,} then and now, but others"
    return f"{name}: {text}" if label else text


def _unknown(run: Path, splits: list[str], why: str) -> str:
    return f"{run}: whether the {' and '.join(splits)} images are those of the training is not known: {why}"
