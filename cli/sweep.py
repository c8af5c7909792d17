"""`softmaxce sweep`: train every combination of some config values and compare the runs."""

from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams
from softmaxce.config.reader import Override
from softmaxce.errors import ConfigError, Problem
from softmaxce.inference import requirements

from .options import (
    AllowChangedData,
    BatchSize,
    ConfigArgument,
    ConfigOption,
    Device,
    Jobs,
    LearningRate,
    Model,
    one_config,
    short_options,
)
from .processes import refuse_if_launched
from .startup import fast_imports


def sweep(
    name: ConfigArgument = None,
    config: ConfigOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE,VALUE", help="A key and its values, e.g. optimizer.lr=0.01,0.03."),
    ] = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    model: Model = None,
    device: Device = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs of each run.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="A folder for all run folders; default: runs/<recipe>/<number> each.")
    ] = None,
    jobs: Jobs = None,
    resume: Annotated[
        str | None, typer.Option(metavar="auto", help="auto: resume the runs that exist; start the others.")
    ] = None,
    allow_changed_data: AllowChangedData = False,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC>=N", help="Require a final metric of every run; exit 1 if one does not meet it."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON Lines on stdout and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the results.")] = False,
) -> None:
    """Train every combination of the values, and rank the runs by their metric on the validation split.

    The runs are ranked by their best_metric, not on the test split. Every combination is built before the first is
    trained; combinations that give the same config are trained once. Each run keeps its own run folder.
    """
    from softmaxce.config.sweep import grid

    from .jobs import check_jobs, start_server, train_all
    from .several import check_all_passed, check_options, check_points, final_split, make_plans, with_one_batch_size
    from .training import OutputOptions, require_config

    check_options(resume, dry_run=False)
    check_jobs(jobs)
    flags = (("device", device), ("epochs", epochs))
    refuse_if_launched("sweep")
    overrides = [Override((name,), value, f"--{name}") for name, value in flags if value is not None]
    required = requirements.parse(require or [])
    sets = [*(set_ or []), *(f"{key}={text}" for key, text, _ in short_options(lr, batch_size, model))]
    if not sets:
        raise ConfigError(
            [Problem("--set", "is required: a key and its values, for example --set optimizer.lr=0.01,0.03")]
        )
    points = grid(require_config(one_config(name, config)), sets, overrides)
    plans = make_plans(points, output, resume == "auto", allow_changed_data=allow_changed_data)
    points, plans = with_one_batch_size(points, plans, alike=False, jobs=jobs)
    if jobs is not None:
        start_server()
    check_points(points, plans, required)
    finished = train_all(points, plans, required, OutputOptions(json=json, quiet=quiet), jobs)
    if len(finished) > 1:
        with fast_imports():
            from softmaxce.inference.compare import compare
            from softmaxce.report import comparison, console
            from softmaxce.runs.listing import best_first

        roots = {run.folder: run.point.config.root for run in finished}  # a finished run's data may have moved
        folders, metric = best_first([run.folder for run in finished])
        result = compare(
            folders,
            final_split(finished),
            device,
            roots=[roots[folder] for folder in folders],
            trust_code=True,
            allow_changed_data=allow_changed_data,
        )
        if json:
            import json as jsonlib

            event = {"event": "comparison", "ranked_by": f"validation {metric}", **result.to_dict()}
            streams.json_text(jsonlib.dumps(event))
        else:
            labels = {run.folder: run.point.label for run in finished}
            comparison.print_ranking(result, [labels[folder] for folder in folders], metric, console.stdout())
            comparison.print_comparison(result, console.stdout())
    check_all_passed(points, finished)
