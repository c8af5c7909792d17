"""Metrics of a classifier, from logits and labels."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .requirements import CLASS_METRICS, METRICS


@dataclass(frozen=True)
class ClassMetrics:
    """One class's metrics, in [0, 1], and `support`, the number of its images."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Metrics:
    """What `softmaxce eval` reports of a classifier.

    Attributes:
        loss: the run's own loss, nats per image; None for an exported model, which gives probabilities alone.
        accuracy: top-1, in [0, 1].
        top5_accuracy: the fraction of images whose label is among the five largest logits; None with five classes or
            fewer.
        nll: mean negative log-likelihood, nats per image: the loss without smoothing or weights.
        brier: mean squared distance between probabilities and one-hot label, in [0, 2] (Brier 1950, eq. 2).
        ece: expected calibration error, in [0, 1] (Guo et al. 2017, eq. 3; 15 equal bins).
        classes: one row per class.
        confusion: [K][K], row: the label, column: the prediction.
        images: how many images.
    """

    loss: float | None
    accuracy: float
    top5_accuracy: float | None
    nll: float
    brier: float
    ece: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    images: int

    def by_name(self) -> dict[str, float]:
        """Every scalar metric by its name in `--require`: `accuracy`, `recall.cat`."""
        result = {name: value for name in METRICS if (value := getattr(self, name)) is not None}
        for row in self.classes:
            result |= {f"{metric}.{row.name}": getattr(row, metric) for metric in CLASS_METRICS}
        return result


def compute_metrics(logits: Tensor, labels: Tensor, loss: float | None, names: tuple[str, ...]) -> Metrics:
    """All metrics of a classifier on one split.

    Args:
        logits: [N, K] float.
        labels: [N] int64.
        loss: the run's own loss on them, nats per image; None if it is not known.
        names: the K classes' names.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    log_probabilities = torch.log_softmax(logits.double(), 1)
    probabilities = log_probabilities.exp().numpy()
    true_classes = labels.numpy()
    predicted = logits.argmax(1).numpy()
    class_ids = np.arange(len(names))
    table = precision_recall_fscore_support(true_classes, predicted, labels=class_ids, zero_division=0.0)
    rows = tuple(
        ClassMetrics(name, float(p), float(r), float(f), int(s)) for name, p, r, f, s in zip(names, *table, strict=True)
    )
    confusion = confusion_matrix(true_classes, predicted, labels=class_ids)
    top5 = None
    if len(names) > 5:
        top5 = float((logits.topk(5, 1).indices == labels.unsqueeze(1)).any(1).double().mean())
    return Metrics(
        loss=loss,
        accuracy=float((predicted == true_classes).mean()),
        top5_accuracy=top5,
        nll=float(-log_probabilities[torch.arange(len(labels)), labels].mean()) + 0.0,  # not -0
        brier=float(((probabilities - np.eye(len(names))[true_classes]) ** 2).sum(1).mean()),
        ece=expected_calibration_error(probabilities, true_classes),
        classes=rows,
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        images=len(true_classes),
    )


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = 15) -> float:
    """The mean distance between confidence and accuracy, weighted over equal bins of confidence.

    Args:
        probabilities: [N, K], rows sum to 1.
        labels: [N] class ids.
        bins: how many equal intervals (a, b] cover (0, 1].
    Returns: in [0, 1].

    Guo et al. 2017, "On calibration of modern neural networks", eq. 3.
    """
    gaps = [bin.num_correct - bin.confidence * bin.images for bin in reliability(probabilities, labels, bins)]
    return float(np.abs(gaps).sum() / len(labels))


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence (their largest probability) lies in one interval (a, b].

    Attributes:
        images: how many.
        num_correct: how many of them are classified correctly.
        confidence: their mean confidence, in [0, 1]; the interval's middle where there are none.
    """

    images: int
    num_correct: int
    confidence: float


def reliability(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = 15) -> list[ReliabilityBin]:
    """Confidence and accuracy over equal intervals of confidence: the data of a reliability diagram.

    Args:
        probabilities: [N, K], rows sum to 1.
        labels: [N] class ids.
        bins: how many equal intervals (a, b] cover (0, 1].
    Returns: one bin per interval, in increasing confidence.

    DeGroot & Fienberg 1983; Guo et al. 2017, eq. 1 and 2.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    # A NaN belongs to no interval; in the first it makes the calibration error NaN.
    index = np.clip(np.ceil(np.nan_to_num(confidence) * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(index, minlength=bins)
    sums = np.bincount(index, confidence, minlength=bins)
    num_correct = np.bincount(index, correct, minlength=bins)
    return [
        ReliabilityBin(int(n), int(c), float(s / n) if n else (i + 0.5) / bins)
        for i, (n, c, s) in enumerate(zip(images, num_correct, sums, strict=True))
    ]
