"""What a run's number of epochs means for its schedule: warnings, and the refusal of fewer epochs than are trained."""

from dataclasses import replace
from pathlib import Path

from ..build import build_schedule
from ..config import reader as configs
from ..config.keys import Config
from ..errors import RunError
from ..training.run import Run
from ..training.step import steps_per_epoch


def check_warmup(config: Config) -> list[str]:
    """A warning where the warm-up is longer than the run, so that the learning rate never reaches optimizer.lr."""
    warmup = config.schedule.arguments.get("warmup_epochs")
    if not isinstance(warmup, int | float) or warmup <= config.epochs:
        return []
    lengths = f"schedule.warmup_epochs is {warmup:g} and epochs is {config.epochs}"
    return [f"{lengths}: the learning rate does not reach optimizer.lr"]


def check_resumed(run: Run, folder: Path) -> list[str]:
    """A warning where another number of epochs than in the folder's config.yaml changes the learning rate.

    Args:
        run: restored from the folder's checkpoint.
        folder: the run folder.
    Raises: RunError if more epochs have begun than the run has now.
    """
    progress, config = run.progress, run.config
    begun = progress.epoch + (progress.batch > 0)
    if begun > config.epochs:
        raise RunError(
            f"{folder}: {begun} epochs are trained or begun, so epochs must be at least {begun}, got {config.epochs}; "
            "start a new run for fewer"
        )
    before = configs.load(str(folder / "config.yaml")).epochs
    step = progress.epoch * steps_per_epoch(len(run.train), config.grad_accum_steps)
    step += steps_per_epoch(progress.batch, config.grad_accum_steps)
    old, new = (build_schedule(replace(config, epochs=number), len(run.train)) for number in (before, config.epochs))
    if before == config.epochs or old(step) == new(step):
        return []
    rate = run.optimizer.param_groups[0]["initial_lr"]
    last, following = (f"{rate * factor:.3g}" for factor in (old(max(0, step - 1)), new(step)))
    lengths = f"with {config.epochs} epochs instead of {before}"
    rates = f"the next step's learning rate is {following}; the last step's was {last}"
    return [f"{folder}: schedule {config.schedule.name} spans the run: {lengths} {rates}"]
