"""How good a classifier is: figures from logits and labels."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WAITING = 1 << 16  # logits that may wait to be looked at


@dataclass(frozen=True)
class Scores:
    """The two figures of an epoch's row.

    Attributes:
        loss: nats an image.
        accuracy: the share of images whose largest logit is their label's, in [0, 1].
        images: how many images they were measured on.
    """

    loss: float
    accuracy: float
    images: int

    def plain(self) -> dict[str, float]:
        """As a JSON line holds it."""
        return {"loss": self.loss, "accuracy": self.accuracy}


class Tally:
    """Running sums of loss and hits. They stay on the device; `scores` is the only place that waits for it.

    On the CPU batches are added up some at a time: alone, each would cost more in calls than in sums.

    Attributes:
        images: how many; the caller counts them, as a CUDA graph that calls `add` cannot.
        room: so many logits may wait for that; 0 where what they lie in is written over by the next batch.
    """

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self.room = WAITING if device.type == "cpu" else 0
        self._loss = torch.zeros((), device=device)
        self._hits = torch.zeros((), dtype=torch.int64, device=device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # loss, logits, targets
        self._numbers = 0  # of these logits

    @property
    def loss(self) -> Tensor:
        """Nats, of all images []; always the same tensor."""
        self._add_up()
        return self._loss

    @property
    def hits(self) -> Tensor:
        """Images whose largest logit is their label's []; always the same tensor."""
        self._add_up()
        return self._hits

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add up one batch: its mean loss (scalar), logits [B, K], targets [B] ids or [B, K] probabilities."""
        self._waiting.append((loss.detach(), logits.detach(), targets))
        self._numbers += logits.numel()
        if self._numbers > self.room:
            self._add_up()

    def _add_up(self) -> None:
        if not self._waiting:
            return
        losses, *pairs = zip(*self._waiting, strict=True)
        for loss, targets in zip(losses, pairs[1], strict=True):
            self._loss.add_(loss, alpha=len(targets))
        logits, targets = (torch.cat(batches) if len(batches) > 1 else batches[0] for batches in pairs)
        ids = targets if targets.ndim == 1 else targets.argmax(1)
        self._hits.add_((logits.argmax(1) == ids).sum())
        self._waiting.clear()
        self._numbers = 0

    def clear(self) -> None:
        """Begin anew, in the same place."""
        self.loss.zero_()
        self.hits.zero_()
        self.images = 0

    def scores(self) -> Scores:
        """The sums, divided once."""
        images = max(1, self.images)
        return Scores(self.loss.item() / images, self.hits.item() / images, self.images)


@dataclass(frozen=True)
class ClassFigures:
    """One class's row: all in [0, 1] but `support`, the number of its images."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Figures:
    """Everything that `softmaxce eval` tells of a classifier.

    Attributes:
        loss: the run's own loss, nats an image.
        accuracy: top-1, in [0, 1].
        top5_accuracy: the share whose label is among the five largest logits; None with five classes or fewer.
        nll: mean negative log-likelihood, nats an image: the loss without smoothing or weights.
        brier: mean squared distance between probabilities and one-hot label, in [0, 2] (Brier 1950, eq. 2).
        ece: expected calibration error, in [0, 1] (Guo et al. 2017, eq. 3; 15 equal bins).
        classes: one row a class.
        confusion: [K][K], row: the label, column: the prediction.
        images: how many images.
    """

    loss: float
    accuracy: float
    top5_accuracy: float | None
    nll: float
    brier: float
    ece: float
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    images: int

    def by_name(self) -> dict[str, float]:
        """Every single figure under the name that `--require` knows it by."""
        names = ("loss", "accuracy", "top5_accuracy", "nll", "brier", "ece")
        result = {name: value for name in names if (value := getattr(self, name)) is not None}
        for row in self.classes:
            result |= {f"{figure}.{row.name}": getattr(row, figure) for figure in ("precision", "recall", "f1")}
        return result


def measure(logits: Tensor, labels: Tensor, loss: float, names: tuple[str, ...]) -> Figures:
    """All figures of a classifier on one split.

    Args:
        logits: [N, K] float.
        labels: [N] int64.
        loss: the run's own loss on them, nats an image.
        names: the K classes' names.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    log_probabilities = torch.log_softmax(logits.double(), 1)
    probabilities = log_probabilities.exp().numpy()
    truth = labels.numpy()
    predicted = logits.argmax(1).numpy()
    every = np.arange(len(names))
    table = precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0.0)
    rows = tuple(
        ClassFigures(name, float(p), float(r), float(f), int(s)) for name, p, r, f, s in zip(names, *table, strict=True)
    )
    confusion = confusion_matrix(truth, predicted, labels=every)
    top5 = None
    if len(names) > 5:
        top5 = float((logits.topk(5, 1).indices == labels.unsqueeze(1)).any(1).double().mean())
    return Figures(
        loss=loss,
        accuracy=float((predicted == truth).mean()),
        top5_accuracy=top5,
        nll=float(-log_probabilities[torch.arange(len(labels)), labels].mean()) + 0.0,  # not -0
        brier=float(((probabilities - np.eye(len(names))[truth]) ** 2).sum(1).mean()),
        ece=expected_calibration_error(probabilities, truth),
        classes=rows,
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        images=len(truth),
    )


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = 15) -> float:
    """How far confidence and accuracy lie apart, weighted over equal bins of confidence.

    Args:
        probabilities: [N, K], rows sum to 1.
        labels: [N] class ids.
        bins: how many equal intervals (a, b] cover (0, 1].
    Returns: in [0, 1].

    Guo et al. 2017, "On calibration of modern neural networks", eq. 3.
    """
    gaps = [bin.hits - bin.confidence * bin.images for bin in reliability(probabilities, labels, bins)]
    return float(np.abs(gaps).sum() / len(labels))


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence (their largest probability) lies in one interval (a, b].

    Attributes:
        images: how many.
        hits: for how many of them the prediction is right.
        confidence: their mean confidence, in [0, 1]; the interval's middle where there are none.
    """

    images: int
    hits: int
    confidence: float


def reliability(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = 15) -> list[ReliabilityBin]:
    """Confidence beside accuracy, over equal intervals of confidence: what a reliability diagram draws.

    Args:
        probabilities: [N, K], rows sum to 1.
        labels: [N] class ids.
        bins: how many equal intervals (a, b] cover (0, 1].
    Returns: one row an interval, from the lowest confidence.

    DeGroot & Fienberg 1983; Guo et al. 2017, eq. 1 and 2.
    """
    confidence = probabilities.max(1)
    hits = probabilities.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(index, minlength=bins)
    sums = np.bincount(index, confidence, minlength=bins)
    right = np.bincount(index, hits, minlength=bins)
    return [
        ReliabilityBin(int(n), int(h), float(s / n) if n else (i + 0.5) / bins)
        for i, (n, h, s) in enumerate(zip(images, right, sums, strict=True))
    ]
