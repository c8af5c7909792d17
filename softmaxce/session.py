"""One training run in its folder: create or resume, train, save, evaluate; the caller gets an Outcome or an error.

Nothing is printed here: what happens is passed to the reporters that the caller hands in.
"""

import contextlib
import enum
import functools
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .config.objects import objects_of
from .data.batches import Batch
from .errors import (
    ConfigError,
    MemoryRanOutError,
    OutputError,
    Problem,
    RunError,
    SoftmaxceError,
    TrainingError,
    WorkerError,
    as_training_error,
    ran_out_of_memory,
    within_memory,
)
from .inference.evaluate import final_evaluation
from .inference.outcome import Outcome
from .inference.requirements import Requirement, check_classes, judge
from .inference.requirements import parse as parse_requirements
from .runs import checkpoint, epochs, initial_weights, nonfinite, provenance, teacher
from .runs import folder as runfolder
from .runs.folder import Status
from .runs.plan import resume_command
from .runs.resume import check_resumable
from .runs.same_run import check_same_run, same_weights, share_state
from .runtime.process_group import PeerError, job_name
from .runtime.signals import Pauses, Signals, Terminated, every
from .training.loop import CheckpointEvent, fit_with_checkpoints
from .training.nonfinite import NonFiniteError
from .training.run import Epoch, Run
from .training.step import steps_done

__all__ = ["Level", "Outcome", "Reporter", "Reporters", "check_requirements", "train"]

# -- reporters --------------------------------------------------------------------------------------------------------


class Level(enum.StrEnum):
    """How much a message matters to the user."""

    INFO = "info"  # may be hidden
    NOTICE = "notice"
    WARNING = "warning"


