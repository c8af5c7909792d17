"""The weights of another run as the start of a new one: `model.weights_from`, `train --from`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ConfigError, Problem, RunError
from ..files import sha256_of
from ..training.run import Run
from . import checkpoint
from .folder import LAST
from .header import find_checkpoint
from .plan import weights_from_option
from .validation import check_weights


def load(run: Run, report: Callable[[str], None], resumed: Path | None = None) -> dict[str, Any]:
    """Load the weights that the config names into a run that has not begun.

    Where the classes are others than those of the weights, the head stays as it was built.

    Args:
        run: its model and average are changed in place.
        report: called with a line for the user.
        resumed: the run's folder; where it has a checkpoint already, nothing is loaded.
    Returns: `weights_from`, for run.json: the run, the checkpoint, its SHA-256 as sha256sum prints it, its epoch, and
        what was not loaded; empty if the config names no weights.
    Raises: ConfigError if there are none, or they are of another model, with both models.
    """
    config = run.config
    if config.weights_from is None or (resumed is not None and (resumed / LAST).exists()):
        return {}
    option = weights_from_option(config)
    try:
        file = find_checkpoint(Path(config.weights_from))
        loaded = checkpoint.load(file)
        digest = sha256_of(file)
    except RunError as error:
        raise ConfigError([Problem(option, error.command_text)]) from None
    model = run.model.state_dict()
    old, new = loaded.header["classes"], list(run.classes)
    head = [] if old == new else _head(model, len(new))
    if len(head) == len(model):
        message = f"{file}: its classes are others, and {config.model.name} has no other weights than its classes'"
        raise ConfigError([Problem(option, message)])
    weights = {name: tensor for name, tensor in loaded.weights.items() if name not in head}
    try:
        check_weights({name: tensor for name, tensor in model.items() if name not in head}, weights, file)
    except RunError as error:
        recorded = _shown(loaded.header["config"].get("model"))
        message = f"{error.command_text}; the run has {recorded}, the config {_shown(config.model.to_dict())}"
        raise ConfigError([Problem(option, message)]) from None
    run.model.load_state_dict(model | weights)
    if run.average is not None:
        run.average.module.load_state_dict(run.model.state_dict())
    epoch = loaded.header["epoch"]
    text = f"starts with the weights of {file} (epoch {epoch})"
    if head:
        text += f"; the {len(new)} classes are others than its {len(old)}, so the head is new: {', '.join(head)}"
    report(text)
    record = {"run": str(file.resolve().parent), "checkpoint": file.name, "sha256": digest, "epoch": epoch, "new": head}
    return {"weights_from": record}


def _head(model: Mapping[str, Tensor], classes: int) -> list[str]:
    """The weights of the last module of a state dict that has an output for each class."""
    modules: dict[str, list[str]] = {}
    for name, tensor in model.items():
        if tensor.ndim and tensor.shape[0] == classes:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    return list(modules.values())[-1] if modules else []


def _shown(model: Any) -> str:
    """A config's model in one line: `cnn (channels [16, 32], hidden 128)`."""
    if not isinstance(model, dict):
        return str(model)
    arguments = ", ".join(f"{key} {value}" for key, value in model.items() if key not in ("name", "weights_from"))
    return f"{model.get('name')} ({arguments})" if arguments else str(model.get("name"))
