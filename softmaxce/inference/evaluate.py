"""The final evaluation of a training run, and the evaluation of a checkpoint on any split or folder."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..data.splits import Split
from ..errors import DataError
from ..runs import checkpoint, provenance
from ..runs.folder import BEST
from ..training.evaluation import loss_of, predict
from ..training.run import Run
from ..training.tally import Scores
from .exported_model import ExportedModel
from .metrics import Metrics, compute_metrics
from .opening import class_folders, model_type
from .run_data import default_split
from .trained_model import TrainedModel
from .tta import with_tta


def final_evaluation(run: Run, folder: Path, names: Collection[str]) -> tuple[str, Scores | None, dict[str, float]]:
    """Evaluate a finished run once: its best weights on the test split, if a validation split selected them.

    Without a validation split these are the last weights; without a test split, the validation split is evaluated.

    Args:
        run: a run that has been trained. Its weights and its loss become those of the best epoch.
        folder: the run folder, with best.safetensors.
        names: the metrics that are needed beside the config's; if any is none of loss and accuracy, all are computed.
    Returns: the split's name, its scores (None if there is no split to evaluate on), and the metrics by name.
    """
    if run.progress.best_epoch:
        best = run.group.from_rank_0(lambda: checkpoint.load(folder / BEST))
        checkpoint.load_weights(run.evaluated, best)
        checkpoint.load_loss(run.loss, best)
    name, batches = ("test", run.test) if run.test is not None else ("validation", run.validation)
    if batches is None:
        return name, None, {}
    logits, labels = predict(with_tta(run.evaluated, run.config.tta), batches, run.precision, run.group)

    def measure() -> tuple[str, Scores | None, dict[str, float]]:
        loss = loss_of(run.loss, logits, labels)
        accuracy = (logits.argmax(1) == labels).sum().item() / len(labels)
        metrics = {"loss": loss, "accuracy": accuracy}
        of_epochs = run.config.epoch_metrics
        if {*names, *of_epochs} - set(metrics):
            metrics = compute_metrics(logits.cpu(), labels.cpu(), loss, run.classes).by_name()
        return name, Scores(loss, accuracy, len(labels), {other: metrics[other] for other in of_epochs}), metrics

    return run.group.from_rank_0(measure)


@dataclass(frozen=True)
class MisclassifiedImage:
    """An image whose class was not predicted.

    Attributes:
        index: in the split, as of `softmaxce explain --index`.
        file: its path; None if it has no file of its own, as MNIST's.
        label: its class.
        predicted: the predicted class.
        probability: of that class.
    """

    index: int
    file: str | None
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class ImagePredictions:
    """What a model says of each image of a split, in its order.

    Attributes:
        probabilities: [N, K] float64, at the model's temperature.
        losses: [N] float64, the negative log-likelihood of the labels at that temperature, nats.
        labels: [N] int64.
        files: N paths that the images were read from; None if they come from no files of their own.
        folds: [N] int64, of a cross-validation: the fold that held each image out. None of one model's predictions.
    """

    probabilities: Tensor
    losses: Tensor
    labels: Tensor
    files: Sequence[str] | None
    folds: Tensor | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation of a checkpoint.

    Attributes:
        checkpoint: the file.
        epoch: the epoch that its weights are of.
        split: the split's name, or the folder.
        tta: the test-time augmentation.
        temperature: what the logits were divided by for the probabilities; `metrics.loss` is of the logits as they are.
        metrics: the results.
        images: what the model says of each image.
        misclassified: the images whose class was not predicted, the most confident prediction first.
        environment_changes: what has changed in the environment since training, `torch 2.14.1, now 2.15`; empty where
            no run.json lies beside the checkpoint.
    """

    checkpoint: Path
    epoch: int
    split: str
    tta: str
    temperature: float
    metrics: Metrics
    images: ImagePredictions
    misclassified: tuple[MisclassifiedImage, ...] = ()
    environment_changes: tuple[str, ...] = ()


def evaluate(
    path: Path,
    split: str | None = None,
    data: Path | None = None,
    device: str | None = None,
    temperature: float | None = None,
    batch_size: int | None = None,
    *,
    tta: str | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> EvaluationResult:
    """Evaluate a run's model on one of its own splits or on other data.

    Args:
        path: a run folder, a checkpoint, or an exported ONNX file.
        split: test, validation or train: the split that the run used; None for the
            first of these that the run has. Its images must be those of the training.
        data: a table of images and labels; or another folder: of images, one sub-folder per class; or the root folder
            of the run's data set, if it has none of the classes' names or `split` is given.
        device: as in TrainedModel.open, like temperature, batch_size, tta and trust_code.
        temperature: what the logits are divided by.
        batch_size: images at once.
        tta: the test-time augmentation, as in a config.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: evaluate the run's own split although its images are not those of the training.
    Raises: RunError, ConfigError, DataError.
    """
    if data is not None and data.is_file() and split is not None:
        raise DataError(f"--data {data}: all images of a table are evaluated; leave out --split")
    has_classes = data is not None and (data.is_file() or _has_class_folders(data, class_folders(path)))
    other_images = data if has_classes and split is None else None
    model = model_type(path).open(
        path,
        device=device,
        batch_size=batch_size,
        tta=tta,
        temperature=temperature,
        data_root=data if other_images is None else None,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    if other_images is not None:
        images, name = model.folder_split(other_images), str(other_images)
    else:
        name = split or default_split(model.dataset, model.record, allow_changed_data=allow_changed_data)
        # At the root of another data set of the same name (another MNIST) the images are others on purpose.
        images = model.split(name, check_images=data is None or has_classes)
    return _evaluated(model, images, name)


def _evaluated(model: TrainedModel | ExportedModel, images: Split, name: str) -> EvaluationResult:
    logits, labels = model.logits(images)
    predictions = ImagePredictions(
        model.probabilities_of(logits), model.nll_of(logits, labels), labels.cpu(), images.files
    )
    return EvaluationResult(
        checkpoint=model.checkpoint,
        epoch=model.epoch,
        split=name,
        tta=model.tta,
        temperature=model.temperature,
        metrics=model.metrics_of(logits, labels),
        images=predictions,
        misclassified=_misclassified(predictions, model.classes),
        environment_changes=_environment_changes(model),
    )


def _misclassified(images: ImagePredictions, classes: tuple[str, ...]) -> tuple[MisclassifiedImage, ...]:
    confidence, predicted = images.probabilities.max(1)
    wrong = (predicted != images.labels).nonzero().flatten()
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    return tuple(
        MisclassifiedImage(
            index=index,
            file=None if images.files is None else images.files[index],
            label=classes[int(images.labels[index])],
            predicted=classes[int(predicted[index])],
            probability=float(confidence[index]),
        )
        for index in order.tolist()
    )


def _environment_changes(model: TrainedModel | ExportedModel) -> tuple[str, ...]:
    if isinstance(model, ExportedModel):  # which computes without the libraries that it was trained with
        return ()
    recorded = model.record.get("environment")
    if not isinstance(recorded, dict):
        return ()
    now = {**provenance.of_machine(model.device, model.precision), "code": provenance.of_code(model.config)}
    return tuple(provenance.differences(recorded, now))


def _has_class_folders(folder: Path, classes: list[str]) -> bool:
    """Whether a folder, or `test` in it, has a sub-folder with the name of a class."""
    return bool(set(classes) & (_folder_names(folder) | _folder_names(folder / "test")))


def _folder_names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
