"""The certificate of an exported model: its probabilities on real images, compared with those of the run."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.arrays import Pixels
from ..data.splits import Split
from ..training.evaluation import predict
from .exported_model import SMALLEST
from .graph import ExportError
from .metrics import compute_metrics
from .trained_model import TrainedModel

LIMIT = 1e-4  # largest difference of a probability to the run in float32
BATCHES = (1, 64)  # images at once whose time is measured
SINGLE = 8  # images that are also compared one by one
SECONDS, CALLS = 0.5, 30  # a time is the median of as many calls as fit in the first, at most the second, at least 3


class ExportedGraph(Protocol):
    """An exported file, loaded by the program that will run it."""

    def timed(self, images: Pixels) -> tuple[NDArray[np.float32], float]:
        """Images [N, C, H, W] -> probabilities [N, K], and the seconds it took."""


@dataclass(frozen=True)
class Column:
    """What was measured of one model: the exported file, or the run in one precision.

    Attributes:
        name: exported, or the run's device and precision.
        accuracy: in [0, 1].
        nll: mean negative log-likelihood, nats per image.
        ece: expected calibration error, in [0, 1].
        seconds: per image, by the number of images at once.
        largest_difference: of a probability, to the exported file's; None for that itself.
        different_answers: images that it classifies otherwise than the exported file does; likewise.
    """

    name: str
    accuracy: float
    nll: float
    ece: float
    seconds: dict[int, float]
    largest_difference: float | None = None
    different_answers: int | None = None


@dataclass(frozen=True)
class Certificate:
    """How an exported file compares with its run.

    Attributes:
        split: whose images were classified.
        images: how many.
        exported: the exported file.
        float32: the run in float32 on the CPU, which the file has to agree with.
        run: the run in its own precision on its own device, as `eval` and `predict` use it; often the same.
        unquantized: of a quantized file, the file before, which has to agree with the run in its place; else None.
    """

    split: str
    images: int
    exported: Column
    float32: Column
    run: Column
    unquantized: Column | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "limit": LIMIT}


def certify(
    reference: TrainedModel,
    own: TrainedModel,
    split: str,
    exported: ExportedGraph,
    unquantized: ExportedGraph | None = None,
) -> Certificate:
    """Run an exported file and its run on the same images.

    Args:
        reference: the run on the CPU.
        own: the run on its own device.
        split: whose images are classified.
        exported: the file.
        unquantized: of a quantized file, the file before, to which the limit applies in its place.
    Raises: ExportError if a probability differs by more than LIMIT from the run's in float32, or is not finite.
    """
    images = reference.split(split)
    expected, labels = predict(reference.model, reference.batches(images), "float32")
    first = next(reference.batches(images).pixels()).numpy()
    checked = exported if unquantized is None else unquantized
    before = _probabilities(checked, reference, images)
    _check(before, checked, first, reference.probabilities_of(expected), split)
    actual = before if unquantized is None else _probabilities(exported, reference, images)
    sample = np.resize(first, (max(BATCHES), *first.shape[1:]))  # repeated, if there are fewer images
    measure = _Measurement(labels, reference.classes, sample, actual)
    float32 = measure.of_run("cpu, float32", reference, expected)
    run = float32
    if own.device.type != "cpu" or own.precision != "float32":
        run = measure.of_run(f"{own.device}, {own.precision}", own, own.logits(images)[0])
    return Certificate(
        split=split,
        images=len(labels),
        exported=measure.of_graph("exported" if unquantized is None else "int8", exported, actual),
        float32=float32,
        run=run,
        unquantized=None if unquantized is None else measure.of_graph("not quantized", unquantized, before),
    )


@dataclass(frozen=True)
class _Measurement:
    """What columns are made with: labels [N], class names, images to take times of, the exported file's [N, K]."""

    labels: Tensor
    classes: tuple[str, ...]
    sample: Pixels
    actual: Tensor

    def of_graph(self, name: str, graph: ExportedGraph, probabilities: Tensor) -> Column:
        seconds = _seconds(lambda batch: graph.timed(batch)[1], self.sample)
        return self._column(name, probabilities.clamp_min(SMALLEST).log(), probabilities, seconds)

    def of_run(self, name: str, model: TrainedModel, logits: Tensor) -> Column:
        seconds = _seconds(lambda batch: _timed(model, batch), self.sample)
        scaled = logits.cpu().double() / model.temperature
        return self._column(name, scaled, model.probabilities_of(logits), seconds)

    def _column(self, name: str, logits: Tensor, probabilities: Tensor, seconds: dict[int, float]) -> Column:
        metrics = compute_metrics(logits, self.labels, None, self.classes)
        is_itself = probabilities is self.actual
        return Column(
            name=name,
            accuracy=metrics.accuracy,
            nll=metrics.nll,
            ece=metrics.ece,
            seconds=seconds,
            largest_difference=None if is_itself else _difference(self.actual, probabilities),
            different_answers=None if is_itself else int((self.actual.argmax(1) != probabilities.argmax(1)).sum()),
        )


def _check(actual: Tensor, graph: ExportedGraph, first: Pixels, expected: Tensor, split: str) -> None:
    """Raises: ExportError if probabilities differ from those of the run, at once or one by one."""
    ones = _one_by_one(graph, first[:SINGLE])
    difference = _difference(torch.cat([actual, ones]), torch.cat([expected, expected[: len(ones)]]))
    if not difference <= LIMIT:  # also where it is NaN
        raise ExportError(
            f"the exported file is wrong: on {len(expected):,} {split} images a probability differs by "
            f"{difference:.2g} from the run in float32, more than {LIMIT:g}"
        )


def _probabilities(graph: ExportedGraph, model: TrainedModel, images: Split) -> Tensor:
    """The probabilities [N, K] float64 of a split's images."""
    rows = [graph.timed(pixels.numpy())[0] for pixels in model.batches(images).pixels()]
    return torch.from_numpy(np.concatenate(rows)).double()


def _difference(first: Tensor, second: Tensor) -> float:
    """The largest difference of two numbers; NaN if one is NaN."""
    return float((first - second).abs().max())


def _one_by_one(exported: ExportedGraph, images: Pixels) -> Tensor:
    """The probabilities of images that come one by one: the batch's size must be no constant of the graph."""
    rows = [exported.timed(images[i : i + 1])[0] for i in range(len(images))]
    return torch.from_numpy(np.concatenate(rows)).double()


def _timed(model: TrainedModel, batch: Pixels) -> float:
    began = time.perf_counter()
    model.probabilities(torch.from_numpy(batch))
    return time.perf_counter() - began


def _seconds(call: Callable[[Pixels], float], sample: Pixels) -> dict[int, float]:
    """The median seconds per image of calls with each number of images."""
    result = {}
    for size in BATCHES:
        batch = sample[:size]
        call(batch)  # the first allocates
        times: list[float] = []
        while len(times) < 3 or (sum(times) < SECONDS and len(times) < CALLS):
            times.append(call(batch))
        result[size] = statistics.median(times) / size
    return result
