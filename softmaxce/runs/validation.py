"""Whether a checkpoint is valid and fits a model, checked before the model is changed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..argument_types import NonNegativeInt
from ..errors import RunError
from .header import Finite

SHOWN = 3  # differences listed of each kind


@dataclass(frozen=True)
class _Progress:
    epoch: NonNegativeInt
    batch: NonNegativeInt
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    nonfinite: NonNegativeInt
    best_epoch: NonNegativeInt
    best_value: Finite | None
    best_sha256: str | None
    epochs_without_improvement: NonNegativeInt
    reference_value: Finite | None
    schedule: dict[str, Finite | None] | None


PROGRESS = TypeAdapter(_Progress)
RENAMED = {"waited": "epochs_without_improvement", "waited_from": "reference_value"}  # earlier versions' names


def rename_progress(state: dict[str, Any]) -> None:
    """Give the progress in a training state of an earlier version the names of today, in place."""
    if isinstance(progress := state.get("progress"), dict):
        renamed = {RENAMED.get(name, name): value for name, value in progress.items()}
        state["progress"] = {"schedule": None, **renamed}


def check_progress(state: Mapping[str, Any], file: Path) -> None:
    """Check the progress in a training state. Raises: RunError, with the entry that is wrong."""
    progress = state.get("progress")
    names = set(_Progress.__dataclass_fields__)
    if not isinstance(progress, dict) or set(progress) != names:
        raise RunError(f"{file}: is damaged: its training.progress is not a mapping of {', '.join(sorted(names))}")
    try:
        PROGRESS.validate_python(progress, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{file}: is damaged: its training.progress.{where} is wrong: {first['msg']}") from None


def check_weights(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], file: Path) -> None:
    """Compare a checkpoint's weights with a model's by name, shape and dtype. Raises: RunError saying what differs.

    Args:
        expected: the model's state dict; parameters without a shape yet (lazy layers) fit any.
        weights: the checkpoint's.
        file: the checkpoint, for the message.
    """
    shaped = {name: tensor for name, tensor in expected.items() if not is_lazy(tensor)}
    both = [name for name in shaped if name in weights]
    differences = [
        *_listed("it lacks", [f"'{name}'" for name in expected if name not in weights]),
        *_listed("the model has no", [f"'{name}'" for name in weights if name not in expected]),
        *_listed(
            "with another shape:",
            [
                f"'{name}' is {list(weights[name].shape)} but in the model {list(shaped[name].shape)}"
                for name in both
                if weights[name].shape != shaped[name].shape
            ],
        ),
        *_listed(
            "with another dtype:",
            [
                f"'{name}' is {_dtype(weights[name])} but in the model {_dtype(shaped[name])}"
                for name in both
                if weights[name].dtype != shaped[name].dtype
            ],
        ),
    ]
    if differences:
        raise RunError(f"{file}: its weights are of another model: {'; '.join(differences)}")


def check_state(expected: Any, state: Any, file: Path, path: str = "training") -> None:
    """Compare a training state with one of the same run, by keys, types and shapes. Raises: RunError with the path.

    Args:
        expected: nested dicts, lists, tensors, numbers, strings and None, as the run itself would save it.
        state: the checkpoint's. An integer may replace a float; None matches any number or string, and vice versa.
        file: the checkpoint, for the message.
        path: of this part of the state, for the message.
    """
    if difference := _difference(expected, state):
        raise RunError(f"{file}: is damaged: its {path[:100]} is {difference}")
    if isinstance(expected, dict):
        for key, value in expected.items():
            check_state(value, state[key], file, f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        for index, (value, other) in enumerate(zip(expected, state, strict=True)):
            check_state(value, other, file, f"{path}.{index}")


def _difference(expected: Any, state: Any) -> str:
    """How `state` differs from `expected`, apart from what they contain; empty if it does not."""
    if isinstance(expected, Tensor):
        if not isinstance(state, Tensor):
            return f"not a tensor but {_describe(state)}"
        if (state.shape, state.dtype) != (expected.shape, expected.dtype):
            return f"{_dtype(state)} {list(state.shape)}, not {_dtype(expected)} {list(expected.shape)}"
        return ""
    if isinstance(expected, dict):
        if not isinstance(state, dict):
            return f"not a mapping but {_describe(state)}"
        missing, extra = (
            [str(key)[:50] for key in a if key not in b] for a, b in ((expected, state), (state, expected))
        )
        return "; ".join([*_listed("without", missing), *_listed("with", extra)])
    if isinstance(expected, list | tuple):
        if not isinstance(state, list):
            return f"not a list but {_describe(state)}"
        return "" if len(state) == len(expected) else f"a list of {len(state)}, not of {len(expected)}"
    return _scalar_difference(expected, state)


def _scalar_difference(expected: Any, state: Any) -> str:
    if isinstance(state, Tensor | dict | list):
        return f"not a single value but {_describe(state)}"
    if isinstance(state, float) and not math.isfinite(state):
        return str(state)
    if expected is None or state is None or _same_type(expected, state):
        return ""
    return f"{_describe(state)}, not {_describe(expected)}"


def _same_type(expected: Any, state: Any) -> bool:
    if isinstance(expected, bool) or isinstance(state, bool):
        return type(expected) is type(state)
    return isinstance(state, int | float) if isinstance(expected, float) else isinstance(state, type(expected))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    words = {
        dict: "a mapping",
        list: "a list",
        tuple: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return words.get(type(value), "an integer" if isinstance(value, int) else "a number")


def _listed(what: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"{what} {', '.join(item[:150] for item in items[:SHOWN])}{more}"]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
