"""The types of run.json and of a line of metrics.jsonl. Keys that are not listed are kept unchecked."""

import math
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Predicate
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..argument_types import NonNegativeInt, Probability
from ..errors import RunError

Seconds = Annotated[float, Field(ge=0, le=1e12)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Scores(_Strict):
    loss: float
    accuracy: Probability


class _TrainingScores(_Scores):
    accuracy: Probability | Annotated[float, Predicate(math.isnan)]  # every step was skipped


NONE = _Scores(loss=0.0, accuracy=0.0)  # where a split is left out


class _Record(_Strict):
    recipe: str = ""
    status: str = ""  # another version's may be none of Status
    started: str = ""
    message: str = ""
    job: str | None = None
    classes: list[Any] = []
    commands: list[Any] = []
    earlier_environments: list[Any] = []
    requirements: list[Any] = []
    epochs: NonNegativeInt = 0
    best_epoch: NonNegativeInt = 0
    seconds: Seconds = 0.0
    environment: dict[str, Any] = {}
    resolved: dict[str, Any] = {}
    validation: _Scores = NONE
    test: _Scores = NONE


class _Epoch(_Strict):
    epoch: NonNegativeInt
    learning_rate: float = 0.0
    images_per_second: float = 0.0
    seconds: Seconds = 0.0
    train: _Scores | _TrainingScores = NONE
    validation: _Scores = NONE
    test: _Scores = NONE


def check_record(record: Any, file: Path) -> dict[str, Any]:
    """The record as read, once its types are checked. Raises: RunError, with the entry that is wrong."""
    if not isinstance(record, dict):
        raise RunError(f"{file}: is damaged: it must be a JSON object")
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RunError(f"{file}: is damaged: its '{key[:100]}' is wrong: {first['msg']}") from None
    return record


def is_epoch(line: Any) -> bool:
    """Whether a line of metrics.jsonl is what Epoch.to_dict gives."""
    try:
        _Epoch.model_validate(line)
    except ValidationError:  # the answer is no
        return False
    return True
