"""Options that several commands take."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from softmaxce.argument_types import TEMPERATURES
from softmaxce.errors import ConfigError, Problem, RunError


def _in_range(value: float | None) -> float | None:
    low, high = TEMPERATURES
    if value is not None and not low <= value <= high:
        rule = f"must be a number from {low:g} to {high:g}; 1 changes nothing"
        raise ConfigError([Problem(f"--temperature {value:g}", rule)])
    return value


def run_or_newest(run: Path | None, command: str) -> Path:
    """The run that a command was given, or else the newest under runs/. Raises: RunError if there is none."""
    from softmaxce.runs.folder import newest

    run = run if run is not None else newest()
    if run is None:
        raise RunError(f"there is no run under runs/ here; train one, or name a run folder: softmaxce {command} RUN")
    return run


Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        callback=_in_range,
        help="Divide the logits by this before softmax; default: the run's own (softmaxce calibrate), else 1.",
        show_default=False,
    ),
]
AllowChangedData = Annotated[
    bool,
    typer.Option(
        "--allow-changed-data",
        help="Use the current images even if the run was trained with others; without this, they are refused.",
    ),
]


class SplitName(enum.StrEnum):
    """The splits of a data set."""

    test = "test"
    validation = "validation"
    train = "train"


class Tta(enum.StrEnum):
    """Test-time augmentations."""

    none = "none"
    flip = "flip"
    crops = "crops"
    flip_crops = "flip_crops"
