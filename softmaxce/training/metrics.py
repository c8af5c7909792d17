"""Scalar metrics of a classifier on a split, by name, from logits and labels. scikit-learn is imported when needed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Predictions:
    """A classifier's outputs on a split, and what several metrics derive from them; each is computed at most once.

    Args:
        logits: [N, K] float.
        labels: [N] int64 class ids.
    """

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self.logits, self.labels = logits.cpu(), labels.cpu()
        self.num_classes = logits.shape[1]
        self.true_classes: NDArray[np.int64] = self.labels.numpy()

    @cached_property
    def log_probabilities(self) -> Tensor:
        """[N, K] float64."""
        return torch.log_softmax(self.logits.double(), 1)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """[N, K]."""
        probabilities: NDArray[np.float64] = self.log_probabilities.exp().numpy()
        return probabilities

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """[N] class ids: the largest logits, the first of equal ones."""
        predicted: NDArray[np.int64] = self.logits.argmax(1).numpy()
        return predicted

    @cached_property
    def by_class(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Precision, recall, F1 and the number of images, [K] each; 0 where a class has no image or prediction."""
        from sklearn.metrics import precision_recall_fscore_support

        ids = np.arange(self.num_classes)
        table: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]
        table = precision_recall_fscore_support(self.true_classes, self.predicted, labels=ids, zero_division=0.0)
        return table

    @cached_property
    def recalls(self) -> NDArray[np.float64]:
        """The recall of each class that has images in the split."""
        _, recall, _, support = self.by_class
        return recall[support > 0]

    @cached_property
    def rankings(self) -> tuple[float, float]:
        """The means of `ranking` over the classes that have images, each class against the rest.

        NaN where all images are of one class, or a probability is NaN.
        """
        classes = np.unique(self.true_classes)
        if len(classes) < 2 or not np.isfinite(self.probabilities).all():
            return float("nan"), float("nan")
        each = [ranking(self.probabilities[:, k], self.true_classes == k) for k in classes]
        area, precision = np.mean(each, axis=0)
        return float(area), float(precision)


def ranking(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """The area under the ROC curve and the average precision of scores, with ties, from one sort.

    The values of sklearn's roc_auc_score and average_precision_score, in a tenth of the time for 1,000 classes.

    Args:
        scores: [N].
        positive: [N]; neither all nor none.
    Returns: both in [0, 1]: the fraction of pairs of a positive and a negative in which the positive has the larger
        score, a tie counting half (Mann & Whitney 1947); the mean over the positives of the precision among all scores
        at least as large.
    """
    every, own = np.sort(scores), np.sort(scores[positive])
    below, below_own = np.searchsorted(every, own), np.searchsorted(own, own)
    ties = np.searchsorted(every, own, "right") - below - (np.searchsorted(own, own, "right") - below_own)
    area = (below - below_own + ties / 2).mean() / (len(every) - len(own))
    precision = ((len(own) - below_own) / (len(every) - below)).mean()
    return float(area), float(precision)


def _accuracy(found: Predictions) -> float:
    return float((found.predicted == found.true_classes).mean())


def _top5_accuracy(found: Predictions) -> float:
    """NaN with five classes or fewer."""
    if found.num_classes <= 5:
        return float("nan")
    return float((found.logits.topk(5, 1).indices == found.labels.unsqueeze(1)).any(1).double().mean())


def _nll(found: Predictions) -> float:
    images = torch.arange(len(found.labels))
    return float(-found.log_probabilities[images, found.labels].mean()) + 0.0  # not -0


def _brier(found: Predictions) -> float:
    one_hot = np.eye(found.num_classes)[found.true_classes]
    return float(((found.probabilities - one_hot) ** 2).sum(1).mean())


def _ece(found: Predictions) -> float:
    return expected_calibration_error(found.probabilities, found.true_classes)


def _macro_f1(found: Predictions) -> float:
    """As sklearn's f1_score(average="macro"): over the classes that have an image or a prediction."""
    f1, support = found.by_class[2:]
    return float(f1[(support > 0) | (np.bincount(found.predicted, minlength=len(f1)) > 0)].mean())


def _balanced_accuracy(found: Predictions) -> float:
    """As sklearn's balanced_accuracy_score: over the classes that have an image."""
    return float(found.recalls.mean())


def _worst_class_recall(found: Predictions) -> float:
    return float(found.recalls.min())


def _macro_roc_auc(found: Predictions) -> float:
    """As sklearn's roc_auc_score(multi_class="ovr"), over the classes that have an image."""
    return found.rankings[0]


def _macro_average_precision(found: Predictions) -> float:
    """The mean of sklearn's average_precision_score of each class that has an image."""
    return found.rankings[1]


METRICS: dict[str, Callable[[Predictions], float]] = {
    "accuracy": _accuracy,
    "top5_accuracy": _top5_accuracy,
    "nll": _nll,
    "brier": _brier,
    "ece": _ece,
    "macro_f1": _macro_f1,
    "balanced_accuracy": _balanced_accuracy,
    "worst_class_recall": _worst_class_recall,
    "macro_roc_auc": _macro_roc_auc,
    "macro_average_precision": _macro_average_precision,
}


def compute(names: Iterable[str], predictions: Predictions) -> dict[str, float]:
    """The metrics of these names, which METRICS lists; not `loss`, which is the run's own."""
    return {name: METRICS[name](predictions) for name in names}


# -- calibration ------------------------------------------------------------------------------------------------------


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
