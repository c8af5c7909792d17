"""`softmaxce train --seeds` and `--folds`: one config several times, and the statistics of the final metrics."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softmaxce import streams
from softmaxce.config import sweep
from softmaxce.config.reader import Override
from softmaxce.config.sweep import Point
from softmaxce.errors import ConfigError, Problem
from softmaxce.inference.requirements import Requirement
from softmaxce.runs.plan import Plan

from .jobs import start_server, train_all
from .several import FinishedRun, check_all_passed, check_points, final_split, with_one_batch_size
from .startup import fast_imports
from .training import OutputOptions


@dataclass(frozen=True)
class Repetition:
    """What is repeated: a number of seeds, or of folds.

    Attributes:
        seeds, folds: one of the two is None.
        predictions: the file for out-of-fold predictions; None for none.
    """

    seeds: int | None = None
    folds: int | None = None
    predictions: Path | None = None

    @property
    def option(self) -> str | None:
        """The option that repeats a run; None if it is trained once."""
        return "--folds" if self.folds is not None else "--seeds" if self.seeds is not None else None

    def check(self) -> None:
        """Refuse options that contradict each other. Raises: ConfigError, RunError."""
        if self.folds is not None and self.seeds is not None:
            raise ConfigError([Problem("--folds", "cannot be combined with --seeds; run it once with each --seed")])
        if self.predictions is None:
            return
        if self.folds is None:
            message = "is for the predictions of --folds; of a run they are written by softmaxce eval"
            raise ConfigError([Problem("--save-predictions", message)])
        from softmaxce.report import prediction_table

        prediction_table.check_table(self.predictions, "--save-predictions")

    def points(self, config: str, overrides: Sequence[Override]) -> list[Point]:
        """The runs. Raises: ConfigError."""
        if self.folds is not None:
            return sweep.folds(config, self.folds, overrides)
        return sweep.seeds(config, self.seeds or 1, overrides)


def train_repeatedly(
    repetition: Repetition,
    points: Sequence[Point],
    plans: Sequence[Plan],
    requirements: list[Requirement],
    options: OutputOptions,
    jobs: int | None,
) -> None:
    """Train one config with several seeds or folds, and print the statistics of their final metrics."""
    points, plans = with_one_batch_size(points, plans, alike=True, jobs=jobs)
    if jobs is not None:  # what is wrong with all of them is reported once
        start_server()
        check_points(points[:1], plans[:1], requirements)
    runs = train_all(points, plans, requirements, options, jobs)
    split = final_split(runs)
    rows = [(run.point.label, run.folder, run.record[split]) for run in runs if split in run.record]
    if len(rows) > 1:
        with fast_imports():
            from softmaxce.report import console, seeds

        metrics = seeds.summarize((repetition.option or "").lstrip("-"), split, rows)
        if options.json:
            streams.json_text(jsonlib.dumps(metrics.to_dict()))
        else:
            seeds.print_seeds(metrics, console.stdout())
    if repetition.predictions is not None:
        _save_predictions(repetition.predictions, points, runs)
    check_all_passed(points, runs)


def _save_predictions(file: Path, points: Sequence[Point], runs: Sequence[FinishedRun]) -> None:
    """Write the out-of-fold predictions, if every fold has been trained."""
    finished = [run.point.label for run in runs]
    if missing := [point.label for point in points if point.label not in finished]:
        streams.warning(f"{file} is not written: {', '.join(missing)} failed; --resume auto trains what is missing")
        return
    with fast_imports():
        from softmaxce.inference.out_of_fold import out_of_fold_predictions
        from softmaxce.report.prediction_table import write_table

    write_table(*out_of_fold_predictions([run.folder for run in runs]), file)
    streams.line(f"out-of-fold predictions: {file}", err=True)
