"""The run folder: its files but for the checkpoints, which are checkpoint.py's. Needs no torch.

    runs/<recipe>/<number>/
        config.yaml             the complete config, every default included
        run.json                command, versions, device, commits, classes, status, results
        metrics.jsonl           one line per epoch
        last.safetensors        the newest weights and the training state
        last.1.safetensors      the checkpoint before it, used if the newest is damaged
        best.safetensors        the weights of the best epoch on the validation split
        best.1.safetensors      the best weights when last.1.safetensors was saved, if that was another epoch
        nonfinite.safetensors   the last batch whose loss was not finite, if there was one
        restorable.safetensors  with on_nonfinite: restore, the last checkpoint that no signal caused
        .lock                   locked by the process that trains
        calibration.json        the softmax temperature, once `softmaxce calibrate` has fitted it
        tensorboard/, wandb/    what `train --log` wrote; mlflow.json and wandb.json hold the ids of the run's logs
        model.onnx              what `softmaxce export` wrote, with its certificate model.onnx.json

A folder that holds a run is never overwritten; every file is replaced atomically, but metrics.jsonl, which grows.
"""

import contextlib
import enum
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import streams
from ..config import yamlfile
from ..errors import RunError, RunInUseError, in_users_code
from ..files import LOCK, TEMPORARY, append, locked, open_file, parse_json, read_file, read_json, replace_file

LAST, BEST = "last.safetensors", "best.safetensors"
LAST_BEFORE, BEST_BEFORE = "last.1.safetensors", "best.1.safetensors"
NONFINITE = "nonfinite.safetensors"
RESTORABLE = "restorable.safetensors"
METRICS = "metrics.jsonl"
CALIBRATION = "calibration.json"

SPLITS = ("train", "validation", "test")

# Larger files are not softmaxce's, and are refused before they fill the memory.
MAX_RECORD = 4 << 20  # bytes of run.json
MAX_METRICS = 32 << 20  # bytes of metrics.jsonl
MAX_LINE = 1 << 16  # bytes of an epoch
MAX_EPOCHS = 250_000


class Status(enum.StrEnum):
    """The state of a run, as run.json records it."""

    RUNNING = "running"  # also of a process that was killed
    COMPLETED = "completed"
    STOPPED_EARLY = "stopped_early"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    TERMINATED = "terminated"

    @property
    def finished(self) -> bool:
        """Whether the run trained to its end."""
        return self in (Status.COMPLETED, Status.STOPPED_EARLY)


# -- folders ----------------------------------------------------------------------------------------------------------


