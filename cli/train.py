"""`softmaxce train`: train from a config, print a row per epoch, save everything in a run folder.

The command's function is long because each option is an argument.
"""

import enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from softmaxce import streams
from softmaxce.config import reader as configs
from softmaxce.config.reader import Override
from softmaxce.errors import FAILED
from softmaxce.inference import requirements
from softmaxce.report.loggers.names import check_loggers
from softmaxce.runtime.process_group import launched

from .jobs import check_jobs
from .launcher import check_processes, launch, number_of_processes
from .options import (
    AllowChangedData,
    BatchSize,
    ConfigArgument,
    ConfigOption,
    Device,
    Jobs,
    LearningRate,
    Model,
    TrustCode,
    one_config,
    short_options,
)
from .processes import Request, train_in_group
from .seeds import Repetition, train_repeatedly
from .several import check_options, make_plans
from .startup import fast_imports
from .training import OutputOptions, require_config, train_one


class LogName(enum.StrEnum):
    """Programs that a run can also be logged to."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"
    wandb = "wandb"


def train(
    name: ConfigArgument = None,
    config: ConfigOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. optimizer.lr=0.05.")
    ] = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    model: Model = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, shuffling, augmentation and splits.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Train N runs, with the config's seed and those after it.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, max=1000, metavar="N", help="Cross-validate: train N runs, each with another test fold."),
    ] = None,
    save_predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --folds, also write the out-of-fold predictions to FILE.csv or FILE.parquet."
        ),
    ] = None,
    jobs: Jobs = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.")] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="Start with the weights of another run, or of a checkpoint."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The run folder (with --seeds or --folds, a folder for all of them); default: runs/<recipe>/<number>."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|RUN", help="Resume a run folder; auto: resume this run, or start it if new."),
    ] = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC>=N", help="Require a final metric, e.g. 'accuracy>=0.99'; exit 1 if not met."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write the run's report at the end.")] = False,
    nproc: Annotated[
        str | None,
        typer.Option(metavar="N|gpu", help="Train in N processes on this machine, or one for each GPU."),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, metavar="N", help="With --nproc: how often to restart after a process crashed.")
    ] = 0,
    log: Annotated[
        list[LogName] | None,
        typer.Option(metavar="tensorboard|mlflow|wandb", help="Also log the run to TensorBoard, MLflow or W&B."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, run one batch, print a summary; train nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON Lines on stdout and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print config and versions.")] = False,
) -> None:
    """Train a classifier from a config."""
    config = one_config(name, config)
    overrides = [configs.parse_override(text) for text in set_ or []]
    short = short_options(lr, batch_size, model)
    overrides += [configs.parse_override(f"{key}={text}", option) for key, text, option in short]
    flags = (("device", device), ("seed", seed), ("epochs", epochs))
    overrides += [Override((name,), value, f"--{name}") for name, value in flags if value is not None]
    if from_ is not None:
        overrides.append(Override(("model", "weights_from"), from_, "--from"))
    required = requirements.parse(require or [])
    loggers = check_loggers([name.value for name in log or []], "--log")
    options = OutputOptions(json, quiet, verbose, report, loggers)
    processes = number_of_processes(nproc) if nproc is not None else 1
    repetition = Repetition(seeds, folds, save_predictions)
    repetition.check()
    check_processes(processes, max_restarts, nproc, repetition.option)
    check_jobs(jobs, several=repetition.option is not None)
    if repetition.option is not None:
        check_options(resume, dry_run)
        points = repetition.points(require_config(config), overrides)
        plans = make_plans(points, output, resume == "auto", allow_changed_data=allow_changed_data)
        train_repeatedly(repetition, points, plans, required, options, jobs)
        return
    request = Request(config, overrides, output, resume, allow_changed_data, trust_code, required, options)
    if not dry_run and processes > 1:
        raise typer.Exit(launch(request, processes, max_restarts))
    if not dry_run and launched():
        raise typer.Exit(train_in_group(request))
    plan = request.plan()
    if dry_run:
        with fast_imports():
            from softmaxce.build import build_run
            from softmaxce.report.summary import print_summary
            from softmaxce.runs import initial_weights, teacher
            from softmaxce.session import check_requirements

        run = build_run(plan.config)
        check_requirements(run, required)
        initial_weights.load(run, partial(streams.line, err=True))
        teacher.load(run, partial(streams.line, err=True))
        print_summary(run, as_json=json)
        return
    if not train_one(plan, required, options).requirements_met:
        raise typer.Exit(FAILED)
