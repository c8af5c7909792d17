"""Averages of the weights of several runs: uniform and greedy model soups (Wortsman et al. 2022, arXiv:2203.05482)."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import streams
from ..argument_types import LOWER_IS_BETTER
from ..build import training_batches
from ..errors import DataError, RunError
from ..files import replace_file, sha256_of
from ..runs import checkpoint as checkpoints
from ..runs import folder as runfolder
from ..runs import provenance
from ..runs.checkpoint import LOSS, Checkpoint
from ..runs.header import find_checkpoint
from ..runs.resume import recorded_images
from ..runs.validation import check_weights
from ..runtime.random_state import seed_everything
from ..training.swa import batch_norms, recompute_statistics
from .trained_model import TrainedModel

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Ingredient:
    """A run whose weights may be in the average.

    Attributes:
        run: its folder or checkpoint, as it was named.
        checkpoint: the file of its weights.
        sha256: of that file, as sha256sum prints it.
        epoch: of the weights.
        value: its metric on the validation split; None without one.
        averaged: whether it is in the average.
    """

    run: str
    checkpoint: str
    sha256: str
    epoch: int
    value: float | None
    averaged: bool


@dataclass(frozen=True)
class Average:
    """An average that was written.

    Attributes:
        folder: its run folder.
        method: uniform or greedy.
        metric: on the validation split, by which a greedy average chooses: the best_metric of the first run.
        value: the average's; None without a validation split.
        ingredients: the runs, in the order in which they were tried.
        recomputed: whether statistics of batch normalization were computed anew on the training images.
    """

    folder: Path
    method: str
    metric: str
    value: float | None
    ingredients: tuple[Ingredient, ...]
    recomputed: bool


def average(
    runs: Sequence[Path],
    output: Path | None,
    *,
    greedy: bool = False,
    device: str | None = None,
    data_root: Path | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Average:
    """Average the weights of runs of one model, and write a run folder that eval, predict, report and export take.

    The mean of the statistics of batch normalization is not right for the mean of the weights: where the runs' differ,
    they are computed anew on the training images of the first run, augmented as there.

    Args:
        runs: run folders (the best checkpoint of each, else the last) or checkpoints, at least two.
        output: the new folder; None for the next number under runs/<recipe>/.
        greedy: add the runs one by one, the best on the validation split first, and keep each that does not make the
            average worse there (algorithm 1). Otherwise all are averaged.
        device, data_root, trust_code, allow_changed_data: as in TrainedModel.open, for the first run.
    Raises: RunError if a run cannot be used, or has another model, classes or normalization than the first; DataError.
    """
    model = TrainedModel.open(
        runs[0],
        device=device,
        tta="none",
        data_root=data_root,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    loaded = [checkpoints.load(find_checkpoint(run)) for run in runs]
    for other in loaded[1:]:
        _check_same(loaded[0], other)
    _check_validation(model, loaded, greedy=greedy)
    validated = model.dataset.validation is not None
    if greedy and not validated:
        raise DataError(f"{runs[0]}: this run has no validation split to choose by; leave out --greedy")
    mixer = _Mixer(model, loaded)
    order, chosen = _choose(mixer, range(len(loaded)), greedy=greedy)
    values = {i: mixer.value([i]) if validated else None for i in order}
    ingredients = tuple(_ingredient(runs[i], loaded[i], values[i], averaged=i in chosen) for i in order)
    header = {**loaded[0].header, "epoch": max(loaded[i].header["epoch"] for i in chosen)}
    result = Average(
        folder=runfolder.create(header["recipe"], output),
        method="greedy" if greedy else "uniform",
        metric=model.config.best_metric,
        value=mixer.value(chosen) if validated else None,
        ingredients=ingredients,
        recomputed=bool(mixer.differing(chosen)),
    )
    _write(result, model, header, mixer.mixed(chosen))
    return result


def _ingredient(run: Path, loaded: Checkpoint, value: float | None, *, averaged: bool) -> Ingredient:
    epoch = loaded.header["epoch"]
    return Ingredient(str(run), str(loaded.file), sha256_of(loaded.file), epoch, value, averaged)


def _choose(mixer: "_Mixer", candidates: Sequence[int], *, greedy: bool) -> tuple[list[int], list[int]]:
    """The order in which checkpoints are tried, and those that are averaged."""
    if not greedy:
        return list(candidates), list(candidates)
    sign = -1 if mixer.model.config.best_metric in LOWER_IS_BETTER else 1

    def score(chosen: Sequence[int]) -> float:
        value = sign * mixer.value(chosen)
        return -math.inf if math.isnan(value) else value

    order = sorted(candidates, key=lambda i: score([i]), reverse=True)
    return order, greedily(order, score)


def greedily(order: Sequence[int], score: Callable[[list[int]], float]) -> list[int]:
    """The members of a greedy average (Wortsman et al. 2022, algorithm 1).

    Args:
        order: the candidates, the best first.
        score: of the average of some of them; larger is better.
    """
    chosen = [order[0]]
    best = score(chosen)
    for candidate in order[1:]:
        if (new := score([*chosen, candidate])) >= best:
            chosen, best = [*chosen, candidate], new
    return chosen


def mean_of(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of tensors by name, rounded once; of integers (counters) those of the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else first.clone()
        for name, first in states[0].items()
    }


class _Mixer:
    """The averages of some of the checkpoints, and their metric on the validation split."""

    def __init__(self, model: TrainedModel, loaded: Sequence[Checkpoint]) -> None:
        self.model, self.loaded = model, loaded
        self._values: dict[tuple[int, ...], float] = {}

    def differing(self, chosen: Sequence[int]) -> list[str]:
        """The batch-normalization layers whose statistics are not the same in all of these checkpoints."""
        states = [self.loaded[i].weights for i in chosen]
        return [
            name
            for name in batch_norms(self.model.model)
            for statistic in (f"{name}.running_mean", f"{name}.running_var")
            if any(not torch.equal(state[statistic], states[0][statistic]) for state in states)
        ]

    def mixed(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of a checkpoint with the average of these; the model has its weights then."""
        model = self.model
        model.model.load_state_dict(mean_of([self.loaded[i].weights for i in chosen]))
        if names := set(self.differing(chosen)):
            layers = [layer for name, layer in batch_norms(model.model).items() if name in names]
            seed_everything(model.config.seed)
            train = training_batches(model.config, model.split("train"), model.preprocessing, model.device)
            recompute_statistics(model.model, layers, train.epoch(1), model.precision)
        weights = {name: checkpoints.contiguous_copy(tensor) for name, tensor in model.model.state_dict().items()}
        loss = mean_of([self.loaded[i].loss for i in chosen])
        return weights | {f"{LOSS}{name}": checkpoints.contiguous_copy(tensor) for name, tensor in loss.items()}

    def value(self, chosen: Sequence[int]) -> float:
        """The metric of the average of these on the validation split."""
        key = tuple(sorted(chosen))
        if key not in self._values:
            self.mixed(key)
            self._values[key] = self.model.metrics("validation").by_name()[self.model.config.best_metric]
        return self._values[key]


