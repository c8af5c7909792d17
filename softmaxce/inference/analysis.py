"""The numbers of a run's report: metrics with and without calibration, losses of each image, the worst mistakes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.splits import InMemory, Split
from ..runs import folder as runfolder
from ..training.metrics import ReliabilityBin, reliability
from .evaluate import ImagePredictions
from .metrics import Metrics
from .run_data import default_split
from .temperature import fit_temperature
from .trained_model import TrainedModel

MISTAKES = 24  # the most confident, at most
PER_CLASS, MOST_MISTAKES = 8, 120  # further ones, so that each class has up to 8, as far as all are at most 120
TOP = 3  # classes of each


@dataclass(frozen=True)
class TemperatureResult:
    """The metrics and the reliability diagram at one softmax temperature.

    Attributes:
        temperature: what the logits were divided by.
        metrics: what `softmaxce eval` reports.
        bins: of the reliability diagram.
        confidence: the mean of the largest probability, in [0, 1].
        deviation: the standard deviation of the accuracy, if each image were correct with the probability that the
            model gives.
    """

    temperature: float
    metrics: Metrics
    bins: tuple[ReliabilityBin, ...]
    confidence: float
    deviation: float


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
        index: in the split.
        file: the file that it was read from; None if it has none of its own.
        image: [C, H, W], in the model's shape and depth.
        label: its class.
        top: (class, probability), the most probable first.
        label_probability: of its label.
        loss: -log of that, in nats.
    """

    index: int
    file: str | None
    image: Tensor
    label: str
    top: tuple[tuple[str, float], ...]
    label_probability: float
    loss: float


@dataclass(frozen=True)
class RunAnalysis:
    """Everything a report shows.

    Attributes:
        folder: the run folder.
        record: its run.json.
        epochs: its metrics.jsonl.
        model: the trained model.
        num_parameters: of the model.
        split: the split that it was evaluated on.
        results: as trained (temperature 1), and, if there is one, at the best temperature.
        calibrated: whether the run predicts at that temperature; else it was fitted for this analysis alone.
        unfitted: why there is no such temperature; empty if there is one.
        losses: [N] float64, -log S_y of each image in nats, as trained.
        correct: [N] bool.
        mistakes: of the misclassified images the most confident, and the most confident of each class; the most
            confident first.
        predictions: of each image, at the temperature that the run predicts with.
    """

    folder: Path
    record: dict[str, Any]
    epochs: list[dict[str, Any]]
    model: TrainedModel
    num_parameters: int
    split: str
    results: tuple[TemperatureResult, ...]
    calibrated: bool
    unfitted: str
    losses: Tensor
    correct: Tensor
    mistakes: tuple[Mistake, ...]
    predictions: ImagePredictions

    @property
    def final(self) -> TemperatureResult:
        """As the run predicts: at its temperature, if it is calibrated."""
        return self.results[-1 if self.calibrated else 0]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.model.classes


def analyze(
    folder: Path,
    split: str | None = None,
    device: str | None = None,
    *,
    data_root: Path | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> RunAnalysis:
    """Read a run folder and evaluate its model.

    Args:
        folder: the run folder.
        split: test, validation or train; None for the first of these that the run has.
        device: as in TrainedModel.open.
        data_root: where the data set is now, as in TrainedModel.open.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: use the run's splits although their images are not those of the training.
    Raises: RunError if the folder holds no run or no checkpoint; DataError, ConfigError as `softmaxce eval`.
    """
    record = runfolder.read_record(folder)
    model = TrainedModel.open(
        folder, device=device, data_root=data_root, trust_code=trust_code, allow_changed_data=allow_changed_data
    )
    name = split or default_split(model.dataset, record, allow_changed_data=model.allow_changed_data)
    images = model.split(name)
    logits, labels = model.logits(images)
    temperature, unfitted = model.temperature, ""
    calibrated = temperature != 1
    if not calibrated:
        try:
            temperature = _fit_on_validation(model, evaluated=name)
        except ValueError as error:
            unfitted = str(error)
    results = [_at_temperature(model, logits, labels, t) for t in dict.fromkeys([1.0, temperature])]
    logits, labels = logits.cpu().double(), labels.cpu()
    return RunAnalysis(
        folder=folder,
        record=record,
        epochs=runfolder.read_metrics(folder),
        model=model,
        num_parameters=sum(p.numel() for p in model.model.parameters()),
        split=name,
        results=tuple(results),
        calibrated=calibrated,
        unfitted=unfitted,
        losses=-torch.log_softmax(logits, 1).gather(1, labels.unsqueeze(1)).squeeze(1),
        correct=logits.argmax(1) == labels,
        mistakes=_mistakes(logits / model.temperature, labels, images, model.classes),
        predictions=ImagePredictions(
            model.probabilities_of(logits), model.nll_of(logits, labels), labels, images.files
        ),
    )


def _fit_on_validation(model: TrainedModel, *, evaluated: str) -> float:
    """The best temperature on the validation split. Raises: ValueError if there is none, or no unbiased one."""
    if model.dataset.validation is None:
        raise ValueError("the run held out no validation split to fit one on")
    if evaluated == "validation":
        raise ValueError("it would be fitted on the same images that it is evaluated on")
    logits, labels = model.logits("validation")
    return fit_temperature(logits.cpu(), labels.cpu())


def _at_temperature(model: TrainedModel, logits: Tensor, labels: Tensor, temperature: float) -> TemperatureResult:
    metrics = model.metrics_of(logits, labels, temperature)
    probabilities = torch.softmax(logits.cpu().double() / temperature, 1).numpy()
    bins = tuple(reliability(probabilities, labels.cpu().numpy()))
    largest = probabilities.max(1)
    deviation = float((largest * (1 - largest)).sum() ** 0.5 / len(labels))
    return TemperatureResult(temperature, metrics, bins, float(largest.mean()), deviation)


def _mistakes(logits: Tensor, labels: Tensor, split: Split, names: tuple[str, ...]) -> tuple[Mistake, ...]:
    """The misclassified images that are shown, the most confident first."""
    probabilities = torch.softmax(logits, 1)
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[torch.argsort(confidence[wrong], descending=True, stable=True)]
    mistakes = []
    for index in _shown(order.tolist(), labels[order].tolist()):
        row, label = probabilities[index], int(labels[index])
        values, ids = row.topk(min(TOP, len(names)))
        image = split.images[index] if isinstance(split, InMemory) else split.decode(split.files[index])
        mistakes.append(
            Mistake(
                index=index,
                file=None if split.files is None else split.files[index],
                image=image,
                label=names[label],
                top=tuple((names[i], p) for i, p in zip(ids.tolist(), values.tolist(), strict=True)),
                label_probability=float(row[label]),
                loss=float(-torch.log_softmax(logits[index], 0)[label]),
            )
        )
    return tuple(mistakes)


def _shown(order: list[int], labels: list[int]) -> list[int]:
    """The images that are shown, of all mistakes in order: the first, then the first of each class, its second, ..."""
    by_class: dict[int, list[int]] = {}
    for index, label in zip(order, labels, strict=True):
        by_class.setdefault(label, []).append(index)
    further = [images[rank] for rank in range(PER_CLASS) for images in by_class.values() if rank < len(images)]
    shown = set(list(dict.fromkeys([*order[:MISTAKES], *further]))[:MOST_MISTAKES])
    return [index for index in order if index in shown]
