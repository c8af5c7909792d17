"""Whether two runs are the same run, by their config keys and their images. Needs no torch.

`train --resume`, `--seeds`, `sweep` and `compare` use it to decide what a resumed run may change, which run is already
finished, and which runs differ only by their seed.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import reader as configs
from ..config.automatic import AUTO, has_automatic_size
from ..config.components import takes
from ..config.keys import Config
from ..errors import RunError, SoftmaxceError
from .folder import SPLITS, Status, read_record
from .listing import differing

FINISHED = tuple(status for status in Status if status.finished)


# -- the config's keys ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What a different value of a config key means.

    Attributes:
        may_change: a resumed run may have another value.
        changes_metrics: runs with different values differ in their metrics.
    """

    may_change: bool
    changes_metrics: bool


FIXED = Rule(may_change=False, changes_metrics=True)
LATER = Rule(may_change=True, changes_metrics=True)  # affects the epochs still to come
FREE = Rule(may_change=True, changes_metrics=False)  # affects speed, memory or location only

# Every key of a config. A section's rule applies to all arguments in it that are not listed.
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
    "data.folds": FIXED,
    "data.fold": FIXED,
    "data.sampler": FIXED,
    "model": FIXED,
    "loss": FIXED,
    "optimizer": FIXED,
    "schedule": FIXED,
    "fine_tuning": FIXED,
    "no_decay": FIXED,
    "clip_grad_norm": FIXED,
    "grad_accum_steps": FIXED,
    "mixup_alpha": FIXED,
    "cutmix_alpha": FIXED,
    "model_ema_decay": FIXED,
    "model_ema_steps": FIXED,
    "swa": FIXED,
    "distillation": FIXED,
    "progressive_resizing": FIXED,
    "tta": FIXED,
    "sync_batchnorm": FIXED,
    "early_stopping": FIXED,
    "best_metric": FIXED,
    "metrics": FREE,  # what is shown
    "checkpoint_every": FREE,
    "on_nonfinite": LATER,
    "max_nonfinite": LATER,
}
# Arguments of our own data sets that affect how images are read, not which.
READING = {"data.workers": FREE, "data.cache": FREE, "data.in_memory": FREE}
SHARDS = dict.fromkeys(("data.urls", "data.test_urls", "data.validation_urls"), FREE)  # as data.root
DATA_SET_RULES = {
    "image_folder": READING,
    "image_list": {**READING, "data.file": FREE},
    "shards": {**READING, **SHARDS},
}


def rule_of(key: str, data_set: str = "") -> Rule:
    """The rule of a dotted key; `data_set` is the config's data.name."""
    section = key.partition(".")[0]
    return DATA_SET_RULES.get(data_set, {}).get(key) or RULES.get(key) or RULES.get(section, FIXED)


