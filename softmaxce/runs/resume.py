"""What makes two runs the same run: the config keys that count, and the images. Needs no torch.

`train --resume`, `--seeds`, `sweep` and `compare` all decide by this: what a resumed run may change, which run is
finished already, which runs differ by their seed alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import reader as configs
from ..config.components import takes
from ..config.keys import Config
from ..errors import RunError, SoftmaxceError
from .folder import read_record
from .listing import differing

FINISHED = ("completed", "stopped_early")  # the statuses of a run that came to its end
SPLITS = ("train", "validation", "test")


# -- the config's keys ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What a config key is to a run that exists.

    Attributes:
        may_change: a resumed run may have another value.
        changes_metrics: runs with different values differ in their metrics.
    """

    may_change: bool
    changes_metrics: bool


FIXED = Rule(may_change=False, changes_metrics=True)
LATER = Rule(may_change=True, changes_metrics=True)  # how the epochs to come are trained
FREE = Rule(may_change=True, changes_metrics=False)  # how and from where, not what is computed

# Every key of a config. A section's name stands for all arguments in it that are not listed.
RULES = {
    "seed": FIXED,
    "device": FREE,
    "precision": FIXED,
    "deterministic": FIXED,
    "compile": FIXED,
    "cuda_graph": FREE,
    "keep_memory": FREE,
    "epochs": LATER,
    "data": FIXED,
    "data.name": FIXED,
    "data.root": FREE,  # the fingerprint of the images decides, not the folder's name
    "data.download": FREE,
    "data.batch_size": FIXED,
    "data.eval_batch_size": FREE,
    "data.augment": FIXED,
    "data.normalize": FIXED,
    "data.validation": FIXED,
    "data.train_limit": FIXED,
    "model": FIXED,
    "loss": FIXED,
    "optimizer": FIXED,
    "schedule": FIXED,
    "clip_grad_norm": FIXED,
    "grad_accum_steps": FIXED,
    "mixup_alpha": FIXED,
    "cutmix_alpha": FIXED,
    "model_ema_decay": FIXED,
    "model_ema_steps": FIXED,
    "tta": FIXED,
    "early_stopping": FIXED,
    "best_metric": FIXED,
    "checkpoint_every": FREE,
    "on_nonfinite": LATER,
    "max_nonfinite": LATER,
}
# Arguments of our own data sets that decide how images are read, not which.
DATA_SET_RULES = {"image_folder": {"data.workers": FREE, "data.cache": FREE, "data.in_memory": FREE}}


def rule_of(key: str, data_set: str = "") -> Rule:
    """The rule of a dotted key, of a config with this data.name."""
    section = key.partition(".")[0]
    return DATA_SET_RULES.get(data_set, {}).get(key) or RULES.get(key) or RULES.get(section, FIXED)


