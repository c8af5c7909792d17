"""The teacher of a distillation, read from its run: `distillation.teacher`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..build import build_model
from ..config.keys import Config
from ..config.reader import as_recorded, from_dict
from ..config.users_code import users_code
from ..errors import ConfigError, Problem, RunError
from ..files import sha256_of
from ..losses.interface import mean_divisor, reduction_of
from ..runtime.random_state import random_state, restore_random_state
from ..training.distillation import Teacher
from ..training.run import Run
from . import checkpoint
from .checkpoint import Checkpoint
from .folder import read_record
from .header import find_checkpoint, resizing_of

KEY = "distillation.teacher"


def load(run: Run, report: Callable[[str], None], resumed: Path | None = None) -> dict[str, Any]:
    """Load the teacher that the config names, in each process of the run. Random numbers stay as they were.

    Args:
        run: gets its `teacher`.
        report: called with a line for the user.
        resumed: the folder of a run that is continued: its run.json has the SHA-256 that the teacher must have.
    Returns: `distillation`, for run.json: the teacher's checkpoint, its SHA-256 as sha256sum prints it, and its epoch;
        empty if the config names none.
    Raises: ConfigError if there is no such run, or it does not suit the student; RunError if it has changed.
    """
    distillation = run.config.distillation
    if distillation is None:
        return {}
    location = run.config.options.get(KEY, KEY)
    before = random_state()
    with run.group.together():
        _check_loss(run)
        try:
            loaded = checkpoint.load(find_checkpoint(Path(distillation.teacher)))
            digest = sha256_of(loaded.file)
            if message := _unfit(run, loaded):
                raise ConfigError([Problem(location, f"{loaded.file}: {message}")])
            model = build_model(
                _config(loaded, run.config), run.preprocessing, len(run.classes), run.device, weights_follow=True
            )
            checkpoint.load_weights(model, loaded)
        except RunError as error:
            raise ConfigError([Problem(location, error.command_text)]) from None
        finally:
            restore_random_state(before)
        if any(other != digest for other in run.group.gather(digest)):
            raise RunError(f"{loaded.file}: is another file on another machine; every process needs the same teacher")
        if resumed is not None and run.group.rank == 0:
            _check_unchanged(resumed, loaded.file, digest)
    run.teacher = Teacher(model, distillation.temperature, distillation.weight)
    epoch = loaded.header["epoch"]
    if run.group.rank == 0:
        report(f"teacher {loaded.file} (epoch {epoch}), {loaded.header['config']['model']['name']}")
    return {"distillation": {"teacher": str(loaded.file.resolve()), "sha256": digest, "epoch": epoch}}


def _config(loaded: Checkpoint, student: Config) -> Config:
    """The teacher's config; code outside softmaxce only where the student's config names it too. Raises: RunError."""
    config = from_dict(as_recorded(loaded.header["config"]), str(loaded.file), loaded.header["recipe"])
    if ":" in config.model.name and not config.model.implied and config.model.name not in users_code(student):
        raise RunError(
            f"{loaded.file}: its model is code outside softmaxce, {config.model.name}, which is run for a teacher only "
            "if the config names it too"
        )
    return replace(config, recorded=True)


def _unfit(run: Run, loaded: Checkpoint) -> str:
    """Why a checkpoint cannot teach a run; empty if it can."""
    header: Mapping[str, Any] = loaded.header
    images, own = header["preprocessing"], run.preprocessing
    if header["classes"] != list(run.classes):
        return f"its classes are others than the run's: {len(header['classes'])} and {len(run.classes)}, in order"
    if images["shape"] != list(own.shape):
        shapes = ("x".join(map(str, shape)) for shape in (images["shape"], own.shape))
        return "its images are {}, and the run's {}; both see the same images".format(*shapes)
    if images["mean"] != list(own.mean) or images["std"] != list(own.std):
        return (
            "its images are normalized otherwise; give the run the same: "
            f"data.normalize: {{mean: {images['mean']}, std: {images['std']}}}"
        )
    if resizing_of(header) != own.resizing:
        return "its images are resized otherwise (data.fit, data.interpolation, data.decode, data.depth, data.icc)"
    return ""


def _check_loss(run: Run) -> None:
    """Refuse a loss with which the teacher's term, a mean over images, cannot be averaged. Raises: ConfigError."""
    location = run.config.loss.location or "loss"
    if reduction_of(run.loss) == "sum":
        raise ConfigError(
            [Problem(location, "distillation needs a loss that is a mean over images, not reduction: sum")]
        )
    divides = mean_divisor(run.loss, run.train.labels[:1])
    if not isinstance(divides, int) and (run.config.grad_accum_steps > 1 or not run.group.is_single):
        message = "distillation with a weighted mean needs whole batches: one process, and no grad_accum_steps"
        raise ConfigError([Problem(location, message)])


def _check_unchanged(folder: Path, file: Path, digest: str) -> None:
    """Raises: RunError if the run in a folder was trained with another teacher."""
    record = read_record(folder) if (folder / "run.json").is_file() else {}
    recorded = record.get("distillation")
    before = recorded.get("sha256") if isinstance(recorded, dict) else None
    if before is not None and before != digest:
        raise RunError(
            f"{folder}: its teacher {file} has changed: its SHA-256 was {str(before)[:12]}... and is {digest[:12]}...; "
            "restore it, or start a new run"
        )
