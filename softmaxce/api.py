"""Training, evaluation and prediction from Python, as the commands do them; `import softmaxce` offers these names.

>>> from softmaxce import build_run, fit, load_config
>>> run = build_run(load_config("digits", {"epochs": 1, "model": "linear"}))
>>> [epoch.number for epoch in fit(run)]
[1]
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from torch import nn

from . import build, session, streams
from .config.from_python import ConfigLike, load_config
from .config.keys import Config
from .config.objects import object_name, objects_of, with_objects
from .config.users_code import refuse_users_code
from .data.splits import Dataset
from .errors import ConfigError, DataError, Problem
from .inference.metrics import Metrics, compute_metrics
from .inference.requirements import Requirement
from .inference.trained_model import TrainedModel
from .inference.tta import with_tta
from .losses.interface import Loss
from .report.loggers.background import background_loggers
from .report.loggers.names import check_loggers
from .report.notebook import NotebookTable, in_notebook
from .report.step_summary import StepSummary
from .report.training import Messages, console_reporter
from .runs import initial_weights, teacher
from .runs.plan import Plan, resume_or_start, resume_run
from .runs.provenance import ImagesNow
from .runtime.signals import Signals
from .session import Level, Outcome, Reporter, Reporters
from .training.evaluation import loss_of, predict
from .training.loop import fit
from .training.run import Run

__all__ = ["build_run", "evaluate", "fit", "load", "load_config", "train"]


def build_run(
    config: ConfigLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    dataset: Dataset | None = None,
) -> Run:
    """Build a run: data, model, loss, optimizer, schedule. Nothing is trained or written; `fit` trains it.

    Args:
        config: a Config, a recipe's name, a YAML file, or a dict.
        overrides: values that replace the config's, by their dotted keys.
        model: in place of the config's: images [B, C, H, W] float -> logits [B, K]. It is trained in place.
        loss: in place of the config's: (logits [B, K], targets [B] or [B, K]) -> a scalar or [B].
        dataset: in place of the config's, with its splits and class names.
    Raises: ConfigError with every mistake; DataError if images are missing or cannot be used.
    """
    run = build.build_run(_config(config, overrides, model, loss, dataset))
    initial_weights.load(run, partial(streams.line, err=True))
    teacher.load(run, partial(streams.line, err=True))
    return run


def train(
    config: ConfigLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | Literal["auto"] | None = None,
    require: Sequence[Requirement | str] = (),
    reporters: Sequence[Reporter] | None = None,
    log: Sequence[str] = (),
    quiet: bool = False,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    dataset: Dataset | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Outcome:
    """Train in a run folder, as `softmaxce train` does: save, resume, stop early, evaluate the best weights.

    In a terminal and in a notebook it draws a table. ctrl-C (a notebook's interrupt) ends the step in progress, saves,
    and raises KeyboardInterrupt; the same call with `resume="auto"` and `output` then continues.

    A model, loss or data set passed as an object is recorded by its class name only. Resuming and loading such a run
    needs the object again, and `softmaxce eval` and the other commands refuse it.

    Args:
        config: a Config, a recipe's name, a YAML file, or a dict; may be left out to resume a folder.
        overrides: values that replace the config's, by their dotted keys.
        output: the run folder; None for the next number under runs/<recipe>/.
        resume: a run folder to continue; or "auto": continue the run in `output`, or else the same run under
            runs/<recipe>/, or start it. None starts a new run.
        require: final metrics to reach, such as "accuracy>=0.99"; see Outcome.requirements_met.
        reporters: observers in place of the table and the messages.
        log: where the run is logged too: tensorboard, mlflow, wandb.
        quiet: print only the result.
        model: in place of the config's: images [B, C, H, W] float -> logits [B, K]. It is trained in place.
        loss: in place of the config's: (logits [B, K], targets [B] or [B, K]) -> a scalar or [B].
        dataset: in place of the config's, with its splits and class names.
        trust_code: run the `module:Name` code that the config of the folder in `resume` names.
        allow_changed_data: resume although the images are not those that the run was trained with.
    Raises: errors.SoftmaxceError: ConfigError, DataError, RunError or TrainingError; KeyboardInterrupt.
    """
    names = check_loggers([log] if isinstance(log, str) else log, "log")
    with Signals() as signals, background_loggers(names) as loggers:
        started = time.perf_counter()
        objects = {"model": model, "loss": loss, "dataset": dataset}
        reporter = Reporters(_reporters(quiet) if reporters is None else reporters)
        plan, messages = _plan(config, overrides, output, resume, objects, trust_code, allow_changed_data)
        for text in messages:
            reporter.message(Level.NOTICE, text)
        run = build.build_run(plan.config)
        return session.train(
            run,
            plan.folder,
            resume=plan.resume,
            requirements=require,
            reporters=[*loggers, reporter],
            allow_changed_data=plan.allow_changed_data,
            signals=signals,
            started=started,
        )


def load(
    path: str | PathLike[str],
    *,
    device: str | None = None,
    tta: str | None = None,
    temperature: float | None = None,
    data_root: str | PathLike[str] | None = None,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    dataset: Dataset | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> TrainedModel:
    """Open a trained model: evaluate(), predict(images), logits(split), metrics(split).

    Args:
        path: a run folder, for its best checkpoint or else its last, or a checkpoint.
        device: auto, cpu, cuda, cuda:N or mps; None for the run's own, if this machine has it, else auto.
        tta: the test-time augmentation, as in a config; None for the run's own.
        temperature: None for the run's own: the one that `softmaxce calibrate` stored, else 1.
        data_root: where the data set is now; None for where it was at training.
        model: an object with the run's architecture, which gets the run's weights; for a run trained with an object.
        loss: the loss that the run was trained with; likewise.
        dataset: the data set that the run was trained with; likewise.
        trust_code: run the `module:Name` code that the checkpoint names; refused otherwise.
        allow_changed_data: evaluate splits although their images are not those of the training.
    Raises: RunError if there is no checkpoint or it is damaged; ConfigError if its parts cannot be built.
    """
    return TrainedModel.open(
        path,
        device=device,
        tta=tta,
        temperature=temperature,
        data_root=None if data_root is None else Path(data_root),
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
        model=model,
        loss=loss,
        dataset=dataset,
    )


def evaluate(run: Run | TrainedModel | str | PathLike[str], split: str = "test", **options: Any) -> Metrics:
    """Loss, accuracy, calibration and per-class metrics on a split.

    Args:
        run: what build_run made, with its weights as they are now; or a TrainedModel; or a run folder or checkpoint.
        split: test or validation; of a folder or a TrainedModel also train.
        options: as of `load`, for a folder or checkpoint.
    Raises: DataError if there is no such split; as load.
    """
    if not isinstance(run, Run):
        return (run if isinstance(run, TrainedModel) else load(run, **options)).evaluate(split)
    batches = {"validation": run.validation, "test": run.test}.get(split)
    if batches is None:
        raise DataError(f"this run has no {split} split to evaluate")
    logits, labels = predict(with_tta(run.evaluated, run.config.tta), batches, run.precision)
    return compute_metrics(logits.cpu().double(), labels.cpu(), loss_of(run.loss, logits, labels), run.classes)


def _config(config: ConfigLike, overrides: Mapping[str, Any] | None, model: Any, loss: Any, dataset: Any) -> Config:
    """The config with objects in place of names, which a dict may then leave out."""
    if isinstance(config, Mapping):
        named = {key: object_name(value) for key, value in (("model", model), ("loss", loss)) if value is not None}
        config = {**config, **named}
        if dataset is not None and isinstance(data := config.get("data", {}), Mapping):
            config["data"] = {**data, "name": object_name(dataset)}
    return with_objects(load_config(config, overrides), model=model, loss=loss, dataset=dataset)


def _plan(
    config: ConfigLike | None,
    overrides: Mapping[str, Any] | None,
    output: str | PathLike[str] | None,
    resume: str | PathLike[str] | None,
    objects: Mapping[str, Any],
    trust_code: bool,
    allow_changed_data: bool,
) -> tuple[Plan, list[str]]:
    """What is trained, and where; and messages for the user."""
    folder = None if output is None else Path(output)
    if resume is None or resume == "auto":
        if config is None:
            raise ConfigError([Problem("config", "is required: a recipe's name, a YAML file or a dict")])
        checked = _config(config, overrides, **objects)
        if resume is None:
            return Plan(checked, folder), []
        named = objects_of(checked)
        if any(each.is_object for each in checked.augment):
            named.append("data.augment")
        if folder is None and named:
            message = f"cannot identify a run whose config has Python objects ({', '.join(named)}); pass output= too"
            raise ConfigError([Problem("resume='auto'", message)])
        return resume_or_start(checked, folder, ImagesNow(), allow_changed_data=allow_changed_data)
    if folder is not None and folder.resolve() != Path(resume).resolve():
        raise ConfigError([Problem("output", "a resumed run stays in its own folder; omit output")])
    recorded = Path(resume) / "config.yaml"
    requested: Config | None = None  # resume_run raises where there is no run
    if config is not None:
        requested = _config(config, overrides, **objects)
    elif recorded.is_file():
        requested = with_objects(load_config(recorded, overrides), **objects)
        if not trust_code:
            refuse_users_code(requested, fspath(resume))
    return resume_run(Path(resume), requested, allow_changed_data=allow_changed_data), []


def _reporters(quiet: bool) -> list[Reporter]:
    table = NotebookTable() if in_notebook() and not quiet else console_reporter(as_json=False, quiet=quiet)
    return [Messages(quiet=quiet), table, StepSummary()]