def create(recipe: str, output: Path | None) -> Path:
    """Make a new run folder: `output`, or the next number under runs/<recipe>/.

    Raises: RunError if `output` exists and is not empty, or the folder cannot be made.
    """
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            if _is_taken(output):
                if (output / LOCK).is_file():
                    with locked(output):  # refused with the process that trains in it, if there is one
                        pass
                raise RunError(
                    f"--output {output}: the folder is not empty and is left as it is; "
                    "choose another, or resume the run in it with --resume auto"
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
            except FileExistsError:  # another process took the number just now
                continue
    except OSError as error:
        raise RunError(f"the run folder {error.filename or output} cannot be made: {error.strerror}") from None


def _is_taken(folder: Path) -> bool:
    """Whether a folder holds more than a run leaves that was killed before it wrote its config."""
    return any(entry.name != LOCK and not entry.name.endswith(TEMPORARY) for entry in folder.iterdir())


@contextlib.contextmanager
def held(folder: Path, *, new: bool) -> Iterator[None]:
    """Lock a run folder for this process.

    Args:
        folder: the run folder.
        new: `create` has just made it, so it must still be empty.
    Raises: RunInUseError if another process has locked it, or has started a run in it since `create`.
    """
    with locked(folder) as problem:
        if problem:
            streams.warning(problem)
        if new and _is_taken(folder):
            message = f"{folder}: another run has just been started in this folder; choose another --output"
            raise RunInUseError(message)
        yield


def clear_temporary(folder: Path) -> None:
    """Remove the temporary files of a killed process."""
    for file in folder.glob(f"*{TEMPORARY}"):
        if file.is_symlink() or not file.is_dir():  # a folder is not ours
            file.unlink(missing_ok=True)


def newest(root: Path = Path("runs"), recipe: str = "*") -> Path | None:
    """The newest run under `root`, by the time of its run.json; None if there is none."""
    records = list(root.glob(f"{recipe}/*/run.json"))
    return max(records, key=lambda file: file.stat().st_mtime).parent if records else None


def begun_by(job: str, output: Path | None, recipe: str, *, restarted: bool) -> Path | None:
    """The folder of the run that the processes of a job had begun when they were killed; None if there is none.

    Args:
        job: what their launcher calls it; it is in run.json.
        output: the run folder, where it was named.
        recipe: else the run is under runs/<recipe>/.
        restarted: the processes have been restarted for certain, so that the run may also have ended: one of them was
            lost after that.
    """
    folders = [output] if output is not None else [file.parent for file in Path("runs", recipe).glob("*/run.json")]
    for folder in folders:
        if (folder / "run.json").is_file():
            record = read_record(folder)
            if record.get("job") == job and (restarted or record.get("status") == Status.RUNNING):
                return folder
        elif (folder / "config.yaml").is_file() and not (folder / LAST).exists():  # killed before run.json was written
            return folder
    return None


def read_record(folder: Path) -> dict[str, Any]:
    """A run's run.json. Raises: RunError if the folder holds no run, or run.json is damaged."""
    from .record import check_record  # imports pydantic, which a config's mistakes are reported without

    file = folder / "run.json"
    try:
        record = read_json(file, MAX_RECORD)
    except FileNotFoundError:
        raise RunError(f"{folder}: there is no run in this folder (no run.json)") from None
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{file}: is damaged: {error}") from None
    return check_record(record, file)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json atomically."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / "run.json", text.encode())


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.yaml atomically."""
    replace_file(folder / "config.yaml", yamlfile.dump(config).encode())


def explain_write_error(error: OSError, resume: str) -> str:
    """Why a file could not be written, and what to do; `resume` says how to resume the run."""
    remedies = {
        errno.ENOSPC: f"make room on that disk and {resume}",
        errno.EDQUOT: f"make room in your quota and {resume}",
        errno.EFBIG: f"allow larger files (ulimit -f) and {resume}",
        errno.EROFS: f"make that disk writable and {resume}",
        errno.EACCES: f"make the folder writable and {resume}",
        errno.ENOENT: "was the run folder moved or removed?",
    }
    return f"{describe_write_error(error)}; {remedies.get(error.errno or 0, resume)}"


def describe_write_error(error: OSError) -> str:
    """What could not be written, and why. Only what print raises names no file, unless the user's code wrote it."""
    if error.filename:
        return f"{error.filename}: {error.strerror}"
    return in_users_code(error) or f"standard output: {error.strerror or error}"


# -- metrics ----------------------------------------------------------------------------------------------------------


def append_metrics(folder: Path, epoch: Mapping[str, Any]) -> None:
    """Append an epoch to metrics.jsonl, in one write. A line that a crash cut off ends what `read_metrics` reads."""
    append(folder / METRICS, json.dumps(epoch).encode() + b"\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs in metrics.jsonl, up to the first line that is not one. Raises: RunError if it cannot be read."""
    from .record import is_epoch

    file = folder / METRICS
    epochs: list[dict[str, Any]] = []
    try:
        with open_file(file) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_METRICS:
                raise RunError(f"{file}: cannot be read: it is larger than {MAX_METRICS:,} bytes")
            while line := stream.readline(MAX_LINE):
                try:
                    epoch = parse_json(line)
                except ValueError:  # a line that an earlier version was killed while writing
                    break
                if not is_epoch(epoch):
                    break
                epochs.append(epoch)
                if len(epochs) > MAX_EPOCHS:
                    raise RunError(f"{file}: cannot be read: it has more than {MAX_EPOCHS:,} epochs")
    except FileNotFoundError:  # no epoch is completed yet
        return []
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}") from None
    return epochs


def cut_metrics(folder: Path, epochs: int) -> None:
    """Drop the epochs after the first `epochs`, which the checkpoint does not include, and a line that was cut off."""
    lines = [line for line in read_metrics(folder) if line["epoch"] <= epochs]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = folder / METRICS
    if file.is_symlink() or not file.is_file() or read_file(file, MAX_METRICS) != content:
        replace_file(file, content)
