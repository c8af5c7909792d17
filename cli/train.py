"""`softmaxce train`: train from a config, print a row an epoch, keep everything in a run folder."""

import enum
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmaxce import config as configs
from softmaxce import requirements
from softmaxce.config import Config, Override
from softmaxce.errors import (
    FAILED,
    ConfigError,
    Problem,
    RunError,
    SoftmaxceError,
    TrainingError,
    in_one_line,
)

from .trust import TrustCode

if TYPE_CHECKING:
    from softmaxce.report.training import Outcome, Reporter
    from softmaxce.train import Run

# What a resumed run may change: where things are and how long it goes on, not what is computed.
MAY_CHANGE = ("epochs", "device", "data.root", "data.download", "data.eval_batch_size")


class LogName(enum.StrEnum):
    """Where else the epochs may be written."""

    tensorboard = "tensorboard"


@dataclass(frozen=True)
class Plan:
    """What a command line asks for: the config, and the folder to go on in or to start."""

    config: Config
    resume: Path | None
    output: Path | None


def train(
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML file, or a recipe's name (softmaxce config list).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. optimizer.lr=0.05.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, shuffling, augmentation and splits.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs to train.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run folder itself; else runs/<recipe>/<number>.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|RUN", help="Go on with a run folder; auto: where this run stopped, or start it."),
    ] = None,
    trust_code: TrustCode = False,
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
    plan = make_plan(config, overrides, output, resume)
    if resume is not None and config is None and not trust_code:  # the config lay in the run folder
        configs.refuse_users_code(plan.config, f"--resume {resume}")

    from softmaxce.build import build_run
    from softmaxce.report.training import reporter

    started = time.perf_counter()
    run = build_run(plan.config)
    requirements.check_classes(demands, run.classes)
    if dry_run:
        from softmaxce.report.summary import print_summary

        print_summary(run, as_json=json)
        return
    if verbose:
        _print_details(run)
    telling = reporter(as_json=json, quiet=quiet)
    if log:
        from softmaxce.report.events import TensorBoard

        telling = TensorBoard(telling)
    outcome = carry_out(run, plan, demands, telling, started)
    if outcome.message and outcome.status == "failed":
        raise TrainingError(outcome.message)
    if report:
        from softmaxce.report.write import write_report

        # the code it names is what was just trained with
        written = write_report(outcome.folder, device=str(run.device), trust_code=True)
        typer.echo(f"report: {written.page}", err=True)
    if not all(verdict.met for verdict in outcome.verdicts):
        raise typer.Exit(FAILED)


# -- what is asked for ------------------------------------------------------------------------------------------------


def make_plan(config: str | None, overrides: list[Override], output: Path | None, resume: str | None) -> Plan:
    """Decide what to train and where, without torch. Raises: ConfigError, RunError."""
    if resume is None:
        return Plan(configs.load(_needed(config), overrides), None, output)
    if resume != "auto":
        if output is not None and output.resolve() != Path(resume).resolve():
            raise ConfigError([Problem("--output", "a resumed run stays in its own folder; leave --output out")])
        folder = Path(resume)
        if not (folder / "config.yaml").is_file():
            raise RunError(f"--resume {resume}: there is no run in this folder (no config.yaml)")
        return Plan(_resumed(folder, config, overrides), folder, None)
    asked = configs.load(_needed(config), overrides)
    folder_ = output if output is not None else _unfinished(asked.recipe)
    if folder_ is not None and (folder_ / "config.yaml").is_file():
        return Plan(_resumed(folder_, config, overrides), folder_, None)
    return Plan(asked, None, output)


def need_tensorboard() -> None:
    """Refuse `--log tensorboard` where the optional extra is missing, before training. Raises: ConfigError."""
    if importlib.util.find_spec("tensorboard") is None:
        message = "TensorBoard is not installed; get it with: pip install 'softmaxce[tensorboard]'"
        raise ConfigError([Problem("--log tensorboard", message)])


def _needed(config: str | None) -> str:
    if config is None:
        message = "is needed: a YAML file or a recipe's name, for example --config digits"
        raise ConfigError([Problem("--config", message)])
    return config


