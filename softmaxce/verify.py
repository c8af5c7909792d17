"""Whether a checkpoint is what it says and fits a model, asked before the model is touched."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor
from torch.nn.parameter import is_lazy

from .errors import RunError
from .kinds import NonNegativeInt, PositiveFloat, PositiveInt

SHOWN = 3  # differences told of each kind
MAX_VALUES = 1 << 26  # in one image: what a header asks for is allocated before anything else is known of it

Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class _Preprocessing:
    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    mean: list[Finite]
    std: list[PositiveFloat]


@dataclass(frozen=True)
class _Header:
    epoch: NonNegativeInt
    recipe: str
    config: dict[str, Any]
    classes: Annotated[list[str], Field(min_length=2)]
    class_counts: list[NonNegativeInt]
    preprocessing: _Preprocessing


HEADER = TypeAdapter(_Header)


def check_header(header: Mapping[str, Any], file: Path) -> None:
    """Check what a checkpoint says of itself. Raises: RunError, with the entry that is wrong.

    Args:
        header: epoch, recipe, config, classes, class_counts, preprocessing; what else there is, is not looked at.
        file: the checkpoint, for the message.
    """
    known = {name: header[name] for name in _Header.__dataclass_fields__ if name in header}
    try:
        read = HEADER.validate_python(known, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{file}: is damaged: its header's '{where[:100]}' is wrong: {first['msg']}") from None
    channels, height, width = read.preprocessing.shape
    wrong = ""
    if len(set(read.classes)) != len(read.classes) or len(read.class_counts) != len(read.classes):
        wrong = f"{len(read.classes)} class names, some alike or without their count of images"
    elif len(read.preprocessing.mean) != channels or len(read.preprocessing.std) != channels:
        wrong = f"no mean and std for each of {channels} channels"
    elif channels * height * width > MAX_VALUES:
        wrong = f"images of {channels}x{height}x{width} values, more than {MAX_VALUES:,}"
    if wrong:
        raise RunError(f"{file}: is damaged: its header tells of {wrong}")


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


def _told(what: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"{what} {', '.join(item[:150] for item in items[:SHOWN])}{more}"]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
