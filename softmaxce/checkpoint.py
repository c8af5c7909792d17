"""Checkpoints: weights and training state as tensors and JSON, never half-written, never unpickled.

Weights lie under their own names, so `safetensors.torch.load_file("best.safetensors")` is a state dict. In
last.safetensors the entries under training/ are all it takes to go on.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from .errors import RunError
from .runfolder import BEST, LAST, replace_file
from .runtime import random_state, restore_random_state
from .train import Progress, Run
from .verify import check_weights

TRAINING = "training/"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: weights by name, the training state's tensors by name, and its JSON header."""

    file: Path
    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    header: dict[str, Any]


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
    header, tensors = _read(file, with_tensors=True)
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING)}
    training = {name: tensor for name, tensor in tensors.items() if name.startswith(TRAINING)}
    return Checkpoint(file, weights, training, header)


def read_header(file: Path) -> dict[str, Any]:
    """A checkpoint's header alone: what header_of wrote. Raises: RunError, as load."""
    return _read(file, with_tensors=False)[0]


def _read(file: Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as stream:
            header = json.loads((stream.metadata() or {}).get("softmaxce", "null"))
            names = stream.keys() if with_tensors else ()
            tensors = {name: stream.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise RunError(f"{file}: there is no such checkpoint") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: is no checkpoint that can be read: {error}") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RunError(f"{file}: was not written by this version of softmaxce")
    return header, tensors


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a model. Raises: RunError, the model untouched, if they are another model's."""
    check_weights(model.state_dict(), checkpoint.weights, checkpoint.file)
    model.load_state_dict(checkpoint.weights)


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
    _lay_out_as_parameters(run.optimizer)
    run.scaler.load_state_dict(state["scaler"])
    run.progress = Progress(**state["progress"])
    restore_random_state(state["random"])


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's tensors their parameters' memory order (channels-last, say).

    A checkpoint holds them in plain order, and torch's fused steps pair elements by their place in memory.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


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
    replace_file(file, serialize(tensors, {"softmaxce": json.dumps(header)}))
