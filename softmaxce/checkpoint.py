"""The run folder: what a run was, what it measured, and checkpoints that are never half-written.

    runs/<recipe>/<number>/
        config.yaml             the complete config, every default spelt out
        run.json                command, versions, device, commit, classes, preprocessing, status, results
        metrics.jsonl           one line an epoch
        last.safetensors        the weights, and under training/ all it takes to go on
        best.safetensors        the weights of the best epoch on the validation split, alone

Weights lie under their own names, so `safetensors.torch.load_file("best.safetensors")` is a state dict. Everything is
tensors and JSON: nothing is unpickled.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import yamlfile
from .errors import RunError
from .runtime import random_state, restore_random_state
from .train import Epoch, Progress, Run

LAST, BEST = "last.safetensors", "best.safetensors"
TRAINING = "training/"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: weights by name, the training state's tensors by name, and its JSON header."""

    file: Path
    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    header: dict[str, Any]


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
    records = [entry for entry in root.glob(f"{recipe}/*/run.json")]
    return max(records, key=lambda file: file.stat().st_mtime).parent if records else None


def read_record(folder: Path) -> dict[str, Any]:
    """A run's run.json. Raises: RunError if the folder holds no run."""
    file = folder / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder}: there is no run in this folder (no run.json)") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise RunError(f"{file}: is no record of a run")
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, whole or not at all."""
    _replace(folder / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_config(folder: Path, run: Run) -> None:
    """Write config.yaml, complete."""
    _replace(folder / "config.yaml", yamlfile.dump(run.config.plain()))


# -- metrics ----------------------------------------------------------------------------------------------------------


def append_metrics(folder: Path, epoch: Epoch) -> None:
    """Add an epoch's line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(epoch.plain()) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs in metrics.jsonl; a half-written last line is passed over."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    epochs = []
    for line in lines:
        try:
            epochs.append(json.loads(line))
        except ValueError:
            break
    return epochs


def cut_metrics(folder: Path, epochs: int) -> None:
    """Drop the lines after the first `epochs` epochs: the checkpoint does not know of them."""
    kept = [line for line in read_metrics(folder) if line["epoch"] <= epochs]
    _replace(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


# -- checkpoints ------------------------------------------------------------------------------------------------------


def save(run: Run, folder: Path, *, best: bool) -> None:
    """Save where the run stands as last.safetensors and, if this epoch is the best, its weights as best.safetensors.

    best is written first: a run cut off between the two finds last one epoch behind, and repeats that epoch.
    """
    weights = {name: _own(tensor) for name, tensor in run.evaluated.state_dict().items()}
    header = header_of(run)
    if best:
        _save_tensors(folder / BEST, weights, header)
    tensors: dict[str, Tensor] = {}
    state = {
        "progress": asdict(run.progress),
        "random": random_state(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
    }
    if run.average is not None:
        state["model"] = run.model.state_dict()
        state["average"] = {"n_averaged": run.average.n_averaged}
    skeleton = _flatten(state, TRAINING.rstrip("/"), tensors)
    _save_tensors(folder / LAST, weights | tensors, {**header, "training": skeleton})


def header_of(run: Run) -> dict[str, Any]:
    """What a checkpoint says of itself: enough to rebuild the model and evaluate it elsewhere."""
    return {
        "format": FORMAT,
        "epoch": run.progress.epoch,
        "recipe": run.config.recipe,
        "config": run.config.plain(),
        "classes": list(run.classes),
        "class_counts": run.class_counts,
        "preprocessing": asdict(run.preprocessing),
    }


def load(file: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises: RunError if it is not there, is no safetensors file, or was not written by softmaxce.
    """
    try:
        with safe_open(file, framework="pt") as stream:
            header = json.loads((stream.metadata() or {}).get("softmaxce", "null"))
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no dict
    except FileNotFoundError:
        raise RunError(f"{file}: there is no such checkpoint") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{file}: is no checkpoint that can be read: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RunError(f"{file}: was not written by this version of softmaxce")
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING)}
    training = {name: tensor for name, tensor in tensors.items() if name.startswith(TRAINING)}
    return Checkpoint(file, weights, training, header)


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a model. Raises: RunError if they are another model's."""
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n", 1)[-1].split())
        raise RunError(f"{checkpoint.file}: its weights are of another model: {detail[:300]}") from None


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Put a run back where it stood when the checkpoint was saved.

    Raises: RunError if the checkpoint holds no training state (best.safetensors does not) or another model's.
    """
    if "training" not in checkpoint.header:
        raise RunError(f"{checkpoint.file}: holds weights only; resume from the run folder, which has {LAST}")
    load_weights(run.evaluated, checkpoint)
    state = _unflatten(checkpoint.header["training"], checkpoint.training)
    if run.average is not None:
        run.model.load_state_dict(state["model"])
        run.average.n_averaged.copy_(state["average"]["n_averaged"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.progress = Progress(**state["progress"])
    restore_random_state(state["random"])


def _own(tensor: Tensor) -> Tensor:
    """A copy that shares no memory, as safetensors wants each tensor to lie; weights may be tied or channels-last."""
    return tensor.detach().cpu().contiguous().clone()


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON of a nest of dicts, lists, numbers and tensors; the tensors go to `tensors` under their path."""
    if isinstance(value, Tensor):
        tensors[name] = _own(value)
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs: JSON would turn the optimizer's integer keys into text
        return {"dict": [[key, _flatten(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unflatten(item, tensors) for key, item in value["dict"]}
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    return value


def _save_tensors(file: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, {"softmaxce": json.dumps(header)})
    _commit(temporary, file)


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    _commit(temporary, file)


def _commit(temporary: Path, file: Path) -> None:
    """Flush a written file to disk and let it take its place in one step; then flush the folder."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(file)
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and needs no flush of it
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
