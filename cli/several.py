"""Several runs one after the other, for `train --seeds` and `sweep`: started, gone on with, or found finished."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from softmaxce.config.sweep import Point
from softmaxce.errors import FAILED, ConfigError, Problem, RunError, TrainingError
from softmaxce.inference.requirements import Requirement, judge
from softmaxce.runs import folder as runfolder
from softmaxce.runs.listing import read_run
from softmaxce.runs.resume import is_finished

from .plans import ImagesOnDisk, Plan, plan_to_resume

if TYPE_CHECKING:
    from .train import Telling


@dataclass(frozen=True)
class Finished:
    """How one run of several ended: in this process, or in an earlier one."""

    point: Point
    folder: Path
    record: dict[str, Any]
    met: bool


def check_options(resume: str | None, dry_run: bool) -> None:
    """Refuse what several runs cannot do. Raises: ConfigError."""
    if resume not in (None, "auto"):
        raise ConfigError([Problem("--resume", "with several runs it takes auto only: each goes on where it stopped")])
    if dry_run:
        raise ConfigError([Problem("--dry-run", "tries one config; leave the several runs out")])


def make_plans(
    points: Sequence[Point], output: Path | None, resume: bool, *, allow_changed_data: bool = False
) -> list[Plan]:
    """Where each run goes, or goes on.

    Raises: RunError if a folder is in use, or holds a run on other images; DataError if images cannot be read.
    """
    plans = []
    images = ImagesOnDisk()
    for point in points:
        wanted = output / point.folder_name if output is not None else None
        if resume:
            plan = plan_to_resume(point.config, wanted, images, allow_changed_data=allow_changed_data)
            if wanted is not None:
                _check_finished(plan, images)
            plans.append(plan)
            continue
        if wanted is not None and wanted.exists() and any(wanted.iterdir()):
            raise RunError(f"{wanted}: the folder is not empty; choose another --output, or add --resume auto")
        plans.append(Plan(point.config, None, wanted))
    return plans


def _check_finished(plan: Plan, images: ImagesOnDisk) -> None:
    """Refuse to count a finished run on other images; one that is not finished is checked when it is resumed."""
    if plan.resume is None or not _is_over(plan):
        return
    now = images(plan.config).fingerprints
    from softmaxce.runs.provenance import check_images

    record = runfolder.read_record(plan.resume)
    check_images(plan.resume, record, now, allow_changed_data=plan.allow_changed_data)


def train_each(
    points: Sequence[Point],
    plans: Sequence[Plan],
    demands: list[Requirement],
    telling: "Telling",
) -> list[Finished]:
    """Train every run that is not finished already. One that fails does not keep the others from being trained.

    Requirements are judged for every run: by its recorded figures if it is finished, which is evaluated anew if these
    are not enough.
    """
    from .train import train_one

    ended = []
    for number, (point, plan) in enumerate(zip(points, plans, strict=True), 1):
        head = f"[{number}/{len(points)}] {point.label}"
        if plan.resume is not None and _is_over(plan):
            typer.echo(f"{head}: finished already in {plan.resume}", err=True)
            record = runfolder.read_record(plan.resume)
            figures = record.get("test", record.get("validation", {}))
            if all(demand.figure in figures for demand in demands):
                verdicts = judge(demands, figures)
                for verdict in verdicts:
                    typer.echo(verdict, err=telling.json)
                ended.append(Finished(point, plan.resume, record, all(verdict.met for verdict in verdicts)))
                continue
        else:
            typer.echo(head, err=True)
        try:
            outcome = train_one(plan, demands, telling)
        except TrainingError as error:
            typer.echo(f"{head}: failed: {error}", err=True)
            continue
        except KeyboardInterrupt:
            typer.echo("all of them go on with the same command and --resume auto", err=True)
            raise
        if outcome.status == "failed":
            typer.echo(f"{head}: failed: {outcome.message}", err=True)
            continue
        met = all(verdict.met for verdict in outcome.verdicts)
        ended.append(Finished(point, outcome.folder, runfolder.read_record(outcome.folder), met))
    return ended


def split_of(ended: Sequence[Finished]) -> str:
    """The split that the runs' final figures were measured on."""
    return next((name for name in ("test", "validation") if all(name in entry.record for entry in ended)), "validation")


def train_seeds(
    points: Sequence[Point],
    output: Path | None,
    resume: bool,
    demands: list[Requirement],
    telling: "Telling",
    *,
    allow_changed_data: bool = False,
) -> None:
    """Train one config under several seeds, and tell what their figures come to."""
    plans = make_plans(points, output, resume, allow_changed_data=allow_changed_data)
    ended = train_each(points, plans, demands, telling)
    split = split_of(ended)
    rows = [(entry.point.label, entry.folder, entry.record[split]) for entry in ended if split in entry.record]
    if len(rows) > 1:
        from softmaxce.report import console, seeds

        found = seeds.summarize(split, rows)
        if telling.json:
            typer.echo(jsonlib.dumps(found.to_dict()))
        else:
            seeds.print_seeds(found, console.stdout())
    if len(ended) < len(points) or not all(entry.met for entry in ended):
        raise typer.Exit(FAILED)


def _is_over(plan: Plan) -> bool:
    assert plan.resume is not None
    if not (plan.resume / "run.json").is_file():  # killed before it had begun
        return False
    return is_finished(runfolder.read_record(plan.resume)) and read_run(plan.resume).epochs == plan.config.epochs
