"""Metrics of a classifier, from logits and labels."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..argument_types import METRICS
from ..training.metrics import METRICS as COMPUTED
from ..training.metrics import Predictions, compute
from .requirements import CLASS_METRICS


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
        macro_f1: the mean F1 of the classes that have an image or a prediction, in [0, 1].
        balanced_accuracy: the mean recall of the classes that have images, in [0, 1].
        worst_class_recall: the smallest recall of these classes, in [0, 1].
        macro_roc_auc: the mean area under the ROC curves of these classes, each against the rest, in [0, 1]; NaN if
            all images are of one class.
        macro_average_precision: the mean average precision of these classes, likewise.
        classes: one row per class.
        confusion: [K][K], row: the label, column: the prediction.
        images: how many images.

    The macro metrics and balanced_accuracy are scikit-learn's.
    """

    loss: float | None
    accuracy: float
    top5_accuracy: float | None
    nll: float
    brier: float
    ece: float
    macro_f1: float
    balanced_accuracy: float
    worst_class_recall: float
    macro_roc_auc: float
    macro_average_precision: float
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
    from sklearn.metrics import confusion_matrix

    predictions = Predictions(logits, labels)
    values: dict[str, float | None] = {**compute(COMPUTED, predictions)}
    if len(names) <= 5:
        values["top5_accuracy"] = None
    rows = tuple(
        ClassMetrics(name, float(p), float(r), float(f), int(s))
        for name, p, r, f, s in zip(names, *predictions.by_class, strict=True)
    )
    confusion = confusion_matrix(predictions.true_classes, predictions.predicted, labels=np.arange(len(names)))
    return Metrics(
        loss=loss,
        **values,  # type: ignore[arg-type]
        classes=rows,
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        images=len(labels),
    )
