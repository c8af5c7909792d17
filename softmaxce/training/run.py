"""The records of a training run: Run, its Progress, and the Epoch that the loop yields."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..config.keys import Config
from ..data.batches import Batch, Batches
from ..data.preprocessing import Preprocessing
from ..optim.schedules import Schedule
from ..runtime.device import choose_precision
from .cuda_graph import StaticStep
from .ema import ExponentialMovingAverage
from .tally import RunningMetrics, Scores


@dataclass
class Progress:
    """How far a run has come: the part of its state that is neither weights nor random numbers.

    Attributes:
        epoch: epochs done.
        batch: batches of the next epoch done.
        seconds: of training spent on these.
        nonfinite: batches whose loss was not finite, and which were passed over.
        best_epoch: the one whose weights are kept; 0 before there is one.
        best_value: its `best_metric` on the validation split.
        best_sha256: the checksum of its checkpoint.
        waited: epochs since it improved by more than min_delta, for early stopping.
        waited_from: the figure those epochs are compared with.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    nonfinite: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    best_sha256: str | None = field(default=None, compare=False)  # of a file, not of the run
    waited: int = 0
    waited_from: float | None = None


@dataclass
class Run:
    """Everything a training run needs, built once by build.build_run; a plain record.

    Attributes:
        config: what was asked for.
        classes: the K class names.
        class_counts: how many training images each has.
        preprocessing: what images go through before the model.
        device: where everything below is.
        model: (images [B, C, H, W]) -> logits [B, K].
        loss: (logits [B, K], targets [B] or [B, K]) -> scalar or [B].
        optimizer: over the model's parameters that train.
        schedule: step -> factor on the learning rate.
        train: the training batches.
        validation: the batches that decide which epoch is best; None if none were held out.
        test: the test batches; None if the data set has none.
        mix: mixup or CutMix on a batch; None if off.
        average: the moving average of the weights; None if off.
        scaler: scales the loss for fp16 (it does nothing otherwise).
        progress: how far the run has come.
        tally: the sums of the epoch in progress; always the same one.
        graph_wanted: whether full batches are to go through a CUDA graph.
        all_train_images: the fingerprint of the data set's training images before any were held out or left out; None
            where `train` has them all.
        step: what full batches go through, once it is made.
    """

    config: Config
    classes: tuple[str, ...]
    class_counts: list[int]
    preprocessing: Preprocessing
    device: torch.device
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train: Batches
    validation: Batches | None
    test: Batches | None
    mix: Callable[[Tensor, Tensor], Batch] | None
    average: ExponentialMovingAverage | None
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    tally: RunningMetrics = field(init=False)
    graph_wanted: bool = False
    all_train_images: str | None = None
    step: StaticStep | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tally = RunningMetrics(self.device)

    @property
    def precision(self) -> str:
        """What the forward pass computes in: float32, bf16 or fp16."""
        return choose_precision(self.config.precision, self.device)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and kept: the average where there is one."""
        return self.average.module if self.average is not None else self.model


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: a row of the table.

    Attributes:
        number: counted from 1.
        learning_rate: at the epoch's last step.
        train: running means over the epoch, while the weights moved.
        validation: on the held-out images; None without such.
        test: on the test images, only where there is no validation split.
        images_per_second: of the training pass.
        seconds: of the whole epoch, evaluation included.
        best: whether it is the best so far on the validation split.
        waited: epochs since the last improvement, for early stopping.
    """

    number: int
    learning_rate: float
    train: Scores
    validation: Scores | None
    test: Scores | None
    images_per_second: float
    seconds: float
    best: bool
    waited: int

    def to_dict(self) -> dict[str, Any]:
        """As a JSON line holds it. Losses in nats, accuracies in [0, 1]."""
        line: dict[str, Any] = {"event": "epoch", "epoch": self.number, "learning_rate": self.learning_rate}
        for name in ("train", "validation", "test"):
            if (scores := getattr(self, name)) is not None:
                line[name] = scores.to_dict()
        seconds = {"images_per_second": round(self.images_per_second, 1), "seconds": round(self.seconds, 3)}
        return {**line, **seconds, "best": self.best}
