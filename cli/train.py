"""`softmaxce train`: train from a config, print a row an epoch, keep everything in a run folder."""

import contextlib
import enum
import errno
import importlib.util
import shlex
import sys
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmaxce.config import keys
from softmaxce.config import reader as configs
from softmaxce.config.reader import Override
from softmaxce.errors import (
    FAILED,
    ConfigError,
    MemoryRanOutError,
    Problem,
    RunError,
    SoftmaxceError,
    TrainingError,
    WorkerError,
    in_one_line,
    ran_out_of_memory,
    within_memory,
)
from softmaxce.inference import requirements
from softmaxce.runtime.signals import Pauses, Signals, Terminated, every

from .imports import imports
from .options import AllowChangedData
from .plans import Plan, make_plan, needed
from .trust import TrustCode

if TYPE_CHECKING:
    from softmaxce.report.training import Outcome, Reporter
    from softmaxce.training.nonfinite import NonFiniteError
    from softmaxce.training.run import Run


class LogName(enum.StrEnum):
    """Where else the epochs may be written."""

    tensorboard = "tensorboard"


@dataclass(frozen=True)
class Telling:
    """How a run is told of."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    report: bool = False
    tensorboard: bool = False


def train(
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML file, or a recipe's name (softmaxce config list).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. optimizer.lr=0.05.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, shuffling, augmentation and splits.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Train under N seeds, from the config's own on, a run each.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs to train.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The run folder itself (with --seeds, a folder for them); else runs/<recipe>/<number>."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|RUN", help="Go on with a run folder; auto: where this run stopped, or start it."),
    ] = None,
    trust_code: TrustCode = False,
    allow_changed_data: AllowChangedData = False,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="FIGURE>=N", help="Demand a final figure, e.g. 'accuracy>=0.99'; exit 1 if not met."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Write the run's report at the end.")] = False,
    log: Annotated[
        list[LogName] | None, typer.Option(help="Also write TensorBoard event files into the run folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build all, run one batch, print a summary.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON Lines on stdout and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print config and versions.")] = False,
) -> None:
    """Train a classifier from a config."""
    overrides = [configs.parse_override(text) for text in set_ or []]
    flags = (("device", device), ("seed", seed), ("epochs", epochs))
    overrides += [Override((name,), value, f"--{name}") for name, value in flags if value is not None]
    demands = requirements.parse(require or [])
    if log:
        need_tensorboard()
    telling = Telling(json, quiet, verbose, report, tensorboard=bool(log))
    if seeds is not None:
        from softmaxce.config.sweep import seeds as under_seeds

        from .several import check_options, train_seeds

        check_options(resume, dry_run)
        asked = under_seeds(needed(config), seeds, overrides)
        train_seeds(asked, output, resume == "auto", demands, telling, allow_changed_data=allow_changed_data)
        return
    plan = make_plan(config, overrides, output, resume, allow_changed_data=allow_changed_data)
    if resume is not None and config is None and not trust_code:  # the config lay in the run folder
        keys.refuse_users_code(plan.config, f"--resume {resume}")
    if dry_run:
        with imports():
            from softmaxce.build import build_run
            from softmaxce.report.summary import print_summary

        run = build_run(plan.config)
        _check_demands(demands, run)
        print_summary(run, as_json=json)
        return
    outcome = train_one(plan, demands, telling)
    if outcome.message and outcome.status == "failed":
        raise TrainingError(outcome.message)
    if not all(verdict.met for verdict in outcome.verdicts):
        raise typer.Exit(FAILED)


def train_one(plan: Plan, demands: list[requirements.Requirement], telling: Telling) -> "Outcome":
    """Build a run, train it, and write its report if that is asked for. Raises: as build_run and carry_out."""
    with Signals() as signals:
        return _train_one(plan, demands, telling, signals)


def _train_one(plan: Plan, demands: list[requirements.Requirement], telling: Telling, signals: Signals) -> "Outcome":
    with imports():
        from softmaxce.build import build_run
        from softmaxce.report.training import reporter

    started = time.perf_counter()
    run = build_run(plan.config)
    _check_demands(demands, run)
    if telling.verbose:
        _print_details(run)
    teller = reporter(as_json=telling.json, quiet=telling.quiet)
    if telling.tensorboard:
        from softmaxce.report.events import TensorBoard

        teller = TensorBoard(teller)
    outcome = carry_out(run, plan, demands, teller, signals, started, quiet=telling.quiet)
    if telling.report and outcome.status != "failed":
        from softmaxce.report.html.write import write_report

        # the code it names is what was just trained with
        written = write_report(outcome.folder, device=str(run.device), trust_code=True)
        typer.echo(f"report: {written.page}", err=True)
    return outcome


def need_tensorboard() -> None:
    """Refuse `--log tensorboard` where the optional extra is missing, before training. Raises: ConfigError."""
    if importlib.util.find_spec("tensorboard") is None:
        message = "TensorBoard is not installed; get it with: pip install 'softmaxce[tensorboard]'"
        raise ConfigError([Problem("--log tensorboard", message)])


def _check_demands(demands: list[requirements.Requirement], run: "Run") -> None:
    """Refuse a requirement that this run cannot answer, before it is trained. Raises: ConfigError."""
    requirements.check_classes(demands, run.classes)
    if demands and run.test is None and run.validation is None:
        message = "there is no test or validation split to judge by; set data.validation, to 0.1 for example"
        raise ConfigError([Problem(f"--require {demands[0]}", message)])


# -- carrying it out --------------------------------------------------------------------------------------------------


def carry_out(
    run: "Run",
    plan: Plan,
    demands: list[requirements.Requirement],
    reporter: "Reporter",
    signals: Signals,
    started: float,
    *,
    quiet: bool,
) -> "Outcome":
    """Train, save, evaluate, in a run folder held for this process alone."""
    from softmaxce.inference.evaluate import final_evaluation
    from softmaxce.report import step_summary
    from softmaxce.report.training import Outcome
    from softmaxce.runs import folder as runfolder

    folder = plan.resume if plan.resume is not None else runfolder.create(plan.config.recipe, plan.output)
    with runfolder.held(folder, new=plan.resume is None):
        record = _begin(run, folder, quiet=quiet, allow_changed_data=plan.allow_changed_data)
        earlier_seconds = record.get("seconds", 0.0)

        def finish(status: str, message: str = "", *, told: bool = True, **results: Any) -> Outcome:
            progress = run.progress
            outcome = Outcome(
                status=status,
                folder=folder,
                epochs=progress.epoch,
                seconds=earlier_seconds + time.perf_counter() - started,
                best_epoch=progress.best_epoch,
                best_metric=run.config.best_metric,
                best_value=progress.best_value,
                message=message,
                **results,
            )
            plain = {key: value for key, value in outcome.to_dict().items() if key not in ("event", "run")}
            runfolder.write_record(folder, record | plain)
            if told:
                reporter.end(outcome)
                step_summary.of_training(outcome)
            return outcome

        try:
            reporter.start(run, folder)
            status = _train_and_save(run, folder, reporter, signals)
            split, scores, figures = final_evaluation(run, folder, {demand.figure for demand in demands})
        except MemoryRanOutError as error:
            kept = f"; {folder} keeps its last checkpoint" if (folder / runfolder.LAST).is_file() else ""
            return finish("failed", f"{error}{kept}")
        except TrainingError as error:
            return finish("failed", str(error))
        except SoftmaxceError as error:  # an image that cannot be decoded, say
            finish("failed", str(error))
            raise
        except BrokenPipeError:  # whoever read our output has gone
            finish("interrupted", "nobody reads the output any more", told=False)
            raise
        except OSError as error:  # the disk is full or read-only, or the folder is gone
            with contextlib.suppress(OSError):  # it may be too full for this as well; the error below is what is told
                finish("failed", f"{error.filename}: {error.strerror}", told=False)
            if ran_out_of_memory(error):
                raise MemoryRanOutError(f"memory ran out ({error.strerror}); {_again(run, folder)}") from None
            raise TrainingError(_remedy(error, run, folder)) from None
        except KeyboardInterrupt as interruption:
            done = f"{'terminated' if isinstance(interruption, Terminated) else 'interrupted'} {_place(run)}"
            finish(done.split()[0], done)
            typer.echo(f"{done}; {_again(run, folder)}", err=True)
            raise
        except Exception as error:  # the user's loss or model
            memory = "memory ran out: " if ran_out_of_memory(error) else ""
            message = f"epoch {run.progress.epoch + 1}: {memory}{in_one_line(error)}"
            finish("failed", message)
            raise TrainingError(message) from error
        verdicts = tuple(requirements.judge(demands, figures))
        return finish(status, split=split, scores=scores, verdicts=verdicts)


def _begin(run: "Run", folder: Path, *, quiet: bool, allow_changed_data: bool) -> dict[str, Any]:
    """Bring the run to where its folder says, and the folder to where the run is; the record, as written.

    Raises: RunError if the folder's run was trained with other images or class names than this one has.
    """
    from softmaxce.runs import checkpoint, provenance
    from softmaxce.runs import folder as runfolder

    stands_on = provenance.of_run(run)
    record: dict[str, Any] = {"recipe": run.config.recipe, "classes": list(run.classes)}
    if (folder / "config.yaml").is_file():  # else the run is new, or died before it had begun
        if (folder / "run.json").is_file():
            record = runfolder.read_record(folder)
        found, told = checkpoint.newest(folder)
        for line in told:
            typer.echo(f"warning: {line}", err=True)
        if found is not None:
            _check_data(run, folder, found.header["classes"], record, stands_on, allow_changed_data=allow_changed_data)
            checkpoint.restore(run, found)
            before = record.get("environment")
            earlier = record.get("earlier_environments", [])
            if isinstance(before, dict):
                if changed := provenance.differences(before, stands_on):
                    typer.echo(f"warning: {folder}: this run was trained with {'; '.join(changed)}", err=True)
                if changed or before.get("data", stands_on["data"]) != stands_on["data"]:
                    record["earlier_environments"] = [*earlier, before]
            if not quiet:
                typer.echo(f"going on from {found.file}, {_place(run)}", err=True)
        runfolder.cut_metrics(folder, run.progress.epoch)
        runfolder.clear_temporary(folder)
    record |= {"status": "running", "environment": stands_on, "classes": list(run.classes)}
    record["commands"] = [*record.get("commands", []), sys.argv]
    record["started"] = record.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    runfolder.write_config(folder, run.config.to_dict())
    runfolder.write_record(folder, record)
    return record


def _check_data(
    run: "Run",
    folder: Path,
    classes: list[str],
    record: dict[str, Any],
    stands_on: dict[str, Any],
    *,
    allow_changed_data: bool,
) -> None:
    """Refuse to go on with other images or class names than the checkpoint's. Raises: RunError."""
    from softmaxce.runs import provenance

    if list(run.classes) != classes:
        old, new = next(pair for pair in zip_longest(classes, run.classes) if pair[0] != pair[1])
        raise RunError(
            f"{folder}: the data has other classes than this run was trained on: {old!r} was, {new!r} is now"
        )
    provenance.check_images(folder, record, stands_on["data"], allow_changed_data=allow_changed_data)