def _check_same(first: Checkpoint, other: Checkpoint) -> None:
    """Refuse checkpoints of different models, classes or preprocessing. Raises: RunError."""
    one, two = first.header, other.header
    names = [_model_name(header) for header in (one, two)]
    if names[0] != names[1]:
        raise RunError(f"{other.file}: is a {names[1]}, and {first.file} a {names[0]}; only one model can be averaged")
    if one["classes"] != two["classes"]:
        raise RunError(f"{other.file}: its classes are not those of {first.file}")
    for key, what in (
        ("shape", "shape"),
        ("mean", "normalization"),
        ("std", "normalization"),
        ("resizing", "resizing"),
    ):
        before, after = (header["preprocessing"].get(key) for header in (one, two))
        if before != after:
            raise RunError(f"{other.file}: the {what} of its images is another than that of {first.file} ({key})")
    check_weights(first.weights, other.weights, other.file)
    if first.sha256 == other.sha256:
        raise RunError(f"{other.file}: is the same checkpoint as {first.file}")


def _model_name(header: Mapping[str, Any]) -> Any:
    model = header["config"].get("model")
    return model.get("name") if isinstance(model, dict) else model


def _check_validation(model: TrainedModel, loaded: Sequence[Checkpoint], *, greedy: bool) -> None:
    """Refuse to choose by validation images that others of the runs were trained with; warn if nothing is chosen."""
    own = recorded_images(model.record).get("validation")
    for other in loaded[1:]:
        record = other.file.parent / "run.json"
        images = recorded_images(runfolder.read_record(other.file.parent)) if record.is_file() else {}
        if own is None or "validation" not in images or images["validation"] == own:
            continue
        message = (
            f"{other.file}: has other validation images than {model.checkpoint}, and was trained on some of these: "
            "their seeds differ (data.validation)"
        )
        if greedy:
            raise RunError(message)
        streams.warning(message)


def _write(result: Average, model: TrainedModel, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write the run folder: config.yaml, best.safetensors and run.json, which says what was averaged."""
    folder, config = result.folder, header["config"]
    content, _ = checkpoints.serialized(tensors, header)
    environment = model.record.get("environment", {})
    machine = provenance.of_machine(model.device, model.precision)
    record = {
        "recipe": header["recipe"],
        "status": runfolder.Status.COMPLETED,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commands": [sys.argv],
        "classes": header["classes"],
        "epochs": header["epoch"],
        "environment": {**environment, **machine},
        "averaged": {
            "method": result.method,
            "metric": result.metric,
            "value": result.value,
            "batch_norm_recomputed": result.recomputed,
            "runs": [vars(one) for one in result.ingredients],
        },
    }
    with runfolder.held(folder, new=True):
        runfolder.write_config(folder, config)
        replace_file(folder / runfolder.BEST, content)
        runfolder.write_record(folder, record)
