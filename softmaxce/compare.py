"""Runs beside each other: what differs in their configs, what differs in their figures, and whether that is chance."""

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import checkpoint, runfolder
from .build import build_evaluation, config_of, source_of, split_of
from .calibration import temperature_of
from .config import Config
from .data.splits import InMemory, Split
from .errors import RunError
from .header import find_checkpoint
from .metrics import measure
from .runs import WHEREABOUTS, differing
from .train import loss_of, predict

FIGURES = ("accuracy", "nll", "brier", "ece")
LEVEL = 0.05  # a difference less probable than this under chance is called larger than chance


@dataclass(frozen=True)
class Measured:
    """One run, measured on a split as it stands on disk now.

    Attributes:
        folder: the run folder.
        config: what it was trained with.
        epochs: its metrics.jsonl.
        epoch: that of the weights measured.
        images: how many.
        figures: accuracy, nll, brier and ece, at the run's temperature.
        hits: [N] bool, which images it gets right.
        digests: of the labels, and of the images.
    """

    folder: Path
    config: Config
    epochs: list[dict[str, Any]]
    epoch: int
    images: int
    figures: dict[str, float]
    hits: NDArray[np.bool_]
    digests: tuple[str, str]


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same images.

    Attributes:
        only_first: images that the first alone gets right.
        only_second: images that the second alone gets right.
        p: how probable a split at least this uneven is, if each such image were a fair coin's throw.
    """

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Seeds:
    """Runs that differ by their seed alone.

    Attributes:
        runs: their places in the comparison, counted from 0.
        figures: name -> (mean, sample standard deviation, smallest, largest).
    """

    runs: tuple[int, ...]
    figures: dict[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other; the first is the one that the others are compared with.

    Attributes:
        split: what was measured on.
        runs: in the order given.
        keys: the config keys that differ, each with every run's value.
        seeds: the groups of two or more runs that differ by seed alone.
        tests: for each run but the first, McNemar's test against the first; None where the images are not the same
            ones, or the two differ by seed alone.
        significant: whether that difference is larger than chance, by Holm's correction over all tests, at 0.05.
    """

    split: str
    runs: tuple[Measured, ...]
    keys: dict[str, list[Any]]
    seeds: tuple[Seeds, ...]
    tests: tuple[McNemar | None, ...]
    significant: tuple[bool | None, ...]

    def plain(self) -> dict[str, Any]:
        """As one JSON object."""
        rows = [{"run": str(run.folder), "epoch": run.epoch, "images": run.images, **run.figures} for run in self.runs]
        for row, test, verdict in zip(rows[1:], self.tests, self.significant, strict=True):
            row["mcnemar"] = {**asdict(test), "larger_than_chance": verdict} if test is not None else None
        names = ("mean", "deviation", "min", "max")
        groups = [
            {
                "runs": [str(self.runs[i].folder) for i in group.runs],
                **{name: dict(zip(names, values, strict=True)) for name, values in group.figures.items()},
            }
            for group in self.seeds
        ]
        return {"split": self.split, "runs": rows, "config": self.keys, "seeds": groups}


def compare(
    folders: Sequence[Path], split: str = "test", device: str | None = None, *, trust_code: bool = False
) -> Comparison:
    """Measure each run's kept weights on the split and set them beside each other.

    Args:
        folders: two run folders or more.
        split: test, validation or train.
        device: where to compute; None for auto.
        trust_code: run the user's code that the checkpoints name.
    Raises: RunError, ConfigError, DataError, if one cannot be measured.
    """
    runs = tuple(measured(folder, split, device, trust_code=trust_code) for folder in folders)
    groups = by_seed([run.config.plain() for run in runs])
    together = next(group for group in groups if 0 in group)
    tests = [
        mcnemar(runs[0].hits, run.hits) if index not in together and same_images(runs[0], run) else None
        for index, run in enumerate(runs)
    ][1:]
    return Comparison(
        split=split,
        runs=runs,
        keys=differing([run.config.plain() for run in runs]),
        seeds=tuple(Seeds(tuple(group), _spread([runs[i] for i in group])) for group in groups if len(group) > 1),
        tests=tuple(tests),
        significant=tuple(holm([test.p if test else None for test in tests])),
    )


