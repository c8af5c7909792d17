"""Checkpoints: weights and training state as tensors and JSON, written atomically, without pickle.

Weights have their own names, so `safetensors.torch.load_file("best.safetensors")` is a state dict; beside them, the
parameters and buffers of a user's loss have names under loss/. The training state in last.safetensors has names under
training/. Each file has a checksum of its content; last.safetensors also has that of the best.safetensors it was saved
with.
"""

import contextlib
import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from ..errors import RunError, TrainingError, in_one_line
from ..files import TEMPORARY, flush_folder, keep_as, stage, staged_files
from ..losses.interface import Loss, state_of
from ..optim import unwrapped
from ..runtime.random_state import check_random_state, random_state, restore_random_state
from ..training.run import Progress, Run
from .folder import BEST, BEST_BEFORE, LAST, LAST_BEFORE
from .header import FORMAT, read
from .validation import check_progress, check_state, check_weights, rename_progress

TRAINING, LOSS = "training/", "loss/"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        file: the file it was read from.
        weights: the evaluated model's state dict.
        loss: what training may have changed in a user's loss; empty for any other.
        header: what header_of wrote.
        training: the training state; None in best.safetensors.
        sha256: its checksum.
    """

    file: Path
    weights: dict[str, Tensor]
    loss: dict[str, Tensor]
    header: dict[str, Any]
    training: dict[str, Any] | None
    sha256: str


def save(run: Run, folder: Path, *, best: bool) -> None:
    """Save the run as last.safetensors and, if this epoch is the best, its weights as best.safetensors.

    The previous checkpoint becomes last.1.safetensors, and its best weights best.1.safetensors if they differ. Both
    files are written and flushed under temporary names first; the rename of last.safetensors is the commit point, and
    `newest` completes a commit that was interrupted after it.

    Raises: TrainingError, with the previous checkpoint unchanged, if weights are not finite. OSError.
    """
    _check_finite(run)
    weights = {name: contiguous_copy(tensor) for name, tensor in run.evaluated.state_dict().items()}
    header = header_of(run)
    staged_last = staged_best = None
    try:
        if best:
            content, run.progress.best_sha256 = serialized(weights | loss_tensors(run), header)
            staged_best = stage(folder / BEST, content)
        training, skeleton = _training_state(run)
        content, _ = serialized(weights | training, {**header, "training": skeleton})
        staged_last = stage(folder / LAST, content)
        if (folder / LAST).exists():
            keep_as(folder / LAST, folder / LAST_BEFORE)
        if best and (folder / BEST).exists():
            keep_as(folder / BEST, folder / BEST_BEFORE)
        flush_folder(folder)
        staged_last.replace(folder / LAST)
    except OSError:
        for staged in (staged_last, staged_best):
            with contextlib.suppress(OSError):  # frees space on a full disk; the first error is raised
                if staged is not None:
                    staged.unlink(missing_ok=True)
        raise
    if staged_best is not None:
        staged_best.replace(folder / BEST)
    else:
        (folder / BEST_BEFORE).unlink(missing_ok=True)  # last.1 now has the same best weights as last
    flush_folder(folder)


def loss_tensors(run: Run) -> dict[str, Tensor]:
    """The state of a user's loss as a checkpoint has it."""
    return {f"{LOSS}{name}": contiguous_copy(tensor) for name, tensor in state_of(run.loss).items()}


def _training_state(run: Run) -> tuple[dict[str, Tensor], Any]:
    """The training state as tensors by name, and as JSON with references to them."""
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(_state_of(run), TRAINING.rstrip("/"), tensors)
    return tensors, skeleton


