"""The run folder: what a run was and what it measured. Needs no torch; the checkpoints in it are checkpoint.py's.

    runs/<recipe>/<number>/
        config.yaml             the complete config, every default spelt out
        run.json                command, versions, device, commit, classes, status, results
        metrics.jsonl           one line an epoch
        last.safetensors        the weights of the last epoch, and all it takes to go on
        best.safetensors        the weights of the best epoch on the validation split, alone
        calibration.json        the softmax temperature, once `softmaxce calibrate` has fitted it

A folder that holds a run is never overwritten; every file but metrics.jsonl takes its place whole or not at all.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import yamlfile
from .errors import RunError

LAST, BEST = "last.safetensors", "best.safetensors"
CALIBRATION = "calibration.json"


# -- folders ----------------------------------------------------------------------------------------------------------


def create(recipe: str, output: Path | None) -> Path:
    """Make a new run folder: `output`, or the next number under runs/<recipe>/.

    Raises: RunError if `output` exists and is not empty, or the folder cannot be made.
    """
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            if any(output.iterdir()):
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
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    _replace(folder / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_config(folder: Path, plain: Mapping[str, Any]) -> None:
    """Write config.yaml, complete."""
    _replace(folder / "config.yaml", yamlfile.dump(plain))


# -- metrics ----------------------------------------------------------------------------------------------------------


def append_metrics(folder: Path, epoch: Mapping[str, Any]) -> None:
    """Add an epoch's line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(epoch) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs in metrics.jsonl; a half-written last line is passed over."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return []
    epochs = []
    for line in lines:
        try:
            epoch = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(epoch, dict) or not isinstance(epoch.get("epoch"), int):
            break
        epochs.append(epoch)
    return epochs


def cut_metrics(folder: Path, epochs: int) -> None:
    """Drop the lines after the first `epochs` epochs: the checkpoint does not know of them."""
    kept = [line for line in read_metrics(folder) if line["epoch"] <= epochs]
    _replace(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


def _replace(file: Path, text: str) -> None:
    replace_file(file, text.encode())


def replace_file(file: Path, content: bytes) -> None:
    """Write a file so that at any instant the old or the new one is there, whole, also after a power cut."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(file)  # a full disk does not say which file it was
        raise
    temporary.replace(file)
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no flush of it
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
