"""Warnings about a run's epochs: their number, a negative loss, none that is the best; and the refusal of too few."""

import math
from dataclasses import replace
from pathlib import Path

from ..build import build_schedule
from ..config import reader as configs
from ..config.keys import Config
from ..errors import RunError
from ..training.run import Epoch, Run
from ..training.step import steps_per_epoch
from .folder import read_metrics


def check_length(config: Config) -> list[str]:
    """Warnings where a run, shortened for a trial perhaps, ends before something that its config announces."""
    epochs, warnings = config.epochs, []
    warmup = config.schedule.arguments.get("warmup_epochs")
    if isinstance(warmup, int | float) and warmup > epochs:
        lengths = f"schedule.warmup_epochs is {warmup:g} and epochs is {epochs}"
        warnings.append(f"{lengths}: the learning rate does not reach optimizer.lr")
    unfreeze = config.fine_tuning.unfreeze_epoch if config.fine_tuning is not None else None
    if unfreeze is not None and unfreeze > epochs:
        warnings.append(
            f"fine_tuning.unfreeze_epoch is {unfreeze} and epochs is {epochs}: the last layer alone is trained"
        )
    if config.swa is not None and config.swa.start_epoch > epochs:
        warnings.append(f"swa.start_epoch is {config.swa.start_epoch} and epochs is {epochs}: nothing is averaged")
    return warnings


def check_sign(config: Config, folder: Path, epoch: Epoch) -> list[str]:
    """A warning at a run's first epoch with a negative training loss, which cross-entropy never is."""
    if epoch.train.loss >= 0 or any(line["train"]["loss"] < 0 for line in read_metrics(folder)[:-1]):
        return []
    test = "softmaxce.check_loss(loss)" if config.loss.is_object else f"softmaxce check-loss {config.loss.name}"
    loss = f"the training loss of epoch {epoch.number} is negative, {epoch.train.loss:.4g}; cross-entropy never is"
    return [f"{loss}: a minus or a log_softmax may be missing; check it with {test}"]


def check_best(run: Run, folder: Path) -> list[str]:
    """A warning at the end of a run with a validation split in which no epoch could be the best."""
    metric = run.config.best_metric
    values = [line["validation"][metric] for line in read_metrics(folder) if "validation" in line]
    if run.progress.best_epoch or not values or any(map(math.isfinite, values)):
        return []
    return [f"no epoch is the best, as none has a finite validation {metric}; the last one is tested"]


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
