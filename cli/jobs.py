"""`--jobs N`: several runs at a time, each in a process of its own, for `train --seeds`, `train --folds` and `sweep`.

Each process has its part of the machine: a GPU, or some of the CPUs. The processes are forked from a server that has
imported PyTorch, so that a run starts at once. A run whose folder another process has locked, on this machine or on
another one with the same file system, is left to that process; the command waits for it at the end.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import NoReturn

from softmaxce import streams
from softmaxce.config.sweep import Point
from softmaxce.errors import ConfigError, Problem, SoftmaxceError
from softmaxce.files import lock_holder
from softmaxce.inference.requirements import Requirement
from softmaxce.runs import folder as runfolder
from softmaxce.runs.plan import Plan
from softmaxce.runtime.processors import processors
from softmaxce.runtime.signals import STATUS, interruption

from .job import SIGNALS, Job, Lines, Part, Result, run_job
from .several import FinishedRun, finished_folder, finished_run, head_of, say_how_to_resume, train_each
from .startup import fast_imports
from .training import ImagesOnDisk, OutputOptions, plan_auto

POLL = 1.0  # seconds between two looks at runs that others train
GRACE = 20.0  # seconds to save for the processes of a command that fails, before they are killed


def check_jobs(jobs: int | None, *, several: bool = True) -> None:
    """Refuse `--jobs` where it does not apply. Raises: ConfigError."""
    if jobs is None:
        return
    if not several:
        raise ConfigError(
            [Problem("--jobs", "trains several runs at a time; add --seeds N or --folds N, or use softmaxce sweep")]
        )
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise ConfigError([Problem("--jobs", "needs a system on which processes can be forked; leave it out")])


def _context() -> ForkServerContext:
    return multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the server that forks the processes: it imports PyTorch while this process does."""
    resource_tracker.ensure_running()  # before signals are blocked, as it unblocks them
    _context().set_forkserver_preload(["softmaxce_cli.preload", "softmaxce_cli.job"])
    with _blocked_signals(), _safe_path():
        # A script's `&` ignores SIGINT. Each run would then set it so again, which discards one that has just come.
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)


def parts_of_machine(jobs: int, devices: Sequence[str]) -> list[Part]:
    """The parts of this machine for so many runs at a time: each a GPU, in turn, and equal numbers of CPUs."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(cpus) // jobs
    threads = _openmp_threads() or max(1, processors() // jobs)
    gpus = _gpus() if any(device in ("auto", "cuda") for device in devices) else []
    return [
        Part(
            jobs,
            threads,
            frozenset(cpus[slot * each : (slot + 1) * each]) if each and jobs > 1 else None,
            gpus[slot % len(gpus)] if gpus else None,
        )
        for slot in range(jobs)
    ]


def _openmp_threads() -> int:
    """The user's $OMP_NUM_THREADS; 0 if it is not set, or no number."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isascii() and text.isdigit() else 0


def _gpus() -> list[str]:
    """This machine's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    with fast_imports():
        import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(count)]
    return [name.strip() for name in names[:count]]


def train_all(
    points: Sequence[Point],
    plans: Sequence[Plan],
    requirements: list[Requirement],
    output: OutputOptions,
    jobs: int | None,
) -> list[FinishedRun]:
    """Train every run that is not finished, one after the other in this process, or `jobs` at a time in others."""
    if jobs is None:
        return train_each(points, plans, requirements, output)
    return train_at_a_time(jobs, points, plans, requirements, output)


def train_at_a_time(
    jobs: int,
    points: Sequence[Point],
    plans: Sequence[Plan],
    requirements: list[Requirement],
    output: OutputOptions,
) -> list[FinishedRun]:
    """As several.train_each, with up to `jobs` runs at a time; runs that another process trains are waited for.

    Raises: KeyboardInterrupt, or Terminated, after a signal: then all runs in progress have been saved.
    """
    jobs = min(jobs, len(points))
    parts = parts_of_machine(jobs, [point.config.device for point in points])
    _print_parts(len(points), parts)
    sweep = _Jobs(points, list(plans), requirements, output, parts)
    with sweep.signals():
        try:
            sweep.train()
        except BaseException:
            sweep.end()
            raise
    if sweep.stopped is not None:
        say_how_to_resume()
        raise interruption(STATUS[sweep.stopped])
    return [sweep.finished[index] for index in sorted(sweep.finished)]


def _print_parts(runs: int, parts: Sequence[Part]) -> None:
    part = parts[0]
    threads = f"{part.threads} thread{'s' * (part.threads > 1)}"
    gpus = list(dict.fromkeys(each.gpu for each in parts if each.gpu is not None))
    on = f" and one of the GPUs {', '.join(gpus)}" if len(gpus) > 1 else " and a GPU they share" if gpus else ""
    alone = _openmp_threads() or processors()
    differs = ""
    if part.threads != alone and not gpus:
        differs = f"; without --jobs each has {alone}, and its weights differ in the last digits"
    streams.line(f"{runs} runs, {len(parts)} at a time, each with {threads}{on}{differs}", err=True)


@dataclass
class _Running:
    """A run that is being trained."""

    index: int
    folder: Path
    process: ForkServerProcess
    results: Connection
    stderr: Lines
    stdout: Lines | None
    printed: list[str] = field(default_factory=list)  # on stdout
    result: Result | None = None

    def send(self, number: int) -> None:
        """Send a signal to the process."""
        assert self.process.pid
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End the process, and those that decode its images, at once."""
        self.process.kill()
        assert self.process.pid
        with contextlib.suppress(ProcessLookupError):  # it has ended, or has not yet made a group of its own
            os.killpg(self.process.pid, signal.SIGKILL)


