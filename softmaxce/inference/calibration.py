"""Temperature scaling: one number that makes a trained classifier's probabilities mean what they say.

The logits are divided by a temperature T before softmax. No prediction changes; above 1 the probabilities come closer
together, below 1 they move apart. T is fitted on the validation split, which the weights were not trained on, and kept
in the run folder as calibration.json.

Guo, Pleiss, Sun & Weinberger 2017, "On calibration of modern neural networks", section 4.2, eq. 9.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, RunError
from ..files import replace_file
from ..runs import checkpoint
from ..runs.folder import CALIBRATION
from ..runs.header import find_checkpoint, read_header
from ..runs.provenance import check_split
from ..training.evaluation import predict
from .metrics import expected_calibration_error
from .trained_model import build_evaluation, config_of, source_of, split_of

LOWEST, HIGHEST = 0.01, 100.0


@dataclass(frozen=True)
class Reliability:
    """How far a split's probabilities can be believed, before the temperature and after.

    Attributes:
        images: how many.
        nll: mean negative log-likelihood, nats an image: (at temperature 1, at the fitted one).
        ece: expected calibration error, in [0, 1], 15 bins: likewise.
    """

    images: int
    nll: tuple[float, float]
    ece: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and what it changes.

    Attributes:
        temperature: what the logits are divided by.
        checkpoint: whose weights it is for.
        epoch: the epoch they are of.
        validation: the split it was fitted on.
        test: the test split, which it was not fitted on; None if the run has none.
    """

    temperature: float
    checkpoint: Path
    epoch: int
    validation: Reliability
    test: Reliability | None

    def to_dict(self) -> dict[str, Any]:
        """As calibration.json holds it."""
        return {**asdict(self), "checkpoint": self.checkpoint.name}


def calibrate(
    run: Path, device: str | None = None, *, trust_code: bool = False, allow_changed_data: bool = False
) -> Calibration:
    """Fit a run's temperature on its validation split, and keep it in the run folder.

    Args:
        run: a run folder or a checkpoint in one.
        device: where to compute; None for auto.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: use the run's splits although their images are others than at training.
    Raises: RunError, ConfigError, DataError, if there is no checkpoint, no data or no validation split, or nothing to
        fit on.
    """
    loaded = checkpoint.load(find_checkpoint(run))
    config = config_of(loaded, {"device": device or "auto"}, trust_code=trust_code)
    evaluation = build_evaluation(loaded, config)
    source = source_of(evaluation)
    if source.validation is None:
        raise DataError(
            f"{run}: this run has no validation split to fit a temperature on; "
            "train with data.validation, 0.1 for example"
        )

    def outputs(name: str) -> tuple[Tensor, Tensor]:
        split = split_of(evaluation, name, source)
        check_split(loaded.file, name, split, allow_changed_data=allow_changed_data)
        logits, labels = predict(evaluation.model, evaluation.batches(split), evaluation.precision)
        return logits.double().cpu(), labels.cpu()

    logits, labels = outputs("validation")
    try:
        temperature = fit_temperature(logits, labels)
    except ValueError as error:
        raise RunError(f"{run}: {error}; nothing was stored") from None
    tested = _reliability(*outputs("test"), temperature) if source.test is not None else None
    result = Calibration(
        temperature, loaded.file, loaded.header["epoch"], _reliability(logits, labels, temperature), tested
    )
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    replace_file(loaded.file.parent / CALIBRATION, text.encode())
    return result


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which the mean negative log-likelihood is smallest, between 0.01 and 100.

    Args:
        logits: [N, K] float.
        labels: [N] int64.
    Raises: ValueError if there is no smallest: each image's label has its largest logit, so that T = 0 would be best,
        or the labels' logits lie no higher than the others', so that an infinite T would be.

    In 1/T the nll is convex (its slope is the mean of sum_k S_k z_k - z_y), so there is one minimum, and the slopes at
    the ends tell whether there is any. SciPy's bounded Brent search finds it over log T.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite")
    of_label = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    if (of_label == logits.amax(1)).all():
        raise ValueError(
            f"all {len(labels)} validation images are classified right, so that no temperature is too low for them "
            "and none fits best; hold out more images (data.validation)"
        )
    if of_label.mean() <= logits.mean():
        raise ValueError("on the validation images the model is no better than chance, so that no temperature fits")

    def nll(log_temperature: float) -> float:
        return _nll(logits, labels, math.exp(log_temperature))

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    return math.exp(minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)


def temperature_of(run: Path) -> float:
    """The temperature that a run predicts with: its fitted one, or 1 if it is not calibrated.

    A temperature belongs to the weights of one epoch: after a run went on training, it is not calibrated any more.

    Args:
        run: a run folder or a checkpoint in one.
    Raises: RunError if there is no checkpoint, or calibration.json is damaged.
    """
    file = find_checkpoint(run)
    stored = file.parent / CALIBRATION
    if not stored.exists():
        return 1.0
    try:
        record = json.loads(stored.read_text(encoding="utf-8"))
        temperature, epoch = float(record["temperature"]), int(record["epoch"])
    except (OSError, ValueError, TypeError, KeyError):  # refused three lines on
        temperature, epoch = math.nan, 0
    if not 0 < temperature < math.inf:
        raise RunError(f"{stored}: is damaged; fit it anew: softmaxce calibrate {file.parent}")
    return temperature if epoch == read_header(file)["epoch"] else 1.0


def _reliability(logits: Tensor, labels: Tensor, temperature: float) -> Reliability:
    before, after = (_ece(logits, labels, t) for t in (1.0, temperature))
    return Reliability(
        len(labels), (_nll(logits, labels, 1.0), _nll(logits, labels, temperature)), (float(before), float(after))
    )


def _nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return -torch.log_softmax(logits / temperature, 1).gather(1, labels.unsqueeze(1)).mean().item()


def _ece(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return expected_calibration_error(torch.softmax(logits / temperature, 1).numpy(), labels.numpy().astype(np.int64))