def measured(folder: Path, split: str, device: str | None = None, *, trust_code: bool = False) -> Measured:
    """One run's part of a comparison."""
    if not folder.is_dir():
        raise RunError(f"{folder}: there is no such run folder")
    loaded = checkpoint.load(find_checkpoint(folder))
    config = config_of(loaded, {"device": device or "auto"}, trust_code=trust_code)
    evaluation = build_evaluation(loaded, config)
    images = split_of(evaluation, split, source_of(evaluation))
    logits, labels = predict(evaluation.model, evaluation.batches(images), evaluation.precision)
    figures = measure(
        logits.cpu().double() / temperature_of(folder),
        labels.cpu(),
        loss_of(evaluation.loss, logits, labels),
        evaluation.classes,
    )
    return Measured(
        folder=folder,
        config=config_of(loaded, trust_code=trust_code),
        epochs=runfolder.read_metrics(folder),
        epoch=loaded.header["epoch"],
        images=len(labels),
        figures={name: getattr(figures, name) for name in FIGURES},
        hits=(logits.argmax(1) == labels).cpu().numpy(),
        digests=_digests(images),
    )


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test: of the images that one of two classifiers alone gets right, is one's share more than half?

    Args:
        first: [N] bool, which images the first gets right.
        second: [N] bool, likewise, of the same images.

    McNemar 1947, in the exact form: the binomial test with p = 1/2 on the images where the two differ.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, total).pvalue) if total else 1.0)


def holm(values: Sequence[float | None], level: float = LEVEL) -> list[bool | None]:
    """Which of several tests reject chance, so that one false alarm among them is no more probable than `level`.

    Args:
        values: their p-values; None where there was no test.
        level: in (0, 1).

    Holm 1979: from the smallest p on, the k-th is compared with level / (tests - k + 1), until one fails.
    """
    verdicts: list[bool | None] = [None if p is None else False for p in values]
    ranked = sorted((p, index) for index, p in enumerate(values) if p is not None)
    for rank, (p, index) in enumerate(ranked):
        if p > level / (len(ranked) - rank):
            break
        verdicts[index] = True
    return verdicts


def by_seed(configs: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The runs' places, in groups whose configs differ in nothing but the seed (and in where data and device are)."""
    groups: list[list[int]] = []
    for index, config in enumerate(configs):
        for group in groups:
            if set(differing([configs[group[0]], config])) <= {"seed", *WHEREABOUTS}:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def same_images(first: Measured, second: Measured) -> bool:
    """Whether two runs were measured on the same images: the same pixels, or the same files at another size."""
    if first.digests == second.digests:
        return True
    sizes = {"data.size", "data.channels", *WHEREABOUTS}
    plain = [{"data": run.config.plain()["data"]} for run in (first, second)]
    sources = {key for key in differing(plain) if key not in sizes}
    resized = {"data.size", "data.channels"} & set(differing(plain))
    return bool(first.digests[0] == second.digests[0] and resized and not sources)


def spread(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, sample standard deviation (n - 1), smallest and largest of two values or more."""
    return statistics.fmean(values), statistics.stdev(values), min(values), max(values)


def _spread(runs: Sequence[Measured]) -> dict[str, tuple[float, float, float, float]]:
    return {name: spread([run.figures[name] for run in runs]) for name in FIGURES}


def _digests(split: Split) -> tuple[str, str]:
    labels = hashlib.sha256(split.labels.to(torch.int64).numpy().tobytes()).hexdigest()
    if isinstance(split, InMemory):
        images = hashlib.sha256(repr(tuple(split.images.shape)).encode())
        for chunk in split.images.split(4096):
            images.update(chunk.contiguous().numpy().tobytes())
    else:
        images = hashlib.sha256("\n".join(split.files).encode(errors="surrogateescape"))
    return labels, images.hexdigest()
