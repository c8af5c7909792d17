"""A logger in a thread of its own: one that fails or hangs costs one warning, never the run or its exit status."""

import contextlib
import queue
import shlex
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ... import streams
from ...errors import SoftmaxceError, in_one_line, ran_out_of_memory
from ...runs.folder import BEST, LAST, METRICS, SPLITS, Status, read_metrics
from ...session import Outcome, Reporter
from ...training.run import Epoch, Run
from .names import LOGGERS

TIMEOUT = 60.0  # seconds that the end of a run waits for a call to end
TIMEOUT_INTERRUPTED = 10.0  # after ctrl-C and SIGTERM
UPLOAD = 1 << 20  # bytes of files per second that the end of a run waits longer


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told of a run when it starts or is resumed.

    Attributes:
        folder: the run folder, absolute.
        recipe: the name of the config.
        config: the complete config.
        epochs: how many are completed.
    """

    folder: Path
    recipe: str
    config: Mapping[str, Any]
    epochs: int

    @property
    def name(self) -> str:
        """The run folder's last two names, such as mnist/1."""
        return "/".join(self.folder.parts[-2:])


class Logger(Protocol):
    """Writes to another program's log. Its calls may take long and raise anything."""

    def open(self, run: LoggedRun) -> Collection[int]:
        """Begin the log, or continue that of the run folder. Returns: the epochs that are in it."""

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch, counted from 1. Metrics have names such as loss/validation."""

    def log_final(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log the final evaluation, after so many epochs."""

    def add_files(self, files: Sequence[Path]) -> None:
        """Keep files with the log: config, checkpoint, report."""

    def close(self, status: Status) -> None:
        """End the log."""


class BackgroundLogger(Reporter):
    """Passes a run to a logger, in order and in another thread, so that training never waits for it.

    Epochs that were completed before, also without this logger, are passed too unless the log has them already.

    Args:
        name: of the logger, for messages.
        logger: called in that thread only.
    """

    def __init__(self, name: str, logger: Callable[[], Logger]) -> None:
        self.name = name
        self._make = logger
        self._logger: Logger
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"softmaxce-{name}", daemon=True)
        self._done = 0  # calls
        self._bytes = 0  # of files
        self._folder = Path()
        self._status = Status.FAILED  # until `end` says another
        self._failure = ""
        self._is_reported = False

    # -- in the main thread

    def start(self, run: Run, folder: Path) -> None:
        """Open the log."""
        self._folder = folder
        epochs = read_metrics(folder)
        started = LoggedRun(folder.resolve(), run.config.recipe, run.config.to_dict(), run.progress.epoch)
        self._calls.put(lambda: self._open(started, epochs))
        self._thread.start()

    def epoch(self, epoch: Epoch) -> None:
        """Log an epoch."""
        line = epoch.to_dict()
        self._calls.put(lambda: self._logger.log(line["epoch"], metrics_of(line)))
        self._report()

    def end(self, outcome: Outcome) -> None:
        """Log the final evaluation, and the files of a run that trained to its end."""
        self._status = outcome.status
        if outcome.scores is not None:
            scores = {f"final_{name}/{outcome.split}": value for name, value in outcome.scores.to_dict().items()}
            self._calls.put(lambda: self._logger.log_final(outcome.epochs, scores))
        if outcome.status.finished:
            folder = outcome.folder.resolve()
            checkpoint = BEST if (folder / BEST).is_file() else LAST
            self.add_files([folder / name for name in (checkpoint, "config.yaml", "run.json", METRICS)])

    def add_files(self, files: Sequence[Path]) -> None:
        """Keep files with the log."""
        self._bytes += sum(file.stat().st_size for file in files)
        self._calls.put(lambda: self._logger.add_files(files))

    def close(self) -> None:
        """End the log, and wait for its thread; not for long if it hangs."""
        if self._thread.ident is None:  # the run failed before it started
            return
        self._calls.put(lambda: self._logger.close(self._status))
        self._calls.put(None)
        is_interrupted = self._status in (Status.INTERRUPTED, Status.TERMINATED)
        timeout = TIMEOUT_INTERRUPTED if is_interrupted else TIMEOUT + self._bytes // UPLOAD
        done = -1
        while self._thread.is_alive() and done != self._done:
            done = self._done
            self._thread.join(timeout)
        if self._thread.is_alive():
            self._failure = self._failure or f"no answer for {timeout:g} s"
        self._report()

    def _report(self) -> None:
        """Print why logging failed, once."""
        if self._failure and not self._is_reported:
            self._is_reported = True
            remedy = f"softmaxce train --resume {shlex.quote(str(self._folder))} --log {self.name}"
            text = f"--log {self.name} failed: {self._failure}; the run is not affected, and its log is completed by"
            streams.warning(f"{text}: {remedy}")

    # -- in the logger's thread

    def _work(self) -> None:
        try:
            while (call := self._calls.get()) is not None:
                call()
                self._done += 1
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a logger may raise anything; `_report` prints it
            memory = "memory ran out: " if ran_out_of_memory(error) else ""
            self._failure = f"{memory}{_reason(error)}"

    def _open(self, run: LoggedRun, epochs: Sequence[Mapping[str, Any]]) -> None:
        self._logger = self._make()
        logged = self._logger.open(run)
        for line in epochs:
            if line["epoch"] not in logged:
                self._logger.log(line["epoch"], metrics_of(line))


def _reason(error: BaseException) -> str:
    """Why a logger failed; where a database did, what that said, which SQLAlchemy hides among its own lines."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, sqlite3.Error):
            return f"the database: {cause}"
        cause = cause.__cause__ or cause.__context__
    return error.command_text if isinstance(error, SoftmaxceError) else in_one_line(error)


def metrics_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an epoch, from its line in metrics.jsonl: loss/train, accuracy/validation, learning_rate, ..."""
    metrics = {f"{name}/{split}": value for split in SPLITS for name, value in line.get(split, {}).items()}
    return metrics | {name: line[name] for name in ("images_per_second", "learning_rate") if name in line}


@contextlib.contextmanager
def background_loggers(names: Sequence[str]) -> Iterator[list[BackgroundLogger]]:
    """The loggers of these names, to be passed to session.train; they are closed at the end of the block."""
    loggers = [BackgroundLogger(name, lambda name=name: _load(name)()) for name in names]  # type: ignore[misc]
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def _load(name: str) -> Callable[[], Logger]:
    module, _, class_ = LOGGERS[name].partition(":")
    logger: Callable[[], Logger] = getattr(import_module(module), class_)
    return logger