def _again(run: "Run", folder: Path) -> str:
    """How to go on with a run; code of the user's that it trains with is to be vouched for."""
    trust = " --trust-code" if keys.users_code(run.config) else ""
    return f"go on with: softmaxce train --resume {shlex.quote(str(folder))}{trust}"


def _remedy(error: OSError, run: "Run", folder: Path) -> str:
    """A file that could not be written: why, and how to go on."""
    again = _again(run, folder)
    remedies = {
        errno.ENOSPC: f"make room on that disk and {again}",
        errno.EDQUOT: f"make room in your quota and {again}",
        errno.EFBIG: f"allow larger files (ulimit -f) and {again}",
        errno.EROFS: f"make that disk writable and {again}",
        errno.EACCES: f"make the folder writable and {again}",
        errno.ENOENT: "was the run folder moved or removed?",
    }
    return f"{error.filename}: {error.strerror}; {remedies.get(error.errno or 0, again)}"


def _place(run: "Run") -> str:
    """How far a run is: `after 3 of 10 epochs and 40 of 120 batches`."""
    batches = f" and {run.progress.batch} of {len(run.train)} batches" if run.progress.batch else ""
    return f"after {run.progress.epoch} of {run.config.epochs} epochs{batches}"


def _train_and_save(run: "Run", folder: Path, reporter: "Reporter", signals: Signals) -> str:
    """Train to the end, and save whenever it is time; the run's status."""
    from softmaxce.runs import checkpoint
    from softmaxce.runs import folder as runfolder
    from softmaxce.training.loop import fit_with_pauses
    from softmaxce.training.nonfinite import NonFiniteError
    from softmaxce.training.run import Epoch

    stopping = run.config.early_stopping
    pauses = Pauses(every(run.config.checkpoint_every), signals)
    signals.waiting = True
    try:
        while run.progress.epoch < run.config.epochs:
            if stopping is not None and run.progress.waited >= stopping.patience:
                return "stopped_early"
            try:
                for event in fit_with_pauses(run, pauses, reporter.track):
                    if isinstance(event, Epoch):
                        runfolder.append_metrics(folder, event.to_dict())
                    with within_memory("saving a checkpoint"):
                        checkpoint.save(run, folder, best=isinstance(event, Epoch) and event.best)
                    if signals.save:
                        typer.echo(f"saved {folder / runfolder.LAST} {_place(run)}", err=True)
                    pauses.saved()
                    if isinstance(event, Epoch):
                        reporter.epoch(event)
                        if stopping is not None and event.waited >= stopping.patience:
                            break
                    signals.raise_if_stopped()
            except NonFiniteError as error:
                _go_on_after(error, run, folder)
            except WorkerError:  # the signal may have gone to the worker processes too
                if signals.stop is not None and run.config.grad_accum_steps == 1:  # between two steps, that is
                    checkpoint.save(run, folder, best=False)
                    signals.raise_if_stopped()
                raise
            signals.raise_if_stopped()
    finally:
        signals.waiting = False
    return "completed"


