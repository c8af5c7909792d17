"""Several runs, for `train --seeds` and `--folds` and `sweep`: planned, trained one by one, or already finished."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from softmaxce import streams
from softmaxce.config.automatic import AUTO
from softmaxce.config.sweep import Point
from softmaxce.errors import FAILED, ConfigError, DataError, MemoryRanOutError, Problem, RunError, TrainingError
from softmaxce.inference.requirements import Requirement, judge
from softmaxce.runs import folder as runfolder
from softmaxce.runs.listing import read_run
from softmaxce.runs.plan import Plan
from softmaxce.runs.resume import is_finished, with_recorded

from .startup import fast_imports
from .training import ImagesOnDisk, OutputOptions, plan_auto, train_one

if TYPE_CHECKING:
    from softmaxce.inference.requirements import RequirementResult


@dataclass(frozen=True)
class FinishedRun:
    """One of several runs, finished in this process or in an earlier one.

    Attributes:
        point: its label and config.
        folder: the run folder.
        record: its run.json.
        requirements_met: whether it meets every requirement.
    """

    point: Point
    folder: Path
    record: dict[str, Any]
    requirements_met: bool

    @property
    def metrics(self) -> dict[str, float]:
        """The final metrics in its run.json: of the test split, else of the validation split."""
        metrics: dict[str, float] = self.record.get("test", self.record.get("validation", {}))
        return metrics


def check_options(resume: str | None, dry_run: bool) -> None:
    """Refuse options that do not apply to several runs. Raises: ConfigError."""
    if resume not in (None, "auto"):
        raise ConfigError([Problem("--resume", "with several runs must be auto, which resumes each of them")])
    if dry_run:
        raise ConfigError([Problem("--dry-run", "tries one config; leave out --seeds and --folds")])


def make_plans(
    points: Sequence[Point], output: Path | None, resume: bool, *, allow_changed_data: bool = False
) -> list[Plan]:
    """Where each run is started or resumed.

    Raises: RunError if a folder is in use, or its run has other images; DataError if images cannot be read.
    """
    plans = []
    images = ImagesOnDisk()
    for point in points:
        folder = output / point.folder_name if output is not None else None
        if resume:
            plan = plan_auto(point.config, folder, images, allow_changed_data=allow_changed_data)
            if folder is not None:
                _check_images_if_finished(plan, images)
            plans.append(plan)
            continue
        if folder is not None and folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder}: the folder is not empty; choose another --output, or add --resume auto")
        plans.append(Plan(point.config, folder))
    return plans


def with_one_batch_size(
    points: Sequence[Point], plans: Sequence[Plan], *, alike: bool, jobs: int | None = None
) -> tuple[list[Point], list[Plan]]:
    """The points and plans with one number for `data.batch_size: auto`, so that their runs can be compared.

    It is that of the runs that exist already, or else the smallest that any of the others would have by itself.

    Args:
        points, plans: of the command.
        alike: they differ by their seeds or folds alone, so that one is tried for all.
        jobs: runs at a time.
    Raises: as build_run; ConfigError where several runs would share a GPU.
    """
    automatic = [index for index, point in enumerate(points) if point.config.data.batch_size == AUTO]
    if not automatic:
        return list(points), list(plans)
    with fast_imports():
        from softmaxce.build import SourceReader, resolve_batch_size
        from softmaxce.runtime.device import choose_device
    resolved = [plan.config for index in automatic if (plan := plans[index]).config.data.batch_size != AUTO]
    if not resolved:
        read = SourceReader()
        first = points[automatic[0]].config
        if (jobs or 1) > 1 and choose_device(first.device).type == "cuda":
            message = "auto measures what one run may take of a GPU; with --jobs give a number"
            raise ConfigError([Problem(first.options.get("data.batch_size", "data.batch_size"), message)])
        resolved = [resolve_batch_size(plans[index].config, read) for index in automatic[: 1 if alike else None]]
    chosen = min(resolved, key=lambda config: config.data.images_per_batch)
    text = chosen.resolved.get("data.batch_size", f"{chosen.data.batch_size}, as in the runs that exist")
    new_points, new_plans = list(points), list(plans)
    for index in automatic:
        config = plans[index].config
        if config.data.batch_size == AUTO:
            config = with_recorded(config, chosen, ["data.batch_size"])
            config = replace(config, resolved={**config.resolved, "data.batch_size": text})
        new_points[index] = replace(points[index], config=config)
        new_plans[index] = replace(plans[index], config=config)
    return new_points, new_plans


def check_points(points: Sequence[Point], plans: Sequence[Plan], requirements: Sequence[Requirement]) -> None:
    """Build every run that is not finished, so that all that cannot be built are reported before the first is trained.

    Raises: ConfigError, with every problem of every point: its location is an option, or else begins with the point.
    """
    with fast_imports():
        from softmaxce.build import SourceReader, build_run
        from softmaxce.runs import initial_weights, teacher
        from softmaxce.session import check_requirements

    read = SourceReader()
    to_build = [(point, plan) for point, plan in zip(points, plans, strict=True) if finished_folder(plan) is None]
    labels: dict[Problem, list[str]] = {}
    for point, plan in to_build:
        problems: Sequence[Problem] = ()
        try:
            run = build_run(plan.config, read)
            check_requirements(run, requirements)
            if not plan.resume:
                initial_weights.load(run, lambda text: None)
            teacher.load(run, lambda text: None)
        except ConfigError as error:
            problems = error.problems
        except (DataError, MemoryRanOutError) as error:
            problems = [Problem("", str(error))]
        for problem in problems:
            labels.setdefault(problem, []).append(point.label)
    if labels:
        raise ConfigError([_located(problem, of, len(to_build)) for problem, of in labels.items()])


def _located(problem: Problem, labels: Sequence[str], number: int) -> Problem:
    """A problem that some of so many points have, with their labels unless an option or all points have it."""
    if problem.location.startswith("--") or len(labels) == number:
        return problem
    others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
    return Problem(f"{labels[0]}{others}: {problem.location}".removesuffix(": "), problem.message)


def _check_images_if_finished(plan: Plan, images: ImagesOnDisk) -> None:
    """Refuse to count a finished run on other images. An unfinished one is checked when it is resumed."""
    folder = finished_folder(plan)
    if folder is None:
        return
    now = images(plan.config).fingerprints
    from softmaxce.runs.provenance import check_images

    record = runfolder.read_record(folder)
    for warning in check_images(folder, record, now, allow_changed_data=plan.allow_changed_data):
        streams.warning(warning)


def train_each(
    points: Sequence[Point], plans: Sequence[Plan], requirements: list[Requirement], output: OutputOptions
) -> list[FinishedRun]:
    """Train every run that is not finished already; if one fails, the others are still trained.

    A finished run is checked against the requirements by its run.json, or evaluated again if that lacks a metric.
    """
    finished = []
    for index, (point, plan) in enumerate(zip(points, plans, strict=True)):
        head = head_of(points, index)
        folder = finished_folder(plan)
        if folder is None:
            streams.line(head, err=True)
        elif (run := finished_run(head, point, folder, requirements, output)) is not None:
            finished.append(run)
            continue
        try:
            outcome = train_one(plan, requirements, output)
        except TrainingError as error:
            streams.line(f"{head}: failed: {error.command_text}", err=True)
            continue
        except KeyboardInterrupt:
            say_how_to_resume()
            raise
        record = runfolder.read_record(outcome.folder)
        finished.append(FinishedRun(point, outcome.folder, record, outcome.requirements_met))
    return finished


def head_of(points: Sequence[Point], index: int) -> str:
    """What a line about a run begins with."""
    return f"[{index + 1}/{len(points)}] {points[index].label}"


def say_how_to_resume() -> None:
    """Print what resumes runs that a signal has stopped."""
    streams.line("resume all of them with the same command and --resume auto", err=True)


def finished_run(
    head: str, point: Point, folder: Path, requirements: Sequence[Requirement], output: OutputOptions
) -> FinishedRun | None:
    """Report a run that is finished already; None if its run.json lacks a metric, so that it is evaluated again."""
    streams.line(f"{head}: already finished in {folder}", err=True)
    record = runfolder.read_record(folder)
    run = FinishedRun(point, folder, record, True)
    if not all(requirement.metric in run.metrics for requirement in requirements):
        return None
    results = judge(requirements, run.metrics)
    _print_results(results, to_stderr=output.json)
    return FinishedRun(point, folder, record, all(result.met for result in results))


def _print_results(results: "Sequence[RequirementResult]", *, to_stderr: bool) -> None:
    for result in results:
        streams.line(result, err=to_stderr)


def final_split(runs: Sequence[FinishedRun]) -> str:
    """The split that the final metrics of all runs were measured on."""
    return next((name for name in ("test", "validation") if all(name in run.record for run in runs)), "validation")


def check_all_passed(points: Sequence[Point], runs: Sequence[FinishedRun]) -> None:
    """Raises: typer.Exit if a run failed, or does not meet a requirement."""
    if len(runs) < len(points) or not all(run.requirements_met for run in runs):
        raise typer.Exit(FAILED)


def finished_folder(plan: Plan) -> Path | None:
    """The plan's run folder, if the run in it is finished and has as many epochs as the config."""
    if not plan.resume or plan.folder is None or not (plan.folder / "run.json").is_file():
        return None
    if not is_finished(runfolder.read_record(plan.folder)) or read_run(plan.folder).epochs != plan.config.epochs:
        return None
    return plan.folder
