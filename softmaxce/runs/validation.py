"""Whether a checkpoint is what it says and fits a model, asked before the model is touched."""

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

SHOWN = 3  # differences told of each kind


@dataclass(frozen=True)
class _Progress:
    epoch: NonNegativeInt
    batch: NonNegativeInt
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    nonfinite: NonNegativeInt
    best_epoch: NonNegativeInt
    best_value: Finite | None
    best_sha256: str | None
    waited: NonNegativeInt
    waited_from: Finite | None


PROGRESS = TypeAdapter(_Progress)


def check_progress(state: Mapping[str, Any], file: Path) -> None:
    """Check how far a training state says its run has come. Raises: RunError, with the entry that is wrong."""
    found = state.get("progress")
    names = set(_Progress.__dataclass_fields__)
    if not isinstance(found, dict) or set(found) != names:
        raise RunError(f"{file}: is damaged: its training.progress is no mapping of {', '.join(sorted(names))}")
    try:
        PROGRESS.validate_python(found, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{file}: is damaged: its training.progress.{where} is wrong: {first['msg']}") from None


def check_weights(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], file: Path) -> None:
    """Compare a checkpoint's weights with a model's by name, shape and dtype. Raises: RunError saying what differs.

    Args:
        wanted: the model's state dict; what is not shaped yet (lazy layers) fits anything.
        weights: the checkpoint's.
        file: the checkpoint, for the message.
    """
    shaped = {name: tensor for name, tensor in wanted.items() if not is_lazy(tensor)}
    both = [name for name in shaped if name in weights]
    differences = [
        *_told("it lacks", [f"'{name}'" for name in wanted if name not in weights]),
        *_told("the model has no", [f"'{name}'" for name in weights if name not in wanted]),
        *_told(
            "of another shape:",
            [
                f"'{name}' is {list(weights[name].shape)} and the model's {list(shaped[name].shape)}"
                for name in both
                if weights[name].shape != shaped[name].shape
            ],
        ),
        *_told(
            "of another type:",
            [
                f"'{name}' is {_dtype(weights[name])} and the model's {_dtype(shaped[name])}"
                for name in both
                if weights[name].dtype != shaped[name].dtype
            ],
        ),
    ]
    if differences:
        raise RunError(f"{file}: its weights are of another model: {'; '.join(differences)}")


def check_state(wanted: Any, state: Any, file: Path, place: str = "training") -> None:
    """Compare a training state with one of the same run, by keys, types and shapes. Raises: RunError saying where.

    Args:
        wanted: a nest of dicts, lists, tensors, numbers, texts and None, as the run itself would save it.
        state: the checkpoint's. A whole number may stand for a number; where `wanted` has None there may be any plain
            value, and the other way round.
        file: the checkpoint, for the message.
        place: where in the state this is.
    """
    wrong = ""
    if isinstance(wanted, Tensor):
        if not isinstance(state, Tensor):
            wrong = f"no tensor but {_kind(state)}"
        elif (state.shape, state.dtype) != (wanted.shape, wanted.dtype):
            wrong = f"{_dtype(state)} {list(state.shape)}, and not {_dtype(wanted)} {list(wanted.shape)}"
    elif isinstance(wanted, dict):
        if not isinstance(state, dict):
            wrong = f"no mapping but {_kind(state)}"
        elif wanted.keys() != state.keys():
            lacking, other = (
                [str(key)[:50] for key in a if key not in b] for a, b in ((wanted, state), (state, wanted))
            )
            wrong = "; ".join([*_told("without", lacking), *_told("with", other)])
        else:
            for key, value in wanted.items():
                check_state(value, state[key], file, f"{place}.{key}")
    elif isinstance(wanted, list | tuple):
        if not isinstance(state, list):
            wrong = f"no list but {_kind(state)}"
        elif len(state) != len(wanted):
            wrong = f"a list of {len(state)}, and not of {len(wanted)}"
        else:
            for index, (value, found) in enumerate(zip(wanted, state, strict=True)):
                check_state(value, found, file, f"{place}.{index}")
    elif isinstance(state, Tensor | dict | list):
        wrong = f"no plain value but {_kind(state)}"
    elif isinstance(state, float) and not math.isfinite(state):
        wrong = str(state)
    elif wanted is not None and state is not None and not _alike(wanted, state):
        wrong = f"{_kind(state)}, and not {_kind(wanted)}"
    if wrong:
        raise RunError(f"{file}: is damaged: its {place[:100]} is {wrong}")


def _alike(wanted: Any, state: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(state, bool):
        return type(wanted) is type(state)
    return isinstance(state, int | float) if isinstance(wanted, float) else isinstance(state, type(wanted))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    words = {
        dict: "a mapping",
        list: "a list",
        tuple: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return words.get(type(value), "a whole number" if isinstance(value, int) else "a number")


def _told(what: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"{what} {', '.join(item[:150] for item in items[:SHOWN])}{more}"]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
