"""One of the runs that `--jobs` trains at a time, in a process of its own, which jobs.py starts and watches."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from softmaxce import streams
from softmaxce.errors import RunInUseError, SoftmaxceError, in_one_line, in_users_code, ran_out_of_memory
from softmaxce.inference.requirements import Requirement
from softmaxce.runtime.process_group import JOBS
from softmaxce.runtime.signals import SAVE, STATUS, Signals

from .startup import fast_imports
from .training import OutputOptions, train_one

if TYPE_CHECKING:
    from softmaxce.runs.plan import Plan
    from softmaxce.session import Reporter

SIGNALS = [*STATUS, *([SAVE] if SAVE is not None else [])]  # what the parent forwards

MAX_LINE = 1 << 16  # bytes of a line that is not yet whole


@dataclass(frozen=True)
class Part:
    """A process's part of the machine.

    Attributes:
        jobs: the number of parts.
        threads: that it trains with.
        processors: the CPUs that it runs on; None for all.
        gpu: as CUDA_VISIBLE_DEVICES names it; None if it has no GPU of its own.
    """

    jobs: int
    threads: int
    processors: frozenset[int] | None = None
    gpu: str | None = None


@dataclass(frozen=True)
class Job:
    """A run to train."""

    plan: "Plan"
    requirements: Sequence[Requirement]
    output: OutputOptions
    part: Part


@dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
        folder: of a run that was trained to its end; None otherwise.
        requirements_met: whether it meets every requirement.
        summary: its metrics, in one line.
        failure: why it failed; empty if a signal ended it.
        in_use: another process trains the run.
    """

    folder: Path | None = None
    requirements_met: bool = False
    summary: str = ""
    failure: str = ""
    in_use: bool = False


class Lines:
    """The lines that come through a pipe."""

    def __init__(self, reader: Connection) -> None:
        self.reader, self._rest = reader, b""
        os.set_blocking(reader.fileno(), False)

    def read(self) -> list[str]:
        """What has come since the last call; a line is returned when it is whole."""
        with contextlib.suppress(BlockingIOError):  # nothing has come
            while chunk := os.read(self.reader.fileno(), 1 << 16):
                self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > MAX_LINE:
            lines, self._rest = [*lines, self._rest], b""
        return [line.decode(errors="surrogateescape") for line in lines]

    def last(self) -> list[str]:
        """The rest, after the process has ended."""
        lines = self.read()
        return [*lines, self._rest.decode(errors="surrogateescape")] if self._rest else lines


def run_job(job: Job, results: Connection, stdout: Connection | None, stderr: Connection) -> None:
    """The process's function: train, and send a Result. stdout and stderr go to the connections; None discards stdout.

    The signals of job.SIGNALS are blocked when it starts.
    """
    os.setsid()  # the terminal's ctrl-C is for the parent, which forwards it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_to(stdout.fileno() if stdout is not None else os.open(os.devnull, os.O_WRONLY), stderr.fileno())
    _use(job.part)
    with Signals() as signals:
        try:
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                result = _train(job, signals)
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        except KeyboardInterrupt:  # the run has reported it
            result = Result()
    results.send(result)


def _print_to(stdout: int, stderr: int) -> None:
    """Have this process, and those that it starts, print to other file descriptors."""
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    # New ones, as the old ones remember whether they are files, for example.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    streams.prepare()


def _end_with_parent() -> None:
    """Wait until the parent is gone, then kill this process, and those that decode its images."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _use(part: Part) -> None:
    """Restrict this process to its part of the machine."""
    os.environ.pop("PYTHONSAFEPATH", None)
    os.environ[JOBS] = str(part.jobs)
    os.environ["OMP_NUM_THREADS"] = str(part.threads)
    if part.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = part.gpu
    if part.processors is not None:
        os.sched_setaffinity(0, part.processors)
    with fast_imports():
        import torch

    torch.set_num_threads(part.threads)  # torch has read the variable before


def _train(job: Job, signals: Signals) -> Result:
    try:
        outcome = train_one(job.plan, job.requirements, job.output, signals=signals, reporters=_reporters(job.output))
        from softmaxce.report.training import summary

        lines = summary(outcome)[:-1]  # the last is the next command
        return Result(outcome.folder, outcome.requirements_met, "; ".join(lines))
    except RunInUseError as error:
        return Result(failure=error.command_text, in_use=True)
    except SoftmaxceError as error:
        return Result(failure=error.lines[0] if len(error.lines) == 1 else "; ".join(map(str.strip, error.lines)))
    except Exception as error:  # noqa: BLE001 - the user's code raised it, or it is a fault of softmaxce itself
        if ran_out_of_memory(error):
            return Result(failure=f"memory ran out: {in_one_line(error)}")
        if isinstance(error, OSError):
            file = f"{error.filename}: " if error.filename else ""
            return Result(failure=f"{file}{error.strerror or error}")
        if message := in_users_code(error):
            return Result(failure=message)
        traceback.print_exc()
        return Result(failure=f"{type(error).__name__}: {in_one_line(error)}")


def _reporters(output: OutputOptions) -> "list[Reporter]":
    from softmaxce.report.step_summary import StepSummary
    from softmaxce.report.training import JsonLines, Messages

    class Quieter(Messages):
        """Messages without those that the parent prints once for all runs."""

        def stopping(self) -> None:
            """Print nothing."""

    return [Quieter(quiet=output.quiet), *([JsonLines()] if output.json else []), StepSummary()]