def _state_of(run: Run) -> dict[str, Any]:
    """All that resuming needs beside the evaluated weights: dicts, lists, numbers, strings and tensors."""
    state = {
        "progress": asdict(run.progress),
        "tally": {"loss": run.tally.loss, "hits": run.tally.num_correct, "images": run.tally.images},
        "random": random_state(),
        "optimizer": unwrapped.state_dict(run.optimizer),
        "scaler": run.scaler.state_dict(),
    }
    if isinstance(run.loss, torch.nn.Module):
        state["loss"] = run.loss.state_dict()
    if run.average is not None:
        state["model"] = run.model.state_dict()
        state["average"] = {"n_averaged": run.average.n_averaged}
    return state


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of a run folder; it and its best weights get their usual names.

    Returns: the checkpoint, None if the run was stopped before its first; and warnings.
    Raises: RunError if every checkpoint is damaged.
    """
    warnings: list[str] = []
    checkpoint = None
    for name in (LAST, LAST_BEFORE):
        if (folder / name).exists() and checkpoint is None:
            try:
                checkpoint = load(folder / name)
            except RunError as error:
                warnings.append(str(error))
    if checkpoint is None:
        if warnings:
            reasons = "; ".join(warnings)
            raise RunError(f"{folder}: no checkpoint in it can be used; start a new run elsewhere. {reasons}")
        return None, []
    if checkpoint.training is None:
        return checkpoint, warnings  # which `restore` refuses
    progress = checkpoint.training["progress"]
    sha256 = progress["best_sha256"]
    candidates = (folder / BEST, folder / BEST_BEFORE, *staged_files(folder / BEST))
    if sha256 is not None and not any(_move_if_matching(file, folder / BEST, sha256) for file in candidates):
        warnings.append(f"{folder / BEST}: is damaged or missing; the best epoch is selected from the coming ones only")
        progress |= {"best_epoch": 0, "best_value": None, "best_sha256": None}
    if checkpoint.file.name != LAST:
        keep_as(checkpoint.file, folder / LAST)
        flush_folder(folder)
    return checkpoint, warnings


def _move_if_matching(file: Path, target: Path, sha256: str) -> bool:
    """Make a checkpoint with this checksum available as `target`; False if `file` is not that checkpoint."""
    try:
        if load(file).sha256 != sha256:
            return False
    except RunError:  # missing or damaged: the caller tries the next candidate
        return False
    if file.name.endswith(TEMPORARY):
        file.replace(target)
    elif file != target:
        keep_as(file, target)
    return True


def _check_finite(run: Run) -> None:
    modules = {run.model: "weight", run.evaluated: "weight"}  # often the same
    if isinstance(run.loss, torch.nn.Module):
        modules[run.loss] = "loss's parameter"
    for module, kind in modules.items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            trained = name.endswith((".running_mean", ".running_var")) or isinstance(tensor, torch.nn.Parameter)
            if trained and not torch.isfinite(tensor).all():
                progress = run.progress
                raise TrainingError(
                    f"the {kind} '{name}' is not finite after {progress.epoch} epochs and {progress.batch} batches, "
                    "and is not saved; lower optimizer.lr or set clip_grad_norm"
                )


def header_of(run: Run) -> dict[str, Any]:
    """A checkpoint's metadata: enough to rebuild the model and evaluate it without the run folder."""
    return {
        "format": FORMAT,
        "epoch": run.progress.epoch,
        "recipe": run.config.recipe,
        "config": run.config.to_dict(),
        "classes": list(run.classes),
        "class_counts": run.class_counts,
        "preprocessing": run.preprocessing.to_dict(),
    }


