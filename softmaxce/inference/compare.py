"""Comparison of runs: the config keys and metrics that differ, and whether chance explains the difference."""

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
from ..runs import folder as runfolder
from ..runs.listing import differing
from ..runs.provenance import differing_entries
from ..runs.resume import TrainedRun, differ_by_seed_alone, is_finished, rule_of, same_data_set
from .opening import is_exported, model_type

METRICS = ("accuracy", "nll", "brier", "ece")
LEVEL = 0.05  # significance level


@dataclass(frozen=True)
class RunMetrics:
    """One run's metrics on a split as it is on disk now.

    Attributes:
        folder: the run folder, or an exported ONNX file.
        config: what it was trained with.
        epochs: its metrics.jsonl.
        epoch: that of the evaluated weights.
        images: how many.
        metrics: accuracy, nll, brier and ece, at the run's temperature.
        temperature: what its logits are divided by before softmax.
        correct: [N] bool, the images it classifies correctly.
        labels: [N] int64.
        fingerprint: of the images and labels.
        record: its run.json; empty without one.
    """

    folder: Path
    config: Config
    epochs: list[dict[str, Any]]
    epoch: int
    images: int
    metrics: dict[str, float]
    temperature: float
    correct: NDArray[np.bool_]
    labels: NDArray[np.int64]
    fingerprint: str
    record: dict[str, Any]

    @property
    def validation(self) -> dict[str, float] | None:
        """The metrics on the validation split at the end of `epoch`; None if they were not recorded."""
        return next((line.get("validation") for line in self.epochs if line["epoch"] == self.epoch), None)


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two classifiers on the same images.

    Attributes:
        only_first: images that only the first classifies correctly.
        only_second: images that only the second classifies correctly.
        p: the p-value, two-sided.
    """

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class SeedGroup:
    """Runs of which nothing that changes metrics differs but the seed, one run per seed.

    Attributes:
        runs: their indices in the comparison, from 0.
        others: what differs beside the seed: config keys that change no metric, entries of the environment.
        metrics: name -> (mean, sample standard deviation, smallest, largest).
    """

    runs: tuple[int, ...]
    others: tuple[str, ...]
    metrics: dict[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Repetition:
    """Runs of which nothing that changes metrics differs, not even the seed. Attributes as SeedGroup's."""

    runs: tuple[int, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs compared with the first of them, the baseline.

    Attributes:
        split: the split that they were evaluated on.
        runs: in the order given.
        keys: the config keys that differ, each with every run's value.
        seeds: the groups of two or more runs of which only the seed differs.
        repetitions: the groups of two or more runs of which not even the seed differs.
        tests: for each run but the baseline, McNemar's test against it; None where the images are not the same, or the
            two differ at most by seed.
        significant: whether that difference is significant at 0.05, by Holm's correction over all tests.
        other_data: indices of the runs whose `data` keys are the baseline's and that were trained on other images.
    """

    split: str
    runs: tuple[RunMetrics, ...]
    keys: dict[str, list[Any]]
    seeds: tuple[SeedGroup, ...]
    repetitions: tuple[Repetition, ...]
    tests: tuple[McNemar | None, ...]
    significant: tuple[bool | None, ...]
    other_data: tuple[int, ...] = ()

    def at_most_by_seed(self, index: int) -> bool:
        """Whether a run differs from the baseline by seed, or in nothing that changes metrics."""
        first, other = (TrainedRun(run.config, run.record) for run in (self.runs[0], self.runs[index]))
        return differ_by_seed_alone(first, other)

    def to_dict(self) -> dict[str, Any]:
        """As one JSON object."""
        rows: list[dict[str, Any]] = [
            {
                "run": str(run.folder),
                "epoch": run.epoch,
                "images": run.images,
                **run.metrics,
                "temperature": run.temperature,
                "validation": run.validation,
            }
            for run in self.runs
        ]
        for row, test, significant in zip(rows[1:], self.tests, self.significant, strict=True):
            row["mcnemar"] = {**asdict(test), "larger_than_chance": significant} if test is not None else None
        names = ("mean", "deviation", "min", "max")
        groups = [
            {
                "runs": [str(self.runs[i].folder) for i in group.runs],
                "also_differs": list(group.others),
                **{name: dict(zip(names, values, strict=True)) for name, values in group.metrics.items()},
            }
            for group in self.seeds
        ]
        same = [
            {"runs": [str(self.runs[i].folder) for i in group.runs], "also_differs": list(group.others)}
            for group in self.repetitions
        ]
        return {"split": self.split, "runs": rows, "config": self.keys, "seeds": groups, "repetitions": same}


def compare(
    folders: Sequence[Path],
    split: str = "test",
    device: str | None = None,
    *,
    roots: Sequence[Path | None] | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Comparison:
    """Evaluate each run's best weights on the split and compare the results.

    Args:
        folders: two run folders or more, the baseline first.
        split: test, validation or train.
        device: as in TrainedModel.open.
        roots: for each run the folder where its data is now; None for where it was at training.
        trust_code: run the user's code that the checkpoints name.
        allow_changed_data: use the runs' splits although their images are not those of the training.
    Raises: RunError, ConfigError, DataError, if one cannot be evaluated.
    """
    runs = tuple(
        measure_run(folder, split, device, root=root, trust_code=trust_code, allow_changed_data=allow_changed_data)
        for folder, root in zip(folders, roots or [None] * len(folders), strict=True)
    )
    trained = [TrainedRun(run.config, run.record) for run in runs]
    groups = by_seed(trained)
    together = next(group for group in groups if 0 in group)
    tests = [
        mcnemar(runs[0].correct, run.correct) if index not in together and same_images(runs[0], run) else None
        for index, run in enumerate(runs)
    ][1:]
    return Comparison(
        split=split,
        runs=runs,
        keys=differing([run.config.to_dict() for run in runs]),
        seeds=tuple(
            SeedGroup(tuple(group), _others([runs[i] for i in group]), _statistics([runs[i] for i in group]))
            for group in (_one_per_seed(trained, group) for group in groups)
            if len(group) > 1
        ),
        repetitions=tuple(
            Repetition(tuple(group), _others([runs[i] for i in group]))
            for group in _of_one_seed(trained, groups)
            if len(group) > 1
        ),
        tests=tuple(tests),
        significant=tuple(holm([test.p if test else None for test in tests])),
        other_data=tuple(index for index, run in enumerate(trained) if _other_data(trained[0], run)),
    )


def measure_run(
    folder: Path,
    split: str,
    device: str | None = None,
    *,
    root: Path | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> RunMetrics:
    """One run's part of a comparison, or an exported file's. Arguments and errors as in `compare`."""
    if not folder.is_dir() and not is_exported(folder):
        raise RunError(f"{folder}: there is no such run folder")
    model = model_type(folder).open(
        folder, device=device, data_root=root, trust_code=trust_code, allow_changed_data=allow_changed_data
    )
    logits, labels = model.logits(split)
    metrics = model.metrics_of(logits, labels)
    return RunMetrics(
        folder=folder,
        config=model.config,
        epochs=runfolder.read_metrics(folder) if folder.is_dir() else [],
        epoch=model.epoch,
        images=len(labels),
        metrics={name: getattr(metrics, name) for name in METRICS},
        temperature=model.temperature,
        correct=(logits.argmax(1) == labels).cpu().numpy(),
        labels=labels.cpu().numpy(),
        fingerprint=model.fingerprints[split],
        record=model.record,
    )


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test: whether two classifiers are equally accurate.

    Args:
        first: [N] bool, the images that the first classifies correctly.
        second: [N] bool, likewise, of the same images.

    McNemar 1947, in the exact form: the binomial test with p = 1/2 on the images where the two differ.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, total).pvalue) if total else 1.0)


def holm(values: Sequence[float | None], level: float = LEVEL) -> list[bool | None]:
    """Which of several tests are significant, with a family-wise error rate of at most `level`.

    Args:
        values: their p-values; None where there was no test.
        level: in (0, 1).

    Holm 1979: from the smallest p on, the k-th is compared with level / (tests - k + 1), until one fails.
    """
    significant: list[bool | None] = [None if p is None else False for p in values]
    ranked = sorted((p, index) for index, p in enumerate(values) if p is not None)
    for rank, (p, index) in enumerate(ranked):
        if p > level / (len(ranked) - rank):
            break
        significant[index] = True
    return significant


def by_seed(runs: Sequence[TrainedRun]) -> list[list[int]]:
    """The runs' indices, in groups that differ in nothing that changes metrics but the seed."""
    groups: list[list[int]] = []
    for index, run in enumerate(runs):
        for group in groups:
            if differ_by_seed_alone(runs[group[0]], run):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _of_one_seed(runs: Sequence[TrainedRun], groups: list[list[int]]) -> list[list[int]]:
    """Groups of runs, divided further by the seed."""
    by_group_and_seed: dict[tuple[int, int], list[int]] = {}
    for number, group in enumerate(groups):
        for index in group:
            by_group_and_seed.setdefault((number, runs[index].config.seed), []).append(index)
    return list(by_group_and_seed.values())


def _one_per_seed(runs: Sequence[TrainedRun], group: list[int]) -> list[int]:
    return [same[0] for same in _of_one_seed(runs, [group])]


def _others(runs: Sequence[RunMetrics]) -> tuple[str, ...]:
    """What differs between runs with the same images, beside the seed and the weights."""
    names = [key for key in differing([run.config.to_dict() for run in runs]) if key != "seed"]
    first = runs[0].record.get("environment", {})
    for run in runs[1:]:
        names += differing_entries(first, run.record.get("environment", {}))
    counts = {len(run.epochs) for run in runs if run.epochs}  # an exported model has none
    if len(counts) > 1 and not all(is_finished(run.record) for run in runs):
        names.append("the epochs trained")
    if len({run.temperature for run in runs}) > 1:
        names.append("the temperature")
    return tuple(dict.fromkeys(names))


def same_images(first: RunMetrics, second: RunMetrics) -> bool:
    """Whether two runs were evaluated on the same images: the same pixels, or the same files at another size."""
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
    """Whether two runs were trained on different images although their `data` keys are equal."""
    return not _data_keys(first.config, second.config) and not same_data_set(first, second)


def summary_statistics(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, sample standard deviation (n - 1), smallest and largest of two values or more."""
    return statistics.fmean(values), statistics.stdev(values), min(values), max(values)


def _statistics(runs: Sequence[RunMetrics]) -> dict[str, tuple[float, float, float, float]]:
    return {name: summary_statistics([run.metrics[name] for run in runs]) for name in METRICS}
