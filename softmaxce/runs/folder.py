"""The run folder: what a run was and what it measured. Needs no torch; the checkpoints in it are checkpoint.py's.

    runs/<recipe>/<number>/
        config.yaml             the complete config, every default spelt out
        run.json                command, versions, device, commit, classes, status, results
        metrics.jsonl           one line an epoch
        last.safetensors        the newest weights, and all it takes to go on
        last.1.safetensors      the checkpoint before it, should the newest be damaged
        best.safetensors        the weights of the best epoch on the validation split, alone
        best.1.safetensors      what was best for last.1.safetensors, where that was another epoch
        nonfinite.safetensors   the batch whose loss was not finite, where there was one
        .lock                   held by the process that trains
        calibration.json        the softmax temperature, once `softmaxce calibrate` has fitted it

A folder that holds a run is never overwritten; every file takes its place whole or not at all.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import yamlfile
from ..config.values import show
from ..errors import RunError
from ..files import LOCK, TEMPORARY, locked, replace_file

LAST, BEST = "last.safetensors", "best.safetensors"
LAST_BEFORE, BEST_BEFORE = "last.1.safetensors", "best.1.safetensors"
NONFINITE = "nonfinite.safetensors"
METRICS = "metrics.jsonl"
CALIBRATION = "calibration.json"

# What run.json holds; what else there is, is kept and not looked at.
KEPT: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("recipe", "status", "started", "message"), (str, "a text")),
    **dict.fromkeys(("classes", "commands", "earlier_environments", "requirements"), (list, "a list")),
    **dict.fromkeys(("epochs", "best_epoch"), (int, "a whole number")),
    "seconds": (int | float, "a number"),
    "environment": (dict, "a mapping"),
}
SPLITS = ("test", "validation")  # whose final figures it may hold


# -- folders ----------------------------------------------------------------------------------------------------------


def create(recipe: str, output: Path | None) -> Path:
    """Make a new run folder: `output`, or the next number under runs/<recipe>/.

    Raises: RunError if `output` exists and is not empty, or the folder cannot be made.
    """
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            if _is_taken(output):
                raise RunError(
                    f"--output {output}: the folder is not empty and is left as it is; "
                    "choose another, or go on with the run in it by --resume auto"
                )
            return output
        parent = Path("runs", recipe)
        parent.mkdir(parents=True, exist_ok=True)
        number = max((int(entry.name) for entry in parent.iterdir() if entry.name.isdigit()), default=0)
        while True:
            number += 1
            try:
                folder = parent / str(number)
                folder.mkdir()
                return folder
            except FileExistsError:  # another run took the number in this moment
                continue
    except OSError as error:
        raise RunError(f"the run folder {error.filename or output} cannot be made: {error.strerror}") from None


def _is_taken(folder: Path) -> bool:
    """Whether a folder holds more than what a run leaves that died before it had written its config."""
    return any(entry.name != LOCK and not entry.name.endswith(TEMPORARY) for entry in folder.iterdir())


@contextlib.contextmanager
def held(folder: Path, *, new: bool) -> Iterator[None]:
    """Hold a run folder for this process alone.

    Args:
        folder: the run folder.
        new: whether `create` has just made it: a run that came between is not written over.
    Raises: RunError if another process holds it, or came between.
    """
    with locked(folder):
        if new and _is_taken(folder):
            raise RunError(f"{folder}: another run has just been started in this folder; choose another --output")
        yield


def clear_temporary(folder: Path) -> None:
    """Remove what a killed process had begun to write."""
    for file in folder.glob(f"*{TEMPORARY}"):
        file.unlink(missing_ok=True)


def newest(root: Path = Path("runs"), recipe: str = "*") -> Path | None:
    """The newest run under `root`, by its record's time; None if there is none."""
    records = list(root.glob(f"{recipe}/*/run.json"))
    return max(records, key=lambda file: file.stat().st_mtime).parent if records else None


def read_record(folder: Path) -> dict[str, Any]:
    """A run's run.json. Raises: RunError if the folder holds no run."""
    file = folder / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder}: there is no run in this folder (no run.json)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise RunError(f"{file}: is no record of a run")
    for key, (kinds, what) in KEPT.items():
        if key in record and (not isinstance(record[key], kinds) or isinstance(record[key], bool)):
            raise RunError(f"{file}: is damaged: its '{key}' must be {what}, got {show(record[key])}")
    for split in SPLITS:
        figures = record.get(split, {"loss": 0.0, "accuracy": 0.0})
        if not isinstance(figures, dict) or not all(_is_number(figures.get(name)) for name in ("loss", "accuracy")):
            raise RunError(f"{file}: is damaged: its '{split}' must hold a loss and an accuracy, got {show(figures)}")
    return record


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / "run.json", text.encode())


def write_config(folder: Path, plain: Mapping[str, Any]) -> None:
    """Write config.yaml, complete."""
    replace_file(folder / "config.yaml", yamlfile.dump(plain).encode())


# -- metrics ----------------------------------------------------------------------------------------------------------


def append_metrics(folder: Path, epoch: Mapping[str, Any]) -> None:
    """Add an epoch's line to metrics.jsonl. The file is written anew: a reader never meets half a line."""
    file = folder / METRICS
    before = file.read_bytes() if file.exists() else b""
    replace_file(file, before + json.dumps(epoch).encode() + b"\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs in metrics.jsonl; a half-written last line is passed over."""
    try:
        lines = (folder / METRICS).read_bytes().splitlines()
    except FileNotFoundError:  # no epoch is done yet
        return []
    epochs = []
    for line in lines:
        try:
            epoch = json.loads(line)
        except (ValueError, RecursionError):  # half a line, left by an older version
            break
        if not _is_epoch(epoch):
            break
        epochs.append(epoch)
    return epochs


def _is_epoch(line: Any) -> bool:
    """Whether a line of metrics.jsonl is what Epoch.plain gives."""
    if not isinstance(line, dict) or not isinstance(line.get("epoch"), int):
        return False
    numbers = [line.get(name, 0) for name in ("learning_rate", "images_per_second", "seconds")]
    for split in ("train", "validation", "test"):
        figures = line.get(split, {"loss": 0, "accuracy": 0})
        numbers += [figures.get("loss"), figures.get("accuracy")] if isinstance(figures, dict) else [None]
    return all(map(_is_number, numbers))


def cut_metrics(folder: Path, epochs: int) -> None:
    """Drop the lines after the first `epochs` epochs: the checkpoint does not know of them."""
    kept = [line for line in read_metrics(folder) if line["epoch"] <= epochs]
    replace_file(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