def _unfinished(recipe: str) -> Path | None:
    """The newest run of a recipe, if it did not come to its end."""
    from softmaxce.runfolder import newest, read_record

    folder = newest(recipe=recipe)
    return (
        folder
        if folder is not None and read_record(folder).get("status") not in ("completed", "stopped_early")
        else None
    )


def _resumed(folder: Path, config: str | None, overrides: list[Override]) -> Config:
    """The config to go on with: the run's own, changed only where a resumed run may be."""
    recorded = configs.load(str(folder / "config.yaml"))
    asked = configs.load(config if config is not None else str(folder / "config.yaml"), overrides)
    before, after = _flat(recorded.plain()), _flat(asked.plain())
    differing = [key for key in {**before, **after} if before.get(key) != after.get(key) and key not in MAY_CHANGE]
    if differing:
        told = [f"{key} was {before.get(key)!r} and is now {after.get(key)!r}" for key in differing[:5]]
        raise RunError(f"{folder}: a resumed run keeps its config, but {'; '.join(told)}. Start a new run for that")
    return asked


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# -- carrying it out --------------------------------------------------------------------------------------------------


def carry_out(
    run: "Run", plan: Plan, demands: list[requirements.Requirement], reporter: "Reporter", started: float
) -> "Outcome":
    """Train, save, evaluate: the order of the lines is the order of what happens."""
    from softmaxce import checkpoint, runfolder
    from softmaxce.evaluate import final_evaluation
    from softmaxce.report import step_summary
    from softmaxce.report.training import Outcome
    from softmaxce.runtime import environment
    from softmaxce.train import fit

    if plan.resume is not None:
        folder = plan.resume
        record = runfolder.read_record(folder)
        if (folder / runfolder.LAST).exists():
            checkpoint.restore(run, checkpoint.load(folder / runfolder.LAST))
        runfolder.cut_metrics(folder, run.progress.epoch)
    else:
        folder = runfolder.create(plan.config.recipe, plan.output)
        record = {"recipe": plan.config.recipe, "classes": list(run.classes)}
    record |= {"status": "running", "environment": environment(run.device)}
    record["commands"] = [*record.get("commands", []), sys.argv]
    record["started"] = record.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    earlier_seconds = record.get("seconds", 0.0)
    runfolder.write_config(folder, run.config.plain())
    runfolder.write_record(folder, record)

    def finish(status: str, message: str = "", **results: Any) -> Outcome:
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
        runfolder.write_record(folder, record | {k: v for k, v in outcome.plain().items() if k not in ("event", "run")})
        reporter.end(outcome)
        step_summary.of_training(outcome)
        return outcome

    reporter.start(run, folder)
    stopping = run.config.early_stopping
    status = "completed"
    try:
        for epoch in fit(run, reporter.track):
            reporter.epoch(epoch)
            runfolder.append_metrics(folder, epoch.plain())
            checkpoint.save(run, folder, best=epoch.best)
            if stopping is not None and epoch.waited >= stopping.patience:
                status = "stopped_early"
                break
        split, scores, figures = final_evaluation(run, folder, {demand.figure for demand in demands})
    except TrainingError as error:
        return finish("failed", str(error))
    except SoftmaxceError as error:  # an image that cannot be decoded, say
        finish("failed", str(error))
        raise
    except OSError:
        raise
    except Exception as error:  # the user's loss or model, or memory that ran out
        message = f"epoch {run.progress.epoch + 1}: {in_one_line(error)}"
        finish("failed", message)
        raise TrainingError(message) from error
    except KeyboardInterrupt as interruption:
        word = "terminated" if type(interruption).__name__ == "Terminated" else "interrupted"
        done = f"{word} after {run.progress.epoch} of {run.config.epochs} epochs"
        finish(word, done)
        typer.echo(f"{done}; go on with: softmaxce train --resume {folder}", err=True)
        raise
    verdicts = tuple(requirements.judge(demands, figures))
    return finish(status, split=split, scores=scores, verdicts=verdicts)


def _print_details(run: "Run") -> None:
    from softmaxce import yamlfile
    from softmaxce.runtime import environment

    typer.echo(yamlfile.dump({"config": run.config.plain(), "environment": environment(run.device)}), err=True)