def differing_metrics(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys in which the configs differ and that change metrics."""
    name = str(configs[0].get("data", {}).get("name", ""))
    return [key for key in differing([dict(one) for one in configs]) if rule_of(key, name).changes_metrics]


def check_resumable(folder: Path, requested: Config) -> Config:
    """The config to resume a run with: its own, changed only where a resumed run may be. Raises: RunError."""
    recorded = configs.load(str(folder / "config.yaml"))
    values = differing([recorded.to_dict(), requested.to_dict()])
    fixed = [key for key in values if not rule_of(key, recorded.source.name).may_change]
    if fixed:
        told = [f"{key} was {values[key][0]!r} and is now {values[key][1]!r}" for key in fixed[:5]]
        raise RunError(f"{folder}: a resumed run keeps its config, but {'; '.join(told)}. Start a new run for that")
    return requested


# -- the images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """The images that a config names: their class names, and a fingerprint of each split as the run uses it."""

    classes: tuple[str, ...]
    fingerprints: Mapping[str, str]


def recorded_images(record: Mapping[str, Any], key: str = "data") -> dict[str, str]:
    """The fingerprints in a run.json, by split; empty if it has none (an earlier version's, or damaged).

    Args:
        record: what runfolder.read_record gave.
        key: `data` for the splits that were trained and measured on; `data_set` for those of the data set, before
            validation images were held out.
    """
    environment = record.get("environment")
    found = environment.get(key) if isinstance(environment, dict) else None
    entries = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in entries if name in SPLITS and isinstance(text, str)}


def same_fingerprint(first: str, second: str) -> bool | None:
    """Whether two fingerprints are of the same images; None if they are of two kinds, which cannot be compared.

    One of files that an earlier version recorded has no digits of their contents: names and sizes then decide.
    """
    (kind, *digits), (other_kind, *other_digits) = first.split(":"), second.split(":")
    if kind != other_kind:
        return None
    return all(mine == other for mine, other in zip(digits, other_digits, strict=False))


def changed_splits(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The splits whose images are known to differ, or that only one of the two has."""
    return [
        name
        for name in SPLITS
        if (name in recorded) != (name in now)
        or (name in recorded and same_fingerprint(recorded[name], now[name]) is False)
    ]


def unknown_splits(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The splits that both have, with fingerprints of two kinds."""
    both = [name for name in SPLITS if name in recorded and name in now]
    return [name for name in both if same_fingerprint(recorded[name], now[name]) is None]


# -- runs -------------------------------------------------------------------------------------------------------------


def is_finished(record: Mapping[str, Any]) -> bool:
    """Whether a run came to its end, by its run.json."""
    return record.get("status") in FINISHED


def find_run(
    config: Config, parent: Path, images: Callable[[Config], Images], *, allow_changed_data: bool = False
) -> tuple[Path | None, list[str]]:
    """The run folder in `parent` that is this config's run: the keys that change metrics are equal, and the images.

    A finished one before an unfinished one, and of these the newest.

    Args:
        config: what is to be trained.
        parent: a folder of run folders.
        images: reads a config's images; called only if a run has this config.
        allow_changed_data: take a run on other images where there is none on these.
    Returns: the folder, None if there is none; and what a user should know, a line each.
    """
    plain = config.to_dict()
    runs = []
    for file in sorted(parent.glob("*/config.yaml")):
        try:
            recorded, record = configs.load(str(file)), read_record(file.parent)
        except SoftmaxceError:  # another version's, or code that is gone: not this run, whatever it is
            continue
        if not differing_metrics([plain, recorded.to_dict()]):
            runs.append(
                (is_finished(record), (file.parent / "run.json").stat().st_mtime, file.parent, recorded, record)
            )
    runs.sort(key=lambda run: run[:2], reverse=True)
    if not runs:
        return None, []
    now = images(config)
    notes: list[str] = []
    for _, _, folder, recorded, record in runs:
        before = recorded_images(record)
        unknown = not before or bool(unknown_splits(before, now.fingerprints))
        if why := _why_other_images(record, before, now, config):
            notes.append(f"{folder}: has this config, but {why}; it is not resumed")
        elif unknown and not _same_root(recorded, config):
            notes.append(f"{folder}: has this config, but whether its images are these is not known; it is not resumed")
        else:
            if unknown:
                notes.append(
                    f"warning: {folder}: whether its images are these is not known; they are taken to be, because the "
                    f"folder is the same: {config.root}"
                )
            return folder, notes
    return (runs[0][2], []) if allow_changed_data else (None, notes)


def _why_other_images(record: Mapping[str, Any], before: Mapping[str, str], now: Images, config: Config) -> str:
    """How the images of a run are known to differ from those there are now; empty if they are not."""
    if record.get("classes", list(now.classes)) != list(now.classes):
        return "its classes have other names"
    if before and (changed := changed_splits(before, now.fingerprints)):
        return f"its {' and '.join(changed)} images are others than those in {config.root}"
    return ""


@dataclass(frozen=True)
class TrainedRun:
    """A run as `differ_by_seed_alone` compares it: its config, and its run.json."""

    config: Config
    record: Mapping[str, Any]


def differ_by_seed_alone(first: TrainedRun, second: TrainedRun) -> bool:
    """Whether two runs have the same config but for the seed, and were trained on the same data set.

    Where the seed decides the images too, they are the same data set if they came from the same folder.
    """
    keys = differing_metrics([first.config.to_dict(), second.config.to_dict()])
    return set(keys) <= {"seed"} and same_data_set(first, second)


def same_data_set(first: TrainedRun, second: TrainedRun) -> bool:
    """Whether two runs with equal `data` keys were trained on the same data set, as their run.json says.

    What is not recorded, or cannot be compared, is taken to be the same if it came from the same folder.
    """
    if first.config.seed != second.config.seed and takes(first.config.source, "seed"):
        return _same_root(first.config, second.config)
    before, after = (_data_set(run) for run in (first, second))
    both = before.keys() & after.keys()
    answers = {same_fingerprint(before[name], after[name]) for name in both}
    if False in answers:
        return False
    known = bool(both) and None not in answers and "train" in both and before.keys() == after.keys()
    return known or _same_root(first.config, second.config)


def _data_set(run: TrainedRun) -> dict[str, str]:
    """The data set's fingerprints; of an earlier version's record, those that do not depend on the seed."""
    if found := recorded_images(run.record, "data_set"):
        return found
    data = run.config.data
    found = recorded_images(run.record)
    by_seed = set()
    if data.train_limit is not None:
        by_seed = {"train"}
    if data.validation is not None:
        by_seed = {"train", "validation"}
    return {name: text for name, text in found.items() if name not in by_seed}


def _same_root(first: Config, second: Config) -> bool:
    return first.root.resolve() == second.root.resolve()
