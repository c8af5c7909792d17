"""How a training run ended: what `session.train` returns, reporters get and `train --json` prints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs.folder import Status
from ..training.tally import Scores
from .requirements import RequirementResult


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: completed or stopped_early; reporters also see failed, interrupted and terminated.
        folder: the run folder.
        epochs: completed epochs, earlier parts of the run included.
        seconds: of all parts of the run; evaluating a finished run again adds none.
        best_epoch: the epoch with the best validation metric, counted from 1; 0 without a validation split.
        best_metric: the metric that selected it.
        best_value: its value on the validation split.
        split: the split that `scores` were measured on.
        scores: the final evaluation; None if there was none.
        requirements: each requirement with the measured value.
        message: why the run did not complete; empty if it did.
        objects: the keywords of the Python objects that it was trained with, which loading it needs again.
    """

    status: Status
    folder: Path
    epochs: int
    seconds: float
    best_epoch: int = 0
    best_metric: str = ""
    best_value: float | None = None
    split: str = "test"
    scores: Scores | None = None
    requirements: tuple[RequirementResult, ...] = ()
    message: str = ""
    objects: tuple[str, ...] = ()

    @property
    def requirements_met(self) -> bool:
        """Whether every requirement is met; True if there are none."""
        return all(result.met for result in self.requirements)

    def to_dict(self) -> dict[str, Any]:
        """The `end` event of `train --json`."""
        line: dict[str, Any] = {"event": "end", "run": str(self.folder), "status": self.status, "epochs": self.epochs}
        if self.best_epoch:
            line["best_epoch"] = self.best_epoch
        if self.scores is not None:
            line[self.split] = self.scores.to_dict()
        if self.requirements:
            line["requirements"] = [result.to_dict() for result in self.requirements]
        if self.message:
            line["message"] = self.message
        return {**line, "seconds": round(self.seconds, 3)}
