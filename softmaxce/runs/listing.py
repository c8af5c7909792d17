"""The runs under a folder, a row each. Needs no torch."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..argument_types import LOWER_IS_BETTER
from ..config import yamlfile
from ..errors import ConfigError, RunError
from . import folder as runfolder

MAX_DEPTH = 4  # levels below the folder that are searched for runs


@dataclass(frozen=True)
class RunRow:
    """One run in a list.

    Attributes:
        recipe: the config's name.
        epochs: the config's; None if it cannot be read.
        validation: the best epoch's accuracy on the validation split, in [0, 1]; None without one.
        test: the final accuracy on the test split, in [0, 1]; None before the end.
        seconds: of training, all parts of a resumed run together.
        status: one of folder.Status.
        started: ISO 8601.
    """

    folder: Path
    recipe: str
    model: str
    loss: str
    epochs_done: int
    epochs: int | None
    validation: float | None
    test: float | None
    seconds: float
    status: str
    started: str

    def to_dict(self) -> dict[str, Any]:
        """A line of `softmaxce runs --json`."""
        return {**asdict(self), "folder": str(self.folder)}


def list_runs(root: Path = Path("runs")) -> tuple[list[RunRow], list[RunError]]:
    """Every run under a folder, the newest first, and the errors of those that cannot be read.

    Raises: RunError if there is no such folder.
    """
    if not root.is_dir():
        raise RunError(f"there is no folder {root} here; train a run, or name the folder: softmaxce runs FOLDER")
    rows, errors = [], []
    for folder in run_folders(root):
        try:
            rows.append(read_run(folder))
        except RunError as error:
            errors.append(error)
    return sorted(rows, key=_started, reverse=True), errors


def run_folders(root: Path) -> Iterator[Path]:
    """The folders at or below `root` that hold a run; run folders are not searched for others."""
    for name, folders, files in os.walk(root):
        here = Path(name)
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        if "run.json" in files:
            yield here
            folders.clear()
        elif len(here.relative_to(root).parts) >= MAX_DEPTH:
            folders.clear()


def read_run(folder: Path) -> RunRow:
    """One run's row. Raises: RunError if its record cannot be read."""
    record = runfolder.read_record(folder)
    lines = runfolder.read_metrics(folder)
    try:
        data = yamlfile.read(folder / "config.yaml").data
    except ConfigError:  # the run is listed without what its config says
        data = None
    config: dict[str, Any] = data if isinstance(data, dict) else {}
    best = _best_validation(record, lines)
    seconds = record.get("seconds")
    return RunRow(
        folder=folder,
        recipe=str(record.get("recipe", "")),
        model=_name(config, "model"),
        loss=_name(config, "loss"),
        epochs_done=len(lines),
        epochs=epochs if type(epochs := config.get("epochs")) is int else None,
        validation=best["accuracy"] if best else None,
        test=record.get("test", {}).get("accuracy"),
        seconds=float(sum(line.get("seconds", 0) for line in lines) if seconds is None else seconds),
        status=str(record.get("status", "")),
        started=str(record.get("started", "")),
    )


def best_first(folders: Sequence[Path]) -> tuple[list[Path], str]:
    """Run folders by a metric of their best epoch on the validation split, the best first.

    The metric is the runs' best_metric. It is accuracy where they have several, or it is the loss and they have
    different losses, whose values cannot be compared. Those without a value, or with NaN, are last, in order.

    Returns: the folders, and the metric.
    Raises: RunError, ConfigError if a run cannot be read.
    """
    configs = [yamlfile.read(folder / "config.yaml").data for folder in folders]
    choices = {str(config.get("best_metric", "accuracy")) for config in configs}
    losses = [flat({"loss": config.get("loss")}) for config in configs]
    metric = choices.pop() if len(choices) == 1 else "accuracy"
    if metric == "loss" and any(loss != losses[0] for loss in losses):
        metric = "accuracy"
    sign = 1 if metric in LOWER_IS_BETTER else -1

    def rank(folder: Path) -> float:
        scores = _best_validation(runfolder.read_record(folder), runfolder.read_metrics(folder))
        value = (scores or {}).get(metric)
        return sign * value if isinstance(value, float) and not math.isnan(value) else math.inf

    return sorted(folders, key=rank), metric


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def differing(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The dotted keys whose values differ between configs, each with its value in every config (None: missing)."""
    flats = [flat(config) for config in configs]
    keys = dict.fromkeys(key for one in flats for key in one)
    values = {key: [one.get(key) for one in flats] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _best_validation(record: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, float] | None:
    """The best epoch's metrics on the validation split, by run.json or, before the end, metrics.jsonl."""
    best = next((line for line in lines if line["epoch"] == record.get("best_epoch")), None)
    if best is None:
        best = next((line for line in reversed(lines) if line.get("best")), {})
    return best.get("validation")


def _name(config: dict[str, Any], section: str) -> str:
    value = config.get(section)
    return str(value.get("name", "") if isinstance(value, dict) else value or "")


def _started(row: RunRow) -> float:
    try:
        return datetime.fromisoformat(row.started).timestamp()
    except ValueError:  # no date; the file's time replaces it
        return (row.folder / "run.json").stat().st_mtime
