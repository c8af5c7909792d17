"""The records of a training run: Run, its Progress, and the Epoch that the loop yields."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..config.keys import Config
from ..data.batches import Batch, Batches
from ..data.preprocessing import Preprocessing
from ..optim.schedules import Schedule
from ..runtime.device import choose_precision
from ..runtime.process_group import SINGLE, ProcessGroup
from .cuda_graph import StaticStep
from .tally import RunningMetrics, Scores

if TYPE_CHECKING:  # a model in use needs none, and no compiled loss
    from .distillation import Teacher


@dataclass
class Progress:
    """How far a run has come: the part of its state that is neither weights nor random numbers.

    Attributes:
        epoch: epochs done.
        batch: batches of the next epoch done.
        seconds: of training spent on these.
        nonfinite: steps left out because a loss or a gradient was not finite.
        best_epoch: the number of the best epoch so far; 0 before there is one.
        best_value: its `best_metric` on the validation split.
        best_sha256: the checksum of its checkpoint.
        epochs_without_improvement: by more than min_delta, for early stopping.
        reference_value: the `best_metric` that those epochs did not improve on.
        schedule: the state of a schedule that depends on the validation metrics; None for any other.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    nonfinite: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    best_sha256: str | None = field(default=None, compare=False)  # of a file, not of the run
    epochs_without_improvement: int = 0
    reference_value: float | None = None
    schedule: dict[str, Any] | None = None


@dataclass
class Run:
    """Everything a training run needs, built once by build.build_run; a plain record.

    Attributes:
        config: the config it was built from.
        classes: the K class names.
        class_counts: training images of each class.
        preprocessing: the images' shape and normalization.
        device: of everything below.
        model: (images [B, C, H, W]) -> logits [B, K].
        loss: (logits [B, K], targets [B] or [B, K]) -> scalar or [B].
        optimizer: over the parameters of the model and of the loss that train.
        schedule: step -> factor on the learning rate.
        train: the training batches.
        validation: the batches that decide which epoch is best; None if none were held out.
        test: the test batches; None if the data set has none.
        mix: mixup or CutMix on a batch; None if off.
        average: of the weights, exponential (model_ema_decay) or of the last epochs (swa); None if off.
        scaler: scales the loss for fp16; disabled otherwise.
        progress: how far the run has come.
        tally: the metrics of the epoch in progress; always the same object.
        use_graph: whether to make a CUDA graph for full batches.
        all_train_images: the fingerprint of the data set's training images before any were held out or left out; None
            where `train` has them all.
        group: the processes that train the run together.
        teacher: of a distillation, once runs.teacher.load has read it; None without one.
        static_step: the forward and backward pass for full batches as a CUDA graph, once it is made.
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
    average: AveragedModel | None
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    tally: RunningMetrics = field(init=False)
    use_graph: bool = False
    all_train_images: str | None = None
    group: ProcessGroup = SINGLE
    teacher: "Teacher | None" = field(default=None, init=False)
    static_step: StaticStep | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tally = RunningMetrics(self.device)

    @property
    def precision(self) -> str:
        """Of the forward pass: float32, bf16 or fp16."""
        return choose_precision(self.config.precision, self.device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters, then those of the loss, each once."""
        of_loss = self.loss.parameters() if isinstance(self.loss, nn.Module) else ()
        return list(dict.fromkeys([*self.model.parameters(), *of_loss]))

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved: the average where there is one."""
        return self.model if self.average is None else self.average.module


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch: a row of the table.

    Attributes:
        number: counted from 1.
        learning_rate: at the epoch's last step.
        train: running means over the epoch, while the weights moved; without the steps that were skipped.
        validation: on the held-out images; None without such.
        test: on the test images, only where there is no validation split.
        images_per_second: of the training pass.
        seconds: of the whole epoch, evaluation included.
        best: whether it is the best so far on the validation split.
        epochs_without_improvement: for early stopping.
    """

    number: int
    learning_rate: float
    train: Scores
    validation: Scores | None
    test: Scores | None
    images_per_second: float
    seconds: float
    best: bool
    epochs_without_improvement: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON line of the epoch. Losses in nats, accuracies in [0, 1]."""
        line: dict[str, Any] = {"event": "epoch", "epoch": self.number, "learning_rate": self.learning_rate}
        for name in ("train", "validation", "test"):
            if (scores := getattr(self, name)) is not None:
                line[name] = scores.to_dict()
        seconds = {"images_per_second": round(self.images_per_second, 1), "seconds": round(self.seconds, 3)}
        return {**line, **seconds, "best": self.best}
