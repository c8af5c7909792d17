"""The schedule that depends on how training goes: the learning rate is reduced when a validation metric stagnates."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..argument_types import LOWER_IS_BETTER, Fraction, Metric, NonNegativeFloat, NonNegativeInt, Probability
from .schedules import with_warmup


class ReduceOnPlateau:
    """The learning rate times `factor` when a validation metric has not improved, as torch's ReduceLROnPlateau.

    Args:
        steps: in the whole run.
        steps_per_epoch: in one epoch.
        metric: of the validation split: loss, accuracy or another that `best_metric` can name.
        factor: of each reduction.
        patience: epochs without improvement that are tolerated.
        threshold: the smallest change that counts as an improvement.
        threshold_mode: whether `threshold` is relative to the best value (rel) or absolute (abs).
        cooldown: epochs after a reduction that are not counted.
        min_factor: the smallest factor on the learning rate.
        warmup_epochs: the length of the linear warm-up, in epochs.
        warmup_factor: the factor at which the warm-up begins.
    """

    def __init__(
        self,
        *,
        steps: int,
        steps_per_epoch: int,
        metric: Metric = "loss",
        factor: Fraction = 0.1,
        patience: NonNegativeInt = 10,
        threshold: NonNegativeFloat = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: NonNegativeInt = 0,
        min_factor: Probability = 0.0,
        warmup_epochs: NonNegativeFloat = 0.0,
        warmup_factor: Probability = 0.0,
    ) -> None:
        self.metric = metric
        self._factor = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # its learning rate is the factor
        self._scheduler = ReduceLROnPlateau(
            self._factor,
            "min" if metric in LOWER_IS_BETTER else "max",
            factor,
            patience,
            threshold,
            threshold_mode,
            cooldown,
            min_factor,
            eps=0.0,
        )
        warmup = warmup_epochs * steps_per_epoch
        self._at = with_warmup(lambda step: self._factor.param_groups[0]["lr"], warmup, warmup_factor)

    def __call__(self, step: int) -> float:
        """The factor on the learning rate at a step, counted from 0."""
        return self._at(step)

    def observe(self, validation: Mapping[str, float]) -> None:
        """Called after each epoch with the metrics of the validation split. A NaN is no improvement."""
        self._scheduler.step(validation[self.metric])

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: finite numbers, and null for a best value that does not exist yet."""
        scheduler = self._scheduler
        return {
            "factor": self._factor.param_groups[0]["lr"],
            "best": None if scheduler.best == scheduler.mode_worse else scheduler.best,
            "num_bad_epochs": scheduler.num_bad_epochs,
            "cooldown_counter": scheduler.cooldown_counter,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state` gave. Raises: KeyError or TypeError if it is of another schedule."""
        scheduler = self._scheduler
        self._factor.param_groups[0]["lr"] = float(state["factor"])
        scheduler.best = scheduler.mode_worse if state["best"] is None else float(state["best"])
        scheduler.num_bad_epochs = int(state["num_bad_epochs"])
        scheduler.cooldown_counter = int(state["cooldown_counter"])
