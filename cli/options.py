"""Options that several commands take."""

import enum
import glob
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from softmaxce.argument_types import TEMPERATURES
from softmaxce.config.checker import device_problem
from softmaxce.config.values import show
from softmaxce.errors import ConfigError, Problem, RunError, suggestion


def _in_range(value: float | None) -> float | None:
    low, high = TEMPERATURES
    if value is not None and not low <= value <= high:
        rule = f"must be a number from {low:g} to {high:g}, got {value:g}; 1 changes nothing"
        raise ConfigError([Problem("--temperature", rule)])
    return value


def check_device(value: str | None) -> str | None:
    """A device as it was given. Raises: ConfigError if there is none of this name."""
    if value is not None and (message := device_problem(value)):
        raise ConfigError([Problem("--device", message)])
    return value


def check_folder(value: Path | None) -> Path | None:
    """--data as it was given. Raises: ConfigError if there is no such folder."""
    if value is not None and not value.is_dir():
        raise ConfigError([Problem(f"--data {value}", "there is no such folder")])
    return value


def check_folder_or_table(value: Path | None) -> Path | None:
    """--data as it was given. Raises: ConfigError if there is no such folder, and no such file."""
    return value if value is not None and value.is_file() else check_folder(value)


def run_or_newest(run: Path | None, command: str) -> Path:
    """The run that a command was given, or else the newest under runs/, which holds a run or a checkpoint.

    Raises: RunError if there is none.
    """
    from softmaxce.runs.folder import newest
    from softmaxce.runs.header import find_checkpoint

    run = run if run is not None else newest()
    if run is None:
        raise RunError(f"there is no run under runs/ here; train one, or name a run folder: softmaxce {command} RUN")
    find_checkpoint(run)
    return run


def run_and_paths(words: list[str], command: str) -> tuple[Path, list[str]]:
    """RUN and the paths after it; the newest run if the first word is an image, a folder without a run, a glob or -.

    Raises: RunError if there is no run.
    """
    first = Path(words[0])
    holds_no_run = first.is_dir() and not any((first / name).exists() for name in ("run.json", "config.yaml"))
    holds_no_run = holds_no_run and not any(first.glob("*.safetensors"))
    kind, _ = mimetypes.guess_type(words[0], strict=False)
    is_pattern = glob.has_magic(words[0]) and not first.exists()
    if words[0] == "-" or is_pattern or holds_no_run or (kind or "").startswith("image/"):
        return run_or_newest(None, command), words
    return run_or_newest(first, command), words[1:]


def one_config(argument: str | None, option: str | None) -> str | None:
    """The config that was given as an argument or as --config. Raises: ConfigError if both were."""
    if argument is not None and option is not None:
        message = f"cannot be combined with the argument CONFIG, which is {show(argument)}"
        raise ConfigError([Problem("--config", message)])
    return argument if argument is not None else option


def short_options(lr: str | None, batch_size: str | None, model: str | None) -> list[tuple[str, str, str]]:
    """The key, the text and the option of each that was given."""
    short = (("optimizer.lr", lr, "--lr"), ("data.batch_size", batch_size, "--batch-size"), ("model", model, "--model"))
    return [(key, text, option) for key, text, option in short if text is not None]


def between_commas(texts: Sequence[str] | None) -> list[str]:
    """The values of an option that is repeated, or has several values between commas, or both."""
    return [part.strip() for text in texts or () for part in text.split(",")]


def split_name(text: str) -> "SplitName":
    """A split by its name; `val` is validation. Raises: ConfigError."""
    try:
        return SplitName("validation" if text == "val" else text)
    except ValueError:
        hint = suggestion(text, [*SplitName, "val"])
        raise ConfigError(
            [Problem("--split", f"must be test, validation (or val) or train, got {show(text)}{hint}")]
        ) from None


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


_SPLIT: dict[str, Any] = {"parser": split_name, "metavar": "test|validation|train"}
Split = Annotated[SplitName, typer.Option(**_SPLIT, help="The split of the run's data; val is short for validation.")]
FirstSplit = Annotated[
    SplitName | None,
    typer.Option(
        **_SPLIT,
        help="The split of the run's data; default: test if the run has one, else validation.",
        show_default=False,
    ),
]
_NEWEST = "default: the newest run under runs/."
RunFolder = Annotated[Path | None, typer.Argument(metavar="RUN", help=f"A run folder; {_NEWEST}")]
RunOrCheckpoint = Annotated[Path | None, typer.Argument(metavar="RUN", help=f"A run folder or a checkpoint; {_NEWEST}")]
RunOrExportedModel = Annotated[
    Path | None, typer.Argument(metavar="RUN", help=f"A run folder, a checkpoint or an exported model; {_NEWEST}")
]
ConfigArgument = Annotated[
    str | None, typer.Argument(metavar="CONFIG", help="A YAML file, or a recipe's name (softmaxce config list).")
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", metavar="CONFIG", help="The same as the argument CONFIG.")
]
LearningRate = Annotated[str | None, typer.Option("--lr", metavar="X", help="Short for --set optimizer.lr=X.")]
BatchSize = Annotated[str | None, typer.Option("--batch-size", metavar="N", help="Short for --set data.batch_size=N.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Short for --set model=NAME.")]

Device = Annotated[str | None, typer.Option(callback=check_device, help="auto, cpu, cuda, cuda:N or mps.")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Train N runs at a time, each in a process with its part of the machine."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        callback=check_folder,
        help="The root of the run's data set, if it has moved; its images must be those of the training.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        callback=_in_range,
        metavar="T",
        help="Divide the logits by this before softmax; default: the run's own (softmaxce calibrate), else 1.",
        show_default=False,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Overwrite a file that softmaxce did not write; without this, it is refused.")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the module:Name code that the run's config names; else it is refused.")
]
AllowChangedData = Annotated[
    bool,
    typer.Option(
        "--allow-changed-data",
        help="Use the current images even if the run was trained with others; without this, they are refused.",
    ),
]
