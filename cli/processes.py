"""`softmaxce train` as one of several processes, which torchrun or launcher.py has started.

They end together. What all agree on (the end of the run, an error that was sent to all, a signal) has an exit status,
which all return; a process that crashes, or that loses another one, ends without waiting.
"""

import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from softmaxce import streams
from softmaxce.config import reader as configs
from softmaxce.config.keys import Config
from softmaxce.config.reader import Override
from softmaxce.config.users_code import refuse_users_code
from softmaxce.errors import DONE, FAILED, ConfigError, OutputError, Problem
from softmaxce.inference.requirements import Requirement
from softmaxce.runtime.process_group import PeerLostError, ProcessGroup, job_name, launched, local_rank
from softmaxce.runtime.signals import STATUS, Signals

from . import ending
from .startup import fast_imports
from .training import OutputOptions, make_plan, require_config, train_one

if TYPE_CHECKING:
    from softmaxce.runs.plan import Plan

LOST = 70  # exit status of a process that lost another one and has printed nothing


@dataclass(frozen=True)
class Request:
    """What `train` is to do, as it is passed to the processes."""

    config: str | None
    overrides: Sequence[Override]
    output: Path | None
    resume: str | None
    allow_changed_data: bool
    trust_code: bool
    requirements: Sequence[Requirement]
    options: OutputOptions

    def load(self) -> Config | None:
        """The config that is named; None for that of a run folder. Raises: ConfigError."""
        if self.config is None and self.resume not in (None, "auto"):
            return None
        return configs.load(require_config(self.config), list(self.overrides))

    def plan(self) -> "Plan":
        """What is trained, and where. Raises: as make_plan."""
        plan = make_plan(
            self.config,
            list(self.overrides),
            self.output,
            self.resume,
            allow_changed_data=self.allow_changed_data,
        )
        if self.resume is not None and self.config is None and not self.trust_code:  # the config is the run folder's
            refuse_users_code(plan.config, f"--resume {self.resume}")
        return plan

    def check(self) -> None:
        """Refuse a mistake before any process is started. Raises: ConfigError, RunError."""
        self.load()
        if self.resume not in (None, "auto"):
            self.plan()
        elif self.resume is None and self.output is not None:
            from softmaxce.runs import folder

            folder.create("", self.output)


def refuse_if_launched(location: str) -> None:
    """Refuse what starts several runs, as a process of a group. Raises: ConfigError."""
    if launched():
        message = "starts runs, each in one process; leave out torchrun"
        raise ConfigError([Problem(location, message)])


# -- one of several processes -----------------------------------------------------------------------------------------


def train_in_group(request: Request) -> int:
    """Train as one of the processes that a launcher has started. Returns: the exit status that all agree on.

    A process that crashes, or loses another one, ends here.
    """
    stderr = sys.stderr
    _mute(local_rank() > 0)  # a mistake in the config is printed once on each machine
    with Signals() as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STATUS)
        group = None
        try:
            with ending.as_exit_status():
                requested = request.load()
            group = _join(signals)
            _mute(group.rank > 0)
            return _train(request, requested, group, signals)
        except PeerLostError:  # the process that was lost is the one to report
            time.sleep(1)
            crash(LOST)
        except typer.Exit as end:
            return end.exit_code
        except BaseException as error:  # noqa: BLE001 - reported, as the command would
            if isinstance(error, KeyboardInterrupt) and signals.stop is None:  # of this process, or the second one
                crash(signals.status)
            agreed = group is not None and group.confirm_end()
            if not agreed:
                sys.stderr = stderr
            status = _report(error)
            if not agreed:
                crash(status)
            return status
        finally:
            if group is not None:
                group.close()


def _join(signals: Signals) -> ProcessGroup:
    variable = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    if (
        os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):
        message = f"needs the environment variable {variable}=1, or restarted processes look for those that are gone"
        with ending.as_exit_status():
            raise ConfigError([Problem("--max-restarts", message)])
    with fast_imports():
        from softmaxce.runtime.process_group import join
    return join(signals)


def _train(request: Request, requested: Config | None, group: ProcessGroup, signals: Signals) -> int:
    from softmaxce.runs.resume import with_recorded

    def plan_on_rank_0() -> "Plan":
        if request.resume is None and (restarted := _restarted(request, requested)) is not None:
            return restarted
        return request.plan()

    plan = group.from_rank_0(plan_on_rank_0)
    if group.rank and requested is not None:  # which may name another folder of images on this machine
        plan = dataclasses.replace(plan, config=with_recorded(requested, plan.config))
    outcome = train_one(plan, request.requirements, request.options, group, signals)
    return DONE if outcome.requirements_met else FAILED


def _restarted(request: Request, config: Config | None) -> "Plan | None":
    """The run that this job has begun before its processes were restarted; None if it has begun none."""
    from softmaxce.runs.folder import begun_by
    from softmaxce.runs.plan import Plan
    from softmaxce.runs.resume import check_resumable

    job = job_name()
    if config is None or job is None:
        return None
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    folder = begun_by(job, request.output, config.recipe, restarted=restarted)
    if folder is None:
        return None
    streams.line(f"the processes were restarted; {folder} is resumed", err=True)
    return Plan(check_resumable(folder, config), folder, True, request.allow_changed_data)


def _mute(on: bool) -> None:
    """Have this process print nothing more: rank 0 prints for all."""
    if on:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it lives as long as the process


def _report(error: BaseException) -> int:
    """Print an error as the command does. Returns: its exit status."""
    try:
        with ending.as_exit_status():
            raise error
    except typer.Exit as end:
        return end.exit_code
    except OutputError as failed:
        if str(failed):
            ending.print_error(str(failed))
        return failed.status
    except BaseException:  # noqa: BLE001 - a fault of softmaxce itself
        traceback.print_exc()
        return FAILED


def crash(status: int) -> NoReturn:
    """End this process at once, without waiting for the others: their connections are closed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