def load(file: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises: RunError if it is missing, is no safetensors file, was not written by softmaxce, or is damaged.
    """
    header, tensors, sha256, text = read(file, "pt", with_tensors=True)
    if sha256 != _checksum(tensors, text):
        raise RunError(f"{file}: its checksum is wrong: it was damaged after it was written")
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith((TRAINING, LOSS))}
    loss = {name.removeprefix(LOSS): tensor for name, tensor in tensors.items() if name.startswith(LOSS)}
    training = {name: tensor for name, tensor in tensors.items() if name.startswith(TRAINING)}
    state = None
    if "training" in header:
        try:
            state = _unflatten(header.pop("training"), training)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{file}: is damaged: its training state {error}") from None
        rename_progress(state)
        check_progress(state, file)
        if isinstance(saved := state.get("loss"), dict):
            loss = {name: tensor for name, tensor in saved.items() if isinstance(tensor, Tensor)}
    elif training:
        raise RunError(f"{file}: is damaged: it has tensors of a training state, but not the rest of it")
    return Checkpoint(file, weights, loss, header, state, sha256)


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights into a model. Raises: RunError, the model unchanged, if they are another model's."""
    check_weights(model.state_dict(), checkpoint.weights, checkpoint.file)
    model.load_state_dict(checkpoint.weights)


def load_loss(loss: Loss, checkpoint: Checkpoint) -> None:
    """Load the state of a user's loss, if the checkpoint has it. Raises: RunError, if it is another loss's."""
    expected = state_of(loss)
    if not expected or not checkpoint.loss:  # earlier versions did not save it
        return
    check_state(expected, checkpoint.loss, checkpoint.file, "loss")
    assert isinstance(loss, torch.nn.Module)
    loss.load_state_dict(checkpoint.loss, strict=False)


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Restore a run to the state in which the checkpoint was saved.

    Raises: RunError if the checkpoint has no training state (best.safetensors has none) or another model's.
    """
    state = _restore_weights(run, checkpoint)
    run.progress = Progress(**state["progress"])
    if run.progress.schedule is not None and (load_state := getattr(run.schedule, "load_state", None)) is not None:
        try:
            load_state(run.progress.schedule)
        except (KeyError, TypeError) as error:
            raise RunError(f"{checkpoint.file}: is damaged: the state of its schedule: {in_one_line(error)}") from None
    run.tally.loss.copy_(state["tally"]["loss"])
    run.tally.num_correct.copy_(state["tally"]["hits"])
    run.tally.images = state["tally"]["images"]
    restore_random_state(state["random"])


def restore_weights(run: Run, checkpoint: Checkpoint) -> None:
    """Restore the weights and the optimizer, but not the run's progress, metrics and random numbers.

    Raises: RunError if the checkpoint is another model's.
    """
    _restore_weights(run, checkpoint)


def _restore_weights(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    state = _fitting_state(run, checkpoint)
    run.evaluated.load_state_dict(checkpoint.weights)
    if isinstance(run.loss, torch.nn.Module):
        run.loss.load_state_dict(state["loss"])
    if run.average is not None:
        run.model.load_state_dict(state["model"])
        run.average.n_averaged.copy_(state["average"]["n_averaged"])
    unwrapped.load_state_dict(run.optimizer, state["optimizer"])
    _lay_out_as_parameters(run.optimizer)
    run.scaler.load_state_dict(state["scaler"])
    return state


def _fitting_state(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's training state, checked with its weights against a run. Raises: RunError if they do not fit."""
    file, state = checkpoint.file, checkpoint.training
    if state is None:
        raise RunError(f"{file}: has weights only; resume from the run folder, which has {LAST}")
    check_weights(run.evaluated.state_dict(), checkpoint.weights, file)
    expected = _state_of(run)
    expected["progress"] = state["progress"]  # checked when it was read
    random, optimizer = state.get("random"), state.get("optimizer")
    if isinstance(random, dict) and isinstance(random.get("cuda"), list):  # this machine may have other GPUs
        expected["random"]["cuda"] = [torch.empty(16, dtype=torch.uint8) for _ in random["cuda"]]
    if isinstance(optimizer, dict) and isinstance(optimizer.get("state"), dict):
        if ":" in run.config.optimizer.name:  # the user's own optimizer may have any state
            expected["optimizer"]["state"] = optimizer["state"]
        else:  # a parameter that never had a gradient has no state
            expected["optimizer"]["state"] = {
                key: value for key, value in _after_a_step(run.optimizer).items() if key in optimizer["state"]
            }
    check_state(expected, state, file)
    if state["progress"]["batch"] > len(run.train):
        raise RunError(f"{file}: is damaged: it was saved after batch {state['progress']['batch']} of {len(run.train)}")
    try:
        check_random_state(state["random"])
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise RunError(f"{file}: is damaged: its training.random is not the state of a generator: {error}") from None
    return state


def _after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, Any]:
    """An optimizer's state per parameter; before its first step, what that will create, as meta tensors."""
    if not optimizer.state:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        blank = {id(p): torch.nn.Parameter(torch.empty_like(p, device="meta")) for p in parameters}
        optimizer = copy.deepcopy(optimizer, blank)  # deepcopy uses these as the parameters' copies
        for group in optimizer.param_groups:
            group.update({name: False for name in ("fused", "foreach", "capturable") if name in group})
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    state: dict[int, Any] = optimizer.state_dict()["state"]
    return state


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's tensors their parameters' strides (channels-last, for example).

    A checkpoint has them contiguous, and torch's fused steps pair elements by their offset in memory.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def contiguous_copy(tensor: Tensor) -> Tensor:
    """A copy as safetensors requires it: weights may be tied (shared memory) or channels-last."""
    return tensor.detach().cpu().contiguous().clone()


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Nested dicts, lists, numbers and tensors as JSON data; the tensors are added to `tensors` by their path."""
    if isinstance(value, Tensor):
        tensors[name] = contiguous_copy(value)
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs: JSON would turn the optimizer's integer keys into strings
        return {"dict": [[key, _flatten(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        if all(type(item) is int for item in value):  # a generator's state has hundreds
            return list(value)
        return [_flatten(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of _flatten. Raises: ValueError if `value` is not its output, or a tensor is not used."""
    used: set[str] = set()

    def unflatten(value: Any) -> Any:
        match value:
            case {"tensor": str(name)} if len(value) == 1 and name in tensors:
                used.add(name)
                return tensors[name]
            case {"dict": list(pairs)} if len(value) == 1:
                return dict(map(pair, pairs))
            case list():
                return [unflatten(item) for item in value]
            case str() | int() | float() | None:
                return value
        raise ValueError(f"has an invalid value: {str(value)[:100]}")

    def pair(item: Any) -> tuple[str | int, Any]:
        match item:
            case [str(key) | int(key), item_value]:
                return key, unflatten(item_value)
        raise ValueError(f"has an invalid key and value: {str(item)[:100]}")

    state = unflatten(value)
    if not isinstance(state, dict):
        raise ValueError(f"is not a mapping: {str(value)[:100]}")
    if unused := sorted(tensors.keys() - used):
        raise ValueError(f"does not use the tensor '{unused[0][:100]}'")
    return state


def serialized(tensors: dict[str, Tensor], header: dict[str, Any]) -> tuple[bytes, str]:
    """A checkpoint file's content, and the checksum in it."""
    text = json.dumps(header)
    sha256 = _checksum(tensors, text)
    return serialize(tensors, {"softmaxce": f"{sha256} {text}"}), sha256  # one entry: the order of two would vary


def _checksum(tensors: Mapping[str, Tensor], header: str) -> str:
    """SHA-256 of a header and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