class Reporter:
    """Observes a training run. Override what is of interest; each method here does nothing."""

    def start(self, run: Run, folder: Path) -> None:
        """The run starts or resumes: `run.progress` says where."""

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
        """Wrap an epoch's training batches, for a progress bar; must yield the same batches.

        Args:
            batches: the batches still to come.
            done: images of the epoch that are done already.
            epoch: counted from 1.
        """
        return batches

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is completed and saved."""

    def message(self, level: Level, text: str) -> None:
        """One line for the user."""

    def stopping(self) -> None:
        """A signal was received; the run ends after the step in progress. Called from the signal handler."""

    def end(self, outcome: Outcome) -> None:
        """The run has ended; run.json is written."""


class Reporters(Reporter):
    """Forwards to several reporters, in their order."""

    def __init__(self, reporters: Iterable[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def start(self, run: Run, folder: Path) -> None:
        for reporter in self._reporters:
            reporter.start(run, folder)

    def track(self, batches: Iterable[Batch], done: int, epoch: int) -> Iterable[Batch]:
        for reporter in self._reporters:
            batches = reporter.track(batches, done, epoch)
        return batches

    def epoch(self, epoch: Epoch) -> None:
        for reporter in self._reporters:
            reporter.epoch(epoch)

    def message(self, level: Level, text: str) -> None:
        for reporter in self._reporters:
            reporter.message(level, text)

    def stopping(self) -> None:
        for reporter in self._reporters:
            reporter.stopping()

    def end(self, outcome: Outcome) -> None:
        for reporter in self._reporters:
            reporter.end(outcome)


# -- training ---------------------------------------------------------------------------------------------------------


def train(
    run: Run,
    folder: str | Path | None = None,
    *,
    resume: bool = False,
    requirements: Sequence[Requirement | str] = (),
    reporters: Sequence[Reporter] = (),
    allow_changed_data: bool = False,
    signals: Signals | None = None,
    started: float | None = None,
) -> Outcome:
    """Train a run in its folder, save it as it trains, and evaluate the best weights at the end.

    In the main thread the first ctrl-C or SIGTERM ends the run after the step in progress: it is saved, and
    KeyboardInterrupt is raised; a second one ends it at once. SIGUSR1 saves a checkpoint. Other threads handle none.

    Of several processes (run.group) all call this, with the same arguments; rank 0 alone reads and writes the folder,
    and passes what it reads to the others.

    Args:
        run: what build.build_run made. It is changed in place and has the evaluated weights at the end.
        folder: the run folder; None for the next number under runs/<recipe>/.
        resume: continue the run in `folder`; otherwise the folder must be new or empty.
        requirements: on the final metrics, `accuracy>=0.99` for example. One that is not met raises nothing: see
            Outcome.requirements_met.
        reporters: observers of the run.
        allow_changed_data: resume although the images are not those that the run was trained with.
        signals: signal handlers that are installed already, before the run was built, for example.
        started: time.perf_counter() when the caller began to build the run, so that `seconds` include that.
    Raises:
        ConfigError: if a requirement cannot be evaluated for this run.
        RunError: if the folder cannot be used, or its run has another config or other images.
        TrainingError: if training failed; MemoryRanOutError if memory ran out. The reporters have had their end.
        DataError: if an image cannot be read.
        KeyboardInterrupt: when interrupted; runtime.signals.Terminated on SIGTERM.
    """
    started = time.perf_counter() if started is None else started
    parsed = [one if isinstance(one, Requirement) else parse_requirements([one])[0] for one in requirements]
    check_requirements(run, parsed)
    if resume and folder is None:
        raise RunError("resume=True needs the run folder to resume")
    report = functools.partial(Reporters(reporters).message, Level.NOTICE)
    initial = run.group.from_rank_0(lambda: initial_weights.load(run, report, Path(folder or "") if resume else None))
    initial |= teacher.load(run, report, Path(folder or "") if resume else None)
    if not run.group.is_single:
        check_same_run(run)
        share_state(run)
    with contextlib.ExitStack() as stack:
        opened = run.group.from_rank_0(lambda: _open_folder(run, folder, resume, stack))
        handled = stack.enter_context(Signals()) if signals is None else signals
        session = _Session(run, opened, Reporters(reporters), handled, started)
        session.begin(initial, allow_changed_data=allow_changed_data)
        return session.train(parsed)


def _open_folder(run: Run, folder: str | Path | None, resume: bool, stack: contextlib.ExitStack) -> Path:
    """Create the run folder, or check the one to resume, and lock it until `stack` is closed."""
    if not resume:
        path = runfolder.create(run.config.recipe, None if folder is None else Path(folder))
    elif not ((path := Path(folder or "")) / "config.yaml").is_file():
        raise RunError(f"{path}: there is no run in this folder (no config.yaml)")
    stack.enter_context(runfolder.held(path, new=not resume))
    if resume:
        check_resumable(path, run.config)
    return path


def check_requirements(run: Run, requirements: Sequence[Requirement]) -> None:
    """Refuse requirements that a run cannot answer. Raises: ConfigError."""
    check_classes(requirements, run.classes)
    if requirements and run.test is None and run.validation is None:
        message = "there is no test or validation split to evaluate; set data.validation, to 0.1 for example"
        raise ConfigError([Problem(f"--require {requirements[0]}", message)])


class _Session:
    """A run in its folder, which this process, or rank 0 of several, has locked."""

    def __init__(self, run: Run, folder: Path, reporter: Reporter, signals: Signals, started: float) -> None:
        self.run, self.folder, self.reporter, self.signals = run, folder, reporter, signals
        self.started = started
        self.record: dict[str, Any] = {"recipe": run.config.recipe, "classes": list(run.classes)}
        self.seconds_before, self.resumed_at = 0.0, ""

    def begin(self, initial: dict[str, Any], *, allow_changed_data: bool) -> None:
        """Restore the newest checkpoint, if there is one, and write config.yaml and run.json.

        Raises: RunError if the run was trained on other images or class names than it has now.
        """
        group = self.run.group
        saved = group.from_rank_0(lambda: self._read_checkpoint(allow_changed_data=allow_changed_data))
        if saved is not None:
            with group.together():
                checkpoint.restore(self.run, saved)
        group.on_rank_0(lambda: self._write_start(saved, initial))

    def _read_checkpoint(self, *, allow_changed_data: bool) -> checkpoint.Checkpoint | None:
        """The checkpoint to resume from; None if the run is new, or was stopped before its first."""
        run, folder = self.run, self.folder
        self.environment = provenance.of_run(run)
        if not (folder / "config.yaml").is_file():
            return None
        if (folder / "run.json").is_file():
            self.record = runfolder.read_record(folder)
        data = self.environment["data"]
        if message := provenance.check_recorded_root(folder, run.config, self.record, data):
            self.reporter.message(Level.NOTICE, message)
        saved, warnings = checkpoint.newest(folder)
        self._warn(warnings)
        if saved is not None:
            provenance.check_classes(folder, saved.header["classes"], run.classes)
            self._warn(provenance.check_images(folder, self.record, data, allow_changed_data=allow_changed_data))
        return saved

    def _write_start(self, saved: checkpoint.Checkpoint | None, initial: dict[str, Any]) -> None:
        """Write config.yaml and run.json, and report from where the run resumes, if it does."""
        run, folder = self.run, self.folder
        if saved is not None:
            self._report_resumed(saved)
        self._warn(epochs.check_length(run.config))
        runfolder.cut_metrics(folder, run.progress.epoch)
        runfolder.clear_temporary(folder)
        self.record |= initial | {
            "status": Status.RUNNING,
            "environment": self.environment,
            "classes": list(run.classes),
            **({"resolved": run.config.resolved} if run.config.resolved else {}),
        }
        self.record["commands"] = [*self.record.get("commands", []), sys.argv]
        self.record["started"] = self.record.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        self.record.pop("job", None)
        if not run.group.is_single and (job := job_name()) is not None:
            self.record["job"] = job
        self.seconds_before, self.resumed_at = self.record.get("seconds", 0.0), self.position()
        runfolder.write_config(folder, run.config.to_dict())
        runfolder.write_record(folder, self.record)

    def _report_resumed(self, saved: checkpoint.Checkpoint) -> None:
        self._warn(epochs.check_resumed(self.run, self.folder))
        before, environment = self.record.get("environment"), self.environment
        data = environment["data"]
        if isinstance(before, dict):
            if changed := provenance.differences(before, environment):
                self._warn([f"{self.folder}: this run was trained with {'; '.join(changed)}"])
            if changed or before.get("data", data) != data:
                self.record["earlier_environments"] = [*self.record.get("earlier_environments", []), before]
        self.reporter.message(Level.INFO, f"resumed from {saved.file}, {self.position()}")

    def train(self, requirements: Sequence[Requirement]) -> Outcome:
        """Train to the end, evaluate, and record how it ended, also where that is an error."""
        run, folder = self.run, self.folder
        try:
            with as_training_error(lambda: f"epoch {run.progress.epoch + 1}"):
                run.group.on_rank_0(lambda: self.reporter.start(run, folder))
                status = self._fit()
                self._warn(epochs.check_best(run, folder))
            with as_training_error(lambda: "the final evaluation"):
                split, scores, metrics = final_evaluation(run, folder, {one.metric for one in requirements})
        except MemoryRanOutError as error:
            saved = f"; {folder} keeps its last checkpoint" if (folder / runfolder.LAST).is_file() else ""
            self.finish(Status.FAILED, message=f"{error}{saved}")
            raise MemoryRanOutError(f"{error}{saved}") from None
        except SoftmaxceError as error:
            self.finish(Status.FAILED, message=str(error))
            raise
        except (BrokenPipeError, OutputError):  # a reporter's: its output cannot be written any more
            message = f"{Status.INTERRUPTED} {self.position()}, as its output cannot be written"
            self.finish(Status.INTERRUPTED, message=message, report=False)
            self.reporter.message(Level.NOTICE, f"{message}; {resume_command(run.config, folder)}")
            raise
        except OSError as error:  # the disk is full or read-only, or the folder is gone
            with contextlib.suppress(OSError):  # run.json may fail for the same reason; the error below is reported
                self.finish(Status.FAILED, message=runfolder.describe_write_error(error), report=False)
            raise self._explained(error) from None
        except KeyboardInterrupt as interruption:
            status = Status.TERMINATED if isinstance(interruption, Terminated) else Status.INTERRUPTED
            message = f"{status} {self.position()}"
            self.finish(status, message=message)
            self.reporter.message(Level.NOTICE, f"{message}; {resume_command(run.config, folder)}")
            raise
        return self.finish(status, split=split, scores=scores, requirements=tuple(judge(requirements, metrics)))

    def finish(self, status: Status, *, report: bool = True, **results: Any) -> Outcome:
        """Write how the run ended into run.json, and report it."""
        progress = self.run.progress
        trained = not self.seconds_before or self.position() != self.resumed_at  # otherwise only evaluated again
        outcome = Outcome(
            status=status,
            folder=self.folder,
            epochs=progress.epoch,
            seconds=self.seconds_before + (time.perf_counter() - self.started if trained else 0.0),
            best_epoch=progress.best_epoch,
            best_metric=self.run.config.best_metric,
            best_value=progress.best_value,
            objects=tuple(objects_of(self.run.config)),
            **results,
        )
        recorded = {key: value for key, value in outcome.to_dict().items() if key not in ("event", "run")}
        if self.run.group.rank == 0:
            runfolder.write_record(self.folder, self.record | recorded)
            if report:
                self.reporter.end(outcome)
        return outcome

    def _explained(self, error: OSError) -> TrainingError:
        """A file that could not be written: why, and how to resume."""
        resume = resume_command(self.run.config, self.folder)
        if ran_out_of_memory(error):
            return MemoryRanOutError(f"memory ran out ({error.strerror}); {resume}")
        return TrainingError(runfolder.explain_write_error(error, resume))

    def position(self) -> str:
        """How far the run is: `after 3 of 10 epochs and 40 of 120 batches`."""
        progress = self.run.progress
        batches = f" and {progress.batch} of {len(self.run.train)} batches" if progress.batch else ""
        return f"after {progress.epoch} of {self.run.config.epochs} epochs{batches}"

    def _warn(self, warnings: Iterable[str]) -> None:
        for text in warnings:
            self.reporter.message(Level.WARNING, text)

    def _fit(self) -> Status:
        """Train to the last epoch or to early stopping, saving on the way."""
        run, signals = self.run, self.signals
        pauses = Pauses(every(run.config.checkpoint_every), signals, lambda: steps_done(run))
        signals.on_stop, signals.waiting = self.reporter.stopping, True
        try:
            while run.progress.epoch < run.config.epochs and not self._patience_is_over():
                try:
                    self._fit_and_save(pauses)
                except NonFiniteError as error:
                    self._warn([nonfinite.apply_policy(run, error, self.folder)])
                except (WorkerError, PeerError):  # a signal to the process group ends the worker processes too
                    if run.group.is_single and signals.stop is not None and run.config.grad_accum_steps == 1:
                        checkpoint.save(run, self.folder, best=False)  # the run is between two steps
                        signals.raise_if_stopped()
                    elif not run.group.is_single:  # it is between two steps in some of the processes only
                        signals.raise_if_stopped()
                    raise
                signals.raise_if_stopped()
        finally:
            signals.waiting, signals.on_stop = False, None
        return Status.COMPLETED if run.progress.epoch >= run.config.epochs else Status.STOPPED_EARLY

    def _fit_and_save(self, pauses: Pauses) -> None:
        """Train until the last epoch, early stopping, a signal or a non-finite loss; save at every event."""
        for event in fit_with_checkpoints(self.run, pauses, self.reporter.track):
            drifted = isinstance(event, Epoch) and not self.run.group.is_single and not same_weights(self.run)
            self.run.group.on_rank_0(functools.partial(self._save, event, planned=pauses.planned))
            pauses.saved()
            if drifted:
                self._warn(
                    [f"the processes' weights differed after {self.position()}; all have those of process 0 now"]
                )
            if isinstance(event, Epoch) and self._patience_is_over():
                return
            self.signals.raise_if_stopped()

    def _save(self, event: Epoch | CheckpointEvent, *, planned: bool) -> None:
        """Save the run, and report the epoch if it is the end of one."""
        run, folder = self.run, self.folder
        epoch = event if isinstance(event, Epoch) else None
        if epoch is not None:
            runfolder.append_metrics(folder, epoch.to_dict())
        with within_memory("saving a checkpoint"):
            checkpoint.save(run, folder, best=epoch is not None and epoch.best)
        nonfinite.keep_restorable(run, folder, planned=epoch is not None or planned)
        if self.signals.save:
            self.reporter.message(Level.NOTICE, f"saved {folder / runfolder.LAST} {self.position()}")
        if epoch is not None:
            self.reporter.epoch(epoch)
            self._warn(epochs.check_sign(run.config, folder, epoch))

    def _patience_is_over(self) -> bool:
        stopping = self.run.config.early_stopping
        return stopping is not None and self.run.progress.epochs_without_improvement >= stopping.patience
