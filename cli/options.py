"""Options that several commands take."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from softmaxce.errors import ConfigError, Problem, RunError


def _above_zero(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise ConfigError([Problem(f"--temperature {value:g}", "must be a number above 0; 1 leaves the logits as is")])
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
        callback=_above_zero,
        help="What the logits are divided by before softmax; the run's own (softmaxce calibrate), else 1, if left out.",
        show_default=False,
    ),
]
AllowChangedData = Annotated[
    bool,
    typer.Option(
        "--allow-changed-data",
        help="Use the images there are now, though the run was trained with others; else refused.",
    ),
]


class SplitName(enum.StrEnum):
    """The splits a run has."""

    test = "test"
    validation = "validation"
    train = "train"


class Tta(enum.StrEnum):
    """The test-time augmentations."""

    none = "none"
    flip = "flip"
    crops = "crops"
    flip_crops = "flip_crops"