def differing_metrics(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys in which the configs differ and that change metrics."""
    name = str(configs[0].get("data", {}).get("name", ""))
    return [key for key in differing([dict(one) for one in configs]) if rule_of(key, name).changes_metrics]


def with_recorded(
    requested: Config, recorded: Config, keys: Collection[str] = ("data.size", "data.batch_size")
) -> Config:
    """The requested config with a run's values of these keys where it says `auto`.

    What is auto was resolved when the run was started. It is not resolved again, as the answer may be another one on
    another machine, or with another version of timm.
    """
    own, source = recorded.source.arguments, requested.source
    if "data.size" in keys and has_automatic_size(source) and "size" in own:
        arguments = {**source.arguments, "size": own["size"]}
        if "interpolation" in own:
            arguments.setdefault("interpolation", own["interpolation"])
        requested = replace(requested, source=replace(source, arguments=arguments))
    if "data.batch_size" in keys and requested.data.batch_size == AUTO:
        data = replace(requested.data, batch_size=recorded.data.batch_size)
        requested = replace(requested, data=data, cuda_graph=recorded.cuda_graph)
    return requested


def check_resumable(folder: Path, requested: Config) -> Config:
    """The requested config, if the run in `folder` may be resumed with it: see with_recorded. Raises: RunError."""
    recorded = configs.load(str(folder / "config.yaml"))
    requested = with_recorded(requested, recorded)
    if (folder / "run.json").is_file() and "averaged" in read_record(folder):
        raise RunError(f"{folder}: is an average of runs, which cannot be resumed; start a new run from it with --from")
    values = differing([recorded.to_dict(), requested.to_dict()])
    fixed = [key for key in values if not rule_of(key, recorded.source.name).may_change]
    if fixed:
        changes = [f"{key} was {values[key][0]!r} and is now {values[key][1]!r}" for key in fixed[:5]]
        hint = ""
        if "data.split_by" in fixed:  # an older run, whose splits were made by a shuffle
            hint = f", or keep the run's splits with --set data.split_by={values['data.split_by'][0]}"
        message = f"a resumed run keeps its config, but {'; '.join(changes)}. Start a new run for that{hint}"
        raise RunError(f"{folder}: {message}")
    return requested


# -- the images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """The class names of a config's images, and the fingerprint of each split as the run uses it."""

    classes: tuple[str, ...]
    fingerprints: Mapping[str, str]


def recorded_images(record: Mapping[str, Any], key: str = "data") -> dict[str, str]:
    """The fingerprints in a run.json, by split; empty if it has none, because an earlier version wrote it.

    Args:
        record: the run.json, as folder.read_record returns it.
        key: `data` for the splits that the run trained and evaluated on; `data_set` for those of the data set, before
            validation images were held out.
    """
    environment = record.get("environment")
    images = environment.get(key) if isinstance(environment, dict) else None
    entries = images.items() if isinstance(images, dict) else ()
    return {name: text for name, text in entries if name in SPLITS and isinstance(text, str)}


def at_recorded_root(config: Config, record: Mapping[str, Any]) -> Config:
    """The config, with the folder that held its run's data as the last one in which the data is looked for.

    Args:
        config: of the run.
        record: its run.json, which may be someone else's: provenance.check_recorded_root compares the images.
    """
    root = recorded_root(record)
    return config if root is None else replace(config, elsewhere=(*config.elsewhere, root))


def recorded_root(record: Mapping[str, Any]) -> Path | None:
    """The absolute path of the folder that held a run's data, by its run.json; None if that does not say."""
    environment = record.get("environment")
    root = environment.get("data_root") if isinstance(environment, dict) else None
    return Path(root) if isinstance(root, str) and Path(root).is_absolute() else None


def same_fingerprint(first: str, second: str) -> bool | None:
    """Whether two fingerprints are of the same images; None if they are of two kinds, which cannot be compared.

    Earlier versions recorded no number of images, and no hash of the files' contents: then the rest is compared.
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
    """Whether a run trained to its end, by its run.json."""
    return record.get("status") in FINISHED


def find_run(
    config: Config, parent: Path, images: Callable[[Config], Images], *, allow_changed_data: bool = False
) -> tuple[Path | None, list[str]]:
    """The run in `parent` that has the same images and the same values of the keys that change metrics.

    A finished run is preferred to an unfinished one, then a newer run to an older one.

    Args:
        config: what is to be trained.
        parent: a folder of run folders.
        images: reads a config's images; called only if a run has this config.
        allow_changed_data: return a run on other images if there is none on these.
    Returns: the run folder, None if there is none; and messages for the user.
    """
    runs = []
    for file in sorted(parent.glob("*/config.yaml")):
        try:
            recorded, record = configs.load(str(file)), read_record(file.parent)
        except SoftmaxceError:  # another version's, or its code is gone: it cannot be this run
            continue
        requested = with_recorded(config, recorded, record.get("resolved", ()))
        if "averaged" not in record and not differing_metrics([requested.to_dict(), recorded.to_dict()]):
            runs.append(
                (is_finished(record), (file.parent / "run.json").stat().st_mtime, file.parent, recorded, record)
            )
    runs.sort(key=lambda run: run[:2], reverse=True)
    if not runs:
        return None, []
    now = images(config)
    messages: list[str] = []
    for _, _, folder, recorded, record in runs:
        before = recorded_images(record)
        unknown = not before or bool(unknown_splits(before, now.fingerprints))
        if why := _image_changes(record, before, now, config):
            messages.append(f"{folder}: has this config, but {why}; it is not resumed")
        elif unknown and not _same_root(recorded, config):
            messages.append(
                f"{folder}: has this config, but may have been trained on other images (unknown); it is not resumed"
            )
        else:
            if unknown:
                messages.append(
                    f"warning: {folder}: may have been trained on other images (unknown); it is resumed because the "
                    f"images' folder is the same: {config.root}"
                )
            return folder, messages
    return (runs[0][2], []) if allow_changed_data else (None, messages)


def _image_changes(record: Mapping[str, Any], before: Mapping[str, str], now: Images, config: Config) -> str:
    """How a run's images are known to differ from those of `config`; empty if they are not."""
    if record.get("classes", list(now.classes)) != list(now.classes):
        return "its classes have other names"
    if before and (changed := changed_splits(before, now.fingerprints)):
        return f"its {' and '.join(changed)} images are not those in {config.root}"
    return ""


@dataclass(frozen=True)
class TrainedRun:
    """A run as `differ_by_seed_alone` compares it: its config, and its run.json."""

    config: Config
    record: Mapping[str, Any]


def differ_by_seed_alone(first: TrainedRun, second: TrainedRun) -> bool:
    """Whether two runs differ only by their seed, and were trained on the same data set."""
    keys = differing_metrics([first.config.to_dict(), second.config.to_dict()])
    return set(keys) <= {"seed"} and same_data_set(first, second)


def same_data_set(first: TrainedRun, second: TrainedRun) -> bool:
    """Whether two runs with equal `data` keys were trained on the same data set, by their fingerprints.

    Without comparable fingerprints, or where the seed generates the images, the folders are compared.
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
    """The data set's fingerprints; from an earlier version's record, those that do not depend on the seed."""
    if whole := recorded_images(run.record, "data_set"):
        return whole
    data = run.config.data
    by_seed = set()
    if data.train_limit is not None:
        by_seed = {"train"}
    if data.validation is not None:
        by_seed = {"train", "validation"}
    return {name: text for name, text in recorded_images(run.record).items() if name not in by_seed}


def _same_root(first: Config, second: Config) -> bool:
    return first.root.resolve() == second.root.resolve()
