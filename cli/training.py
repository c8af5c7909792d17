"""What train and sweep share: where a run is trained, what is printed of it, and one training session."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from softmaxce import streams
from softmaxce.config import reader as configs
from softmaxce.config.keys import Config
from softmaxce.config.reader import Override
from softmaxce.errors import ConfigError, Problem, RunError
from softmaxce.inference.requirements import Requirement
from softmaxce.runtime.process_group import SINGLE, ProcessGroup
from softmaxce.runtime.signals import Signals

from .startup import fast_imports

if TYPE_CHECKING:
    from softmaxce.runs.plan import Plan
    from softmaxce.runs.resume import Images
    from softmaxce.session import Outcome, Reporter
    from softmaxce.training.run import Run


@dataclass(frozen=True)
class OutputOptions:
    """What is printed and written of a run, beside its run folder."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    report: bool = False
    log: Sequence[str] = ()


class ImagesOnDisk:
    """Reads the images that configs name. torch is imported by the first call."""

    def __init__(self) -> None:
        self._read: Callable[[Config], Images] | None = None

    def __call__(self, config: Config) -> "Images":
        """A config's images as they are now. Raises: DataError, ConfigError."""
        if self._read is None:
            with fast_imports():
                from softmaxce.runs.provenance import ImagesNow

            self._read = ImagesNow()
        return self._read(config)


def make_plan(
    config: str | None,
    overrides: list[Override],
    output: Path | None,
    resume: str | None,
    *,
    allow_changed_data: bool = False,
) -> "Plan":
    """What `train` trains, and where. Images are read only to find a run. Raises: ConfigError, RunError, DataError."""
    if resume in (None, "auto"):
        requested = configs.load(require_config(config), overrides)
        if resume is None:
            from softmaxce.runs.plan import Plan, check_weights_from

            check_weights_from(requested)
            return Plan(requested, output)
        return plan_auto(requested, output, ImagesOnDisk(), allow_changed_data=allow_changed_data)
    folder = Path(resume)
    if output is not None and output.resolve() != folder.resolve():
        raise ConfigError([Problem("--output", "a resumed run stays in its own folder; omit --output")])
    if not (folder / "config.yaml").is_file():
        raise RunError(f"--resume {resume}: there is no run in this folder (no config.yaml)")
    requested = configs.load(config if config is not None else str(folder / "config.yaml"), overrides)
    from softmaxce.runs.plan import resume_run

    return resume_run(folder, requested, allow_changed_data=allow_changed_data)


def plan_auto(config: Config, output: Path | None, images: ImagesOnDisk, *, allow_changed_data: bool) -> "Plan":
    """What `--resume auto` does for one config; why a run is not resumed goes to stderr."""
    from softmaxce.runs.plan import check_weights_from, resume_or_start

    plan, messages = resume_or_start(config, output, images, allow_changed_data=allow_changed_data)
    if not plan.resume:
        check_weights_from(config)
    for message in messages:
        streams.line(message, err=True)
    return plan


def require_config(config: str | None) -> str:
    """The config's name. Raises: ConfigError if it was left out."""
    if config is None:
        message = "is required: a YAML file or a recipe's name, for example: softmaxce train digits"
        raise ConfigError([Problem("CONFIG", message)])
    return config


def train_one(
    plan: "Plan",
    requirements: Sequence[Requirement],
    output: OutputOptions,
    group: ProcessGroup = SINGLE,
    signals: Signals | None = None,
    reporters: "Sequence[Reporter] | None" = None,
) -> "Outcome":
    """Build a run, train it, and write its report if requested. Raises: as build_run and session.train.

    Args:
        plan: what is trained, and where.
        requirements: on the final metrics.
        output: what is printed and written.
        group: the processes that train it together, each of which calls this.
        signals: the group's, which are handled already.
        reporters: of the run; None for those that suit the terminal.
    """
    with contextlib.ExitStack() as stack:
        if signals is None:  # from here on, so that SIGUSR1 does not end a process that is still building
            signals = stack.enter_context(Signals())
        with fast_imports():
            from softmaxce import session
            from softmaxce.build import build_run
            from softmaxce.report.loggers.background import background_loggers

        started = time.perf_counter()
        run = build_run(plan.config, group=group)
        session.check_requirements(run, requirements)
        if output.verbose and group.rank == 0:
            _print_details(run)
        group.on_rank_0(plan.check_still_new)
        shown = _reporters(output) if reporters is None else reporters
        with background_loggers(output.log if group.rank == 0 else ()) as loggers:
            outcome = session.train(
                run,
                plan.folder,
                resume=plan.resume,
                requirements=requirements,
                reporters=[*loggers, *shown] if group.rank == 0 else (),
                allow_changed_data=plan.allow_changed_data,
                signals=signals,
                started=started,
            )
            if output.report and group.rank == 0:
                from softmaxce.report.html.write import write_report

                # the code that the config names was just trained with
                written = write_report(outcome.folder, device=str(run.device), trust_code=True)
                streams.line(f"report: {written.page}", err=True)
                for logger in loggers:
                    logger.add_files([written.page.resolve()])
    return outcome


def _reporters(output: OutputOptions) -> "list[Reporter]":
    from softmaxce.report.step_summary import StepSummary
    from softmaxce.report.training import Messages, console_reporter

    return [Messages(quiet=output.quiet), console_reporter(as_json=output.json, quiet=output.quiet), StepSummary()]


def _print_details(run: "Run") -> None:
    from softmaxce.config import yamlfile
    from softmaxce.runs.provenance import of_machine

    details = {"config": run.config.to_dict(), "environment": of_machine(run.device, run.precision)}
    streams.lines(yamlfile.dump(details), err=True)
