"""The final evaluation of a run, and the evaluation of a checkpoint on any split or folder."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.keys import Config
from ..data.splits import Split
from ..runs import checkpoint, provenance
from ..runs.folder import BEST, read_record
from ..training.evaluation import loss_of, predict
from ..training.run import Run
from ..training.tally import Scores
from .metrics import Metrics, measure
from .trained_model import build_evaluation, config_of, folder_split, split_of
from .tta import with_views


def final_evaluation(run: Run, folder: Path, wanted: Collection[str]) -> tuple[str, Scores | None, dict[str, float]]:
    """Evaluate a finished run once: its best weights on the test split, if a validation split chose them.

    Without a validation split these are the last weights; without a test split, the validation split is measured.

    Args:
        run: a run that fit is done with. Its weights become the best epoch's.
        folder: where best.safetensors is.
        wanted: figures that a requirement names; they are measured beside loss and accuracy.
    Returns: the split's name, its scores (None if there is nothing to measure on), and every figure by its name.
    """
    if run.progress.best_epoch:
        checkpoint.load_weights(run.evaluated, checkpoint.load(folder / BEST))
    name, batches = ("test", run.test) if run.test is not None else ("validation", run.validation)
    if batches is None:
        return name, None, {}
    logits, labels = predict(with_views(run.evaluated, run.config.tta), batches, run.precision)
    loss = loss_of(run.loss, logits, labels)
    accuracy = (logits.argmax(1) == labels).sum().item() / len(labels)
    figures = {"loss": loss, "accuracy": accuracy}
    if set(wanted) - set(figures):
        figures = measure(logits.cpu(), labels.cpu(), loss, run.classes).by_name()
    return name, Scores(loss, accuracy, len(labels)), figures


@dataclass(frozen=True)
class EvaluationResult:
    """What was evaluated, on what, and what came out.

    Attributes:
        checkpoint: whose weights.
        epoch: the epoch they are of.
        split: the split's name, or the folder.
        config: what they were trained with.
        temperature: what the logits were divided by for the probabilities; `figures.loss` is of the logits as they are.
        figures: what came out.
        differs: what the run stood on when it was trained and does not now, `torch 2.14.1, now 2.15`; empty where no
            run.json lies beside the checkpoint.
    """

    checkpoint: Path
    epoch: int
    split: str
    config: Config
    temperature: float
    figures: Metrics
    differs: tuple[str, ...] = ()


def evaluate(
    file: Path,
    split: str,
    data: Path | None,
    device: str | None,
    temperature: float = 1.0,
    batch_size: int | None = None,
    *,
    tta: str | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> EvaluationResult:
    """Measure a checkpoint's model.

    Args:
        file: the checkpoint.
        split: test, validation or train: the split that the run used. Its images must be those of the training.
        data: another folder: of images, one sub-folder a class; or, if it has none, the data set's root.
        device: where to compute; None for the run's own, if this machine has it, else auto.
        temperature: what the logits are divided by; calibration.temperature_of(run) gives a run's own.
        batch_size: images at once; None for the run's data.eval_batch_size.
        tta: the test-time augmentation, as in a config; None for the run's own.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: measure the run's own split although its images are others than at training.
    Raises: RunError, ConfigError, DataError.
    """
    loaded = checkpoint.load(file)
    changes: dict[str, object] = {"device": device or "auto"}
    if tta is not None:
        changes["tta"] = tta
    classes = set(loaded.header["classes"])
    as_images = data is not None and bool(classes & (_folder_names(data) | _folder_names(data / "test")))
    if data is not None and not as_images:
        changes["data.root"] = str(data)
    if batch_size is not None:
        changes["data.eval_batch_size"] = batch_size
    config = config_of(loaded, changes, trust_code=trust_code)
    evaluation = build_evaluation(loaded, config)
    chosen: Split = folder_split(evaluation, data) if data is not None and as_images else split_of(evaluation, split)
    if data is None:
        provenance.check_split(file, split, chosen, allow_changed_data=allow_changed_data)
    logits, labels = predict(evaluation.model, evaluation.batches(chosen), evaluation.precision)
    loss = loss_of(evaluation.loss, logits, labels)
    figures = measure(logits.cpu().double() / temperature, labels.cpu(), loss, evaluation.classes)
    where = str(data) if as_images else split
    now = provenance.of_machine(evaluation.device, evaluation.precision)
    differs = tuple(provenance.differences(_recorded(file), now))
    return EvaluationResult(file, loaded.header["epoch"], where, config, temperature, figures, differs)


def _recorded(file: Path) -> dict[str, Any]:
    """What run.json, beside a checkpoint, says the run stood on; empty if it lies alone."""
    if not (file.parent / "run.json").is_file():
        return {}
    found = read_record(file.parent).get("environment")
    return found if isinstance(found, dict) else {}


def _folder_names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
