"""`softmaxce train --seeds`: one config with several seeds, and the statistics of the final metrics."""

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path

from softmaxce import streams
from softmaxce.config.sweep import Point
from softmaxce.inference.requirements import Requirement

from .jobs import start_server, train_all
from .several import check_all_passed, check_points, final_split, make_plans
from .startup import fast_imports
from .training import OutputOptions


def train_seeds(
    points: Sequence[Point],
    output: Path | None,
    resume: bool,
    requirements: list[Requirement],
    options: OutputOptions,
    *,
    jobs: int | None = None,
    allow_changed_data: bool = False,
) -> None:
    """Train one config with several seeds, and print the statistics of their final metrics."""
    plans = make_plans(points, output, resume, allow_changed_data=allow_changed_data)
    if jobs is not None:  # what is wrong with all of them is reported once
        start_server()
        check_points(points[:1], plans[:1], requirements)
    runs = train_all(points, plans, requirements, options, jobs)
    split = final_split(runs)
    rows = [(run.point.label, run.folder, run.record[split]) for run in runs if split in run.record]
    if len(rows) > 1:
        with fast_imports():
            from softmaxce.report import console, seeds

        metrics = seeds.summarize(split, rows)
        if options.json:
            streams.json_text(jsonlib.dumps(metrics.to_dict()))
        else:
            seeds.print_seeds(metrics, console.stdout())
    check_all_passed(points, runs)