class _Jobs:
    """The runs of a command: pending, running on a part of the machine, or finished."""

    def __init__(
        self,
        points: Sequence[Point],
        plans: list[Plan],
        requirements: list[Requirement],
        output: OutputOptions,
        parts: Sequence[Part],
    ) -> None:
        self.points, self.plans, self.requirements, self.output = points, plans, requirements, output
        self.parts = parts
        self.pending = list(range(len(points)))
        self.running: dict[int, _Running] = {}  # by their parts
        self.finished: dict[int, FinishedRun] = {}
        self.stopped: signal.Signals | None = None
        self.waiting = False

    # -- signals

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, signals are forwarded to the runs; after the first that ends them no other is started."""
        before = {number: signal.signal(number, self._forward) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number in STATUS:
            if self.stopped is not None:
                self._end_at_once()
            self.stopped = signal.Signals(number)
            if self.running:
                with contextlib.suppress(OSError):  # unbuffered: the signal may have interrupted another print
                    os.write(2, b"stopping all runs after the step in progress; a second signal ends them at once\n")
        for run in list(self.running.values()):
            run.send(number)

    def _end_at_once(self) -> NoReturn:
        assert self.stopped is not None
        for run in list(self.running.values()):
            run.kill()
        os._exit(STATUS[self.stopped])

    def end(self) -> None:
        """Have the runs saved, because this command has failed: its output cannot be written, for example."""
        for run in self.running.values():
            run.send(signal.SIGINT)
        until = time.monotonic() + GRACE
        for run in self.running.values():
            run.process.join(max(0.0, until - time.monotonic()))
            run.kill()

    # -- the runs

    def train(self) -> None:
        """Train all, until a signal stops them."""
        while self.running or (self.pending and self.stopped is None):
            if self.stopped is None:
                self._start_some()
            self._wait()

    def _start_some(self) -> None:
        """Start runs that nobody trains on the parts of the machine that are free."""
        holders: list[str] = []
        for index in list(self.pending):
            free = [slot for slot in range(len(self.parts)) if slot not in self.running]
            if not free or self.stopped is not None:
                return
            if (holder := self._holder(index)) is not None:
                holders.append(holder)
                continue
            self.pending.remove(index)
            try:
                if not self._is_finished(index):
                    self._start(index, free[0])
            except SoftmaxceError as error:
                self._print_failure(index, error.lines[0])
        if holders and not self.running and not self.waiting:
            self.waiting = True
            text = f"waiting for {len(holders)} run{'s' * (len(holders) > 1)} that {holders[0]} trains"
            streams.line(f"{text}; ctrl-C ends the wait", err=True)

    def _holder(self, index: int) -> str | None:
        """The process that trains a run already, if others may."""
        plan = self.plans[index]
        return lock_holder(plan.folder) if self._shared(plan) and plan.folder is not None else None

    def _shared(self, plan: Plan) -> bool:
        """Whether other processes may train this run: where its folder is known, and it may be resumed."""
        return plan.folder is not None and (plan.resume or plan.auto)

    def _is_finished(self, index: int) -> bool:
        plan = self.plans[index]
        if self._shared(plan):  # since it was planned, another process may have started it, or finished it
            allow = plan.allow_changed_data
            plan = self.plans[index] = plan_auto(plan.config, plan.folder, ImagesOnDisk(), allow_changed_data=allow)
        folder = finished_folder(plan)
        head = head_of(self.points, index)
        run = None
        if folder is not None:
            run = finished_run(head, self.points[index], folder, self.requirements, self.output)
        if run is not None:
            self.finished[index] = run
        return run is not None

    def _start(self, index: int, slot: int) -> None:
        with _blocked_signals():
            if self.stopped is not None:  # since this run was chosen; the signal went to those that ran then
                return
            plan = self.plans[index]
            if plan.folder is None:  # here, so that the folders' numbers are in the order of the runs
                plan = self.plans[index] = Plan(plan.config, runfolder.create(plan.config.recipe, None))
            assert plan.folder is not None
            results, results_out = _context().Pipe(duplex=False)
            stderr, stderr_out = _context().Pipe(duplex=False)
            stdout, stdout_out = _context().Pipe(duplex=False) if self.output.json else (None, None)
            job = Job(plan, self.requirements, self.output, self.parts[slot])
            process = _context().Process(target=run_job, args=(job, results_out, stdout_out, stderr_out))
            process.start()
            printed = Lines(stdout) if stdout is not None else None
            self.running[slot] = _Running(index, plan.folder, process, results, Lines(stderr), printed)
        for end in (results_out, stderr_out, stdout_out):
            if end is not None:
                end.close()
        verb = "resumed" if plan.resume else "started"
        streams.line(f"{head_of(self.points, index)}: {verb} in {plan.folder}", err=True)

    def _wait(self) -> None:
        """Wait until something happens: a run prints a line or ends, or another process may have ended one."""
        watched: list[Connection | int] = []
        for run in self.running.values():
            watched += [run.process.sentinel, run.stderr.reader, run.results]
            watched += [run.stdout.reader] if run.stdout is not None else []
        ready = wait(watched, POLL)
        for slot, run in list(self.running.items()):
            if run.results in ready:
                self._receive(run)
            self._print_lines(run, run.stderr.read())
            if run.stdout is not None:
                run.printed += run.stdout.read()
            if run.process.sentinel in ready:
                del self.running[slot]
                self._finish(run)

    def _receive(self, run: _Running) -> None:
        with contextlib.suppress(EOFError, OSError):  # the process was killed, before or while it sent it
            run.result = run.results.recv()

    def _print_lines(self, run: _Running, lines: Sequence[str]) -> None:
        for text in lines:
            streams.line(f"{head_of(self.points, run.index)}: {text}", err=True)

    def _finish(self, run: _Running) -> None:
        """Print how a run has ended, after its process has."""
        run.process.join()
        if run.result is None:
            self._receive(run)
        self._print_lines(run, run.stderr.last())
        printed = [*run.printed, *(run.stdout.last() if run.stdout is not None else [])]
        for text in printed:
            streams.json_text(text)
        with contextlib.suppress(OSError):  # not empty: it holds the run
            run.folder.rmdir()
        index, result = run.index, run.result
        head = head_of(self.points, index)
        if result is None:
            code = run.process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "ended unexpectedly"
            memory = ", often because memory ran out" if code == -signal.SIGKILL else ""
            self._print_failure(index, f"its process {how}{memory}; --resume auto resumes it")
        elif result.in_use and self._shared(self.plans[index]):
            self.pending.append(index)
        elif result.folder is not None:
            streams.line(f"{head}: {result.summary}", err=self.output.json)
            record = runfolder.read_record(result.folder)
            self.finished[index] = FinishedRun(self.points[index], result.folder, record, result.requirements_met)
        elif result.failure:
            self._print_failure(index, result.failure)
        elif self.stopped is None:
            self._print_failure(index, "a signal to its process has ended it; --resume auto resumes it")

    def _print_failure(self, index: int, reason: str) -> None:
        streams.line(f"{head_of(self.points, index)}: failed: {reason}", err=True)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """A process that is started inside begins with SIGNALS blocked; what comes here meanwhile is handled after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Python that is started inside does not import modules from the current folder, which holds the user's files."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
