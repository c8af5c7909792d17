"""The softmax temperature of a run: fitted on logits, and read back from calibration.json.

The logits are divided by a temperature T before softmax. No prediction changes; above 1 the probabilities come closer
together, below 1 they move apart.

Guo, Pleiss, Sun & Weinberger 2017, "On calibration of modern neural networks", section 4.2, eq. 9.
"""

import math
import shlex
from pathlib import Path

import torch
from torch import Tensor

from .. import streams
from ..argument_types import TEMPERATURES
from ..errors import RunError
from ..files import read_json
from ..runs.folder import CALIBRATION
from ..runs.header import find_checkpoint, read_header

LOWEST, HIGHEST = 0.01, 100.0
MAX_CALIBRATION = 1 << 16  # bytes of calibration.json


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in [0.01, 100] that minimizes the mean negative log-likelihood.

    Args:
        logits: [N, K] float.
        labels: [N] int64.
    Raises: ValueError if there is no minimum: every image is classified correctly, so that T = 0 would be best, or the
        labels' logits are on average no larger than the others, so that an infinite T would be.

    The nll is convex in 1/T (its slope is the mean of sum_k S_k z_k - z_y), so there is one minimum at most, and the
    slopes at both ends show whether there is one. SciPy's bounded Brent search finds it over log T.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite")
    label_logits = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    if (label_logits == logits.amax(1)).all():
        raise ValueError(
            f"all {len(labels)} validation images are classified correctly, so the nll falls as the temperature "
            "goes to 0 and has no minimum; hold out more images (data.validation)"
        )
    if label_logits.mean() <= logits.mean():
        raise ValueError("on the validation images the model is no better than chance, so no temperature fits")

    def nll(log_temperature: float) -> float:
        return nll_at(logits, labels, math.exp(log_temperature))

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    return math.exp(minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)


def nll_at(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean negative log-likelihood at a temperature, nats per image; logits [N, K] float64, labels [N] int64."""
    return -torch.log_softmax(logits / temperature, 1).gather(1, labels.unsqueeze(1)).mean().item()


def temperature_of(run: Path) -> float:
    """The temperature a run predicts with: the one `softmaxce calibrate` stored, else 1.

    A stored temperature belongs to the weights of one epoch; if the run has been trained further, it is not used, which
    a warning on stderr says.

    Args:
        run: a run folder or a checkpoint in one.
    Raises: RunError if there is no checkpoint, or calibration.json is damaged.
    """
    file = find_checkpoint(run)
    stored = file.parent / CALIBRATION
    if not stored.exists():
        return 1.0
    try:
        record = read_json(stored, MAX_CALIBRATION)
        temperature, epoch = float(record["temperature"]), int(record["epoch"])
    except OSError as error:
        raise RunError(f"{stored}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, OverflowError):  # NaN is refused below
        temperature, epoch = math.nan, 0
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        raise RunError(f"{stored}: is damaged; fit it again: softmaxce calibrate {shlex.quote(str(file.parent))}")
    current = read_header(file)["epoch"]
    if epoch == current:
        return temperature
    streams.warning(
        f"{stored}: is not used, since it was fitted for epoch {epoch} and {file.name} is of epoch {current}; "
        f"fit it again: softmaxce calibrate {shlex.quote(str(file.parent))}"
    )
    return 1.0