def _go_on_after(error: "NonFiniteError", run: "Run", folder: Path) -> None:
    """Do what `on_nonfinite` says. Raises: TrainingError if that is to stop."""
    from softmaxce.runs import checkpoint

    batch = checkpoint.save_nonfinite(run, error, folder)
    allowed, count = run.config.max_nonfinite, run.progress.nonfinite
    message = f"{error}. The batch is kept in {batch}"
    if run.config.on_nonfinite == "stop":
        raise TrainingError(
            f"{message}; lower optimizer.lr, add schedule.warmup_epochs or set clip_grad_norm, "
            "or set on_nonfinite: skip"
        )
    if count > allowed:
        raise TrainingError(f"{message}; that was number {count}, and max_nonfinite is {allowed}")
    done = "skipped"
    if run.config.on_nonfinite == "restore":
        found, _ = checkpoint.newest(folder)
        if found is None:
            raise TrainingError(f"{message}; there is no checkpoint to restore yet, set checkpoint_every")
        checkpoint.restore_weights(run, found)
        done = f"restored the weights of {found.file}"
    typer.echo(f"warning: {message}; {done} ({count} of {allowed})", err=True)


def _print_details(run: "Run") -> None:
    from softmaxce.config import yamlfile
    from softmaxce.runs.provenance import of_machine

    about = of_machine(run.device, run.precision)
    typer.echo(yamlfile.dump({"config": run.config.to_dict(), "environment": about}), err=True)
