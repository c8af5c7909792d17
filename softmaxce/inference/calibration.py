"""`softmaxce calibrate`: a run's temperature, fitted on its validation split and stored as calibration.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, RunError
from ..files import replace_file, writable
from ..runs.folder import CALIBRATION
from ..training.metrics import expected_calibration_error
from .temperature import fit_temperature, nll_at
from .trained_model import TrainedModel

FEW_IMAGES = 100  # with fewer, the temperature depends much on which images were held out


@dataclass(frozen=True)
class CalibrationMetrics:
    """How well a split's probabilities are calibrated, before and after dividing the logits by the temperature.

    Attributes:
        images: how many.
        nll: mean negative log-likelihood, nats per image: (at temperature 1, at the fitted one).
        ece: expected calibration error, in [0, 1], 15 bins: likewise.
    """

    images: int
    nll: tuple[float, float]
    ece: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature and its effect.

    Attributes:
        temperature: what the logits are divided by.
        checkpoint: the file with the weights that it was fitted for.
        epoch: the epoch they are of.
        validation: the split it was fitted on.
        test: the test split, which it was not fitted on; None if the run has none.
    """

    temperature: float
    checkpoint: Path
    epoch: int
    validation: CalibrationMetrics
    test: CalibrationMetrics | None

    def warnings(self) -> list[str]:
        """What makes the temperature doubtful, a line each."""
        lines = []
        if self.validation.images < FEW_IMAGES:
            lines.append(
                f"the temperature is fitted on {self.validation.images} images only; hold out at least {FEW_IMAGES} "
                "(data.validation) for a reliable one"
            )
        if self.test is not None and self.test.nll[1] > self.test.nll[0]:
            before, after = self.test.nll
            lines.append(
                f"on the test images the temperature makes the nll worse, {after:.4f} instead of {before:.4f}; delete "
                f"{self.checkpoint.parent / CALIBRATION} to undo it"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """As calibration.json holds it."""
        return {**asdict(self), "checkpoint": self.checkpoint.name}


def calibrate(
    path: Path,
    device: str | None = None,
    *,
    data_root: Path | None = None,
    trust_code: bool = False,
    allow_changed_data: bool = False,
) -> Calibration:
    """Fit a run's temperature on its validation split, and store it in the run folder.

    Args:
        path: a run folder or a checkpoint in one.
        device: as in TrainedModel.open, like data_root.
        data_root: where the data set is now.
        trust_code: run the user's code that the checkpoint names.
        allow_changed_data: use the run's splits although their images are not those of the training.
    Raises: RunError, ConfigError, DataError, if there is no checkpoint, no data or no validation split, or no
        temperature fits.
    """
    model = TrainedModel.open(
        path,
        device=device,
        temperature=1.0,
        data_root=data_root,
        trust_code=trust_code,
        allow_changed_data=allow_changed_data,
    )
    if model.dataset.validation is None:
        raise DataError(
            f"{path}: this run has no validation split to fit a temperature on; "
            "train with data.validation, 0.1 for example"
        )

    logits, labels = _outputs(model, "validation")
    try:
        temperature = fit_temperature(logits, labels)
    except ValueError as error:
        raise RunError(f"{path}: {error}; nothing was stored") from None
    test = None if model.dataset.test is None else _calibration_metrics(*_outputs(model, "test"), temperature)
    validation = _calibration_metrics(logits, labels, temperature)
    result = Calibration(temperature, model.checkpoint, model.epoch, validation, test)
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    stored = model.checkpoint.parent / CALIBRATION
    with writable(stored):
        replace_file(stored, text.encode())
    return result


def _outputs(model: TrainedModel, split: str) -> tuple[Tensor, Tensor]:
    logits, labels = model.logits(split)
    return logits.double().cpu(), labels.cpu()


def _calibration_metrics(logits: Tensor, labels: Tensor, temperature: float) -> CalibrationMetrics:
    before, after = (_ece(logits, labels, t) for t in (1.0, temperature))
    return CalibrationMetrics(
        len(labels), (nll_at(logits, labels, 1.0), nll_at(logits, labels, temperature)), (float(before), float(after))
    )


def _ece(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return expected_calibration_error(torch.softmax(logits / temperature, 1).numpy(), labels.numpy().astype(np.int64))
