"""Runs beside each other: what differs in their configs, what differs in their figures, and whether that is chance."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.components import takes
from ..config.keys import Config
from ..errors import RunError
from ..runs import checkpoint
from ..runs import folder as runfolder
from ..runs.header import find_checkpoint
from ..runs.listing import differing
from ..runs.provenance import check_split
from ..runs.resume import TrainedRun, differ_by_seed_alone, rule_of, same_data_set
from ..training.evaluation import loss_of, predict
from .calibration import temperature_of
from .metrics import measure
from .trained_model import build_evaluation, config_of, source_of, split_of

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
        labels: [N] int64.
        fingerprint: of the images and labels.
        record: its run.json.
    """

    folder: Path
    config: Config
    epochs: list[dict[str, Any]]
    epoch: int
    images: int
    figures: dict[str, float]
    hits: NDArray[np.bool_]
    labels: NDArray[np.int64]
    fingerprint: str
    record: dict[str, Any]


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
        other_data: places of the runs whose `data` keys are the first's and whose data set was another.
    """

    split: str
    runs: tuple[Measured, ...]
    keys: dict[str, list[Any]]
    seeds: tuple[Seeds, ...]
    tests: tuple[McNemar | None, ...]
    significant: tuple[bool | None, ...]
    other_data: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
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
    folders: Sequence[Path],
    split: str = "test",
    device: str | None = None,
    *,
    roots: Sequence[Path | None] | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Comparison:
    """Measure each run's kept weights on the split and set them beside each other.

    Args:
        folders: two run folders or more.
        split: test, validation or train.
        device: where to compute; None for auto.
        roots: for each run the folder where its data is now; None for where it was at training.
        trust_code: run the user's code that the checkpoints name.
        allow_changed_data: measure the runs' splits although their images are others than at training.
    Raises: RunError, ConfigError, DataError, if one cannot be measured.
    """
    runs = tuple(
        measured(folder, split, device, root=root, trust_code=trust_code, allow_changed_data=allow_changed_data)
        for folder, root in zip(folders, roots or [None] * len(folders), strict=True)
    )
    trained = [TrainedRun(run.config, run.record) for run in runs]
    groups = by_seed(trained)
    together = next(group for group in groups if 0 in group)
    tests = [
        mcnemar(runs[0].hits, run.hits) if index not in together and same_images(runs[0], run) else None
        for index, run in enumerate(runs)
    ][1:]
    return Comparison(
        split=split,
        runs=runs,
        keys=differing([run.config.to_dict() for run in runs]),
        seeds=tuple(Seeds(tuple(group), _spread([runs[i] for i in group])) for group in groups if len(group) > 1),
        tests=tuple(tests),
        significant=tuple(holm([test.p if test else None for test in tests])),
        other_data=tuple(index for index, run in enumerate(trained) if _other_data(trained[0], run)),
    )


def measured(
    folder: Path,
    split: str,
    device: str | None = None,
    *,
    root: Path | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Measured:
    """One run's part of a comparison."""
    if not folder.is_dir():
        raise RunError(f"{folder}: there is no such run folder")
    loaded = checkpoint.load(find_checkpoint(folder))
    where = {} if root is None else {"data.root": str(root)}
    config = config_of(loaded, {"device": device or "auto", **where}, trust_code=trust_code)
    evaluation = build_evaluation(loaded, config)
    images = split_of(evaluation, split, source_of(evaluation))
    digits = check_split(loaded.file, split, images, allow_changed_data=allow_changed_data)
    logits, labels = predict(evaluation.model, evaluation.batches(images), evaluation.precision)
    figures = measure(
        logits.cpu().double() / temperature_of(folder),
        labels.cpu(),
        loss_of(evaluation.loss, logits, labels),
        evaluation.classes,
    )
    return Measured(
        folder=folder,
        config=config_of(loaded, where, trust_code=trust_code),
        epochs=runfolder.read_metrics(folder),
        epoch=loaded.header["epoch"],
        images=len(labels),
        figures={name: getattr(figures, name) for name in FIGURES},
        hits=(logits.argmax(1) == labels).cpu().numpy(),
        labels=labels.cpu().numpy(),
        fingerprint=digits,
        record=runfolder.read_record(folder) if (folder / "run.json").is_file() else {},
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


def by_seed(runs: Sequence[TrainedRun]) -> list[list[int]]:
    """The runs' places, in groups that differ in nothing that changes metrics but the seed."""
    groups: list[list[int]] = []
    for index, run in enumerate(runs):
        for group in groups:
            if differ_by_seed_alone(runs[group[0]], run):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def same_images(first: Measured, second: Measured) -> bool:
    """Whether two runs were measured on the same images: the same pixels, or the same files at another size."""
    if first.fingerprint == second.fingerprint:
        return True
    if first.config.root.resolve() != second.config.root.resolve() or not np.array_equal(first.labels, second.labels):
        return False
    if first.config.seed != second.config.seed and takes(first.config.source, "seed"):
        return False
    sizes = {"data.size", "data.channels"}
    keys = _data_keys(first.config, second.config)
    return bool(sizes & keys) and keys <= sizes


def _data_keys(first: Config, second: Config) -> set[str]:
    """The keys of the `data` section in which two configs differ and that change metrics."""
    name = first.source.name
    keys = differing([{"data": one.to_dict()["data"]} for one in (first, second)])
    return {key for key in keys if rule_of(key, name).changes_metrics}


def _other_data(first: TrainedRun, second: TrainedRun) -> bool:
    """Whether two runs were trained on other data sets, which their configs do not show."""
    return not _data_keys(first.config, second.config) and not same_data_set(first, second)


def spread(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, sample standard deviation (n - 1), smallest and largest of two values or more."""
    return statistics.fmean(values), statistics.stdev(values), min(values), max(values)


def _spread(runs: Sequence[Measured]) -> dict[str, tuple[float, float, float, float]]:
    return {name: spread([run.figures[name] for run in runs]) for name in FIGURES}
