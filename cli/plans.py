"""Which run folder a command trains in: a new one, or the one where the same run has begun or is finished."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from softmaxce.config import reader as configs
from softmaxce.config.keys import Config
from softmaxce.config.reader import Override
from softmaxce.errors import ConfigError, Problem, RunError
from softmaxce.runs.resume import Images, check_resumable, find_run

from .imports import imports


@dataclass(frozen=True)
class Plan:
    """What a command line asks for.

    Attributes:
        config: what is trained.
        resume: the run folder to go on in; None for a new run.
        output: the new run's folder; None for the next under runs/.
        allow_changed_data: go on although the images are others than the run was trained with.
    """

    config: Config
    resume: Path | None
    output: Path | None
    allow_changed_data: bool = False


class ImagesOnDisk:
    """Reads the images that configs name; torch is imported when the first is asked for."""

    def __init__(self) -> None:
        self._read: Callable[[Config], Images] | None = None

    def __call__(self, config: Config) -> Images:
        """A config's images as they are now. Raises: DataError, ConfigError."""
        if self._read is None:
            with imports():
                from softmaxce.runs.provenance import ImagesNow

            self._read = ImagesNow()
        return self._read(config)


def make_plan(
    config: str | None,
    overrides: list[Override],
    output: Path | None,
    resume: str | None,
    *,
    allow_changed_data: bool = False,
) -> Plan:
    """Decide what to train and where; images are read only to find a run. Raises: ConfigError, RunError, DataError."""
    if resume is None:
        return Plan(configs.load(needed(config), overrides), None, output)
    if resume == "auto":
        requested = configs.load(needed(config), overrides)
        return plan_to_resume(requested, output, ImagesOnDisk(), allow_changed_data=allow_changed_data)
    if output is not None and output.resolve() != Path(resume).resolve():
        raise ConfigError([Problem("--output", "a resumed run stays in its own folder; leave --output out")])
    folder = Path(resume)
    if not (folder / "config.yaml").is_file():
        raise RunError(f"--resume {resume}: there is no run in this folder (no config.yaml)")
    requested = configs.load(config if config is not None else str(folder / "config.yaml"), overrides)
    return Plan(check_resumable(folder, requested), folder, None, allow_changed_data)


def plan_to_resume(
    config: Config, output: Path | None, images: Callable[[Config], Images], *, allow_changed_data: bool
) -> Plan:
    """What `--resume auto` does for one run: resume it in `output`, or where it is under runs/, or start it.

    Args:
        config: what is to be trained.
        output: the run's folder; None to look for it.
        images: reads a config's images.
        allow_changed_data: take a run on other images where there is none on these.
    """
    folder = output
    if folder is None:
        parent = Path("runs", config.recipe)
        folder, notes = find_run(config, parent, images, allow_changed_data=allow_changed_data)
        for note in notes:
            typer.echo(note, err=True)
    if folder is not None and (folder / "config.yaml").is_file():
        return Plan(check_resumable(folder, config), folder, None, allow_changed_data)
    return Plan(config, None, output, allow_changed_data)


def needed(config: str | None) -> str:
    """--config's value. Raises: ConfigError if it was left out."""
    if config is None:
        message = "is needed: a YAML file or a recipe's name, for example --config digits"
        raise ConfigError([Problem("--config", message)])
    return config
