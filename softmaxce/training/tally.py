"""Running metrics of an epoch: sums that stay on the device until they are read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_PENDING = 1 << 16  # logits whose batches are not added up yet


@dataclass(frozen=True)
class Scores:
    """Loss and accuracy over some images.

    Attributes:
        loss: nats per image; NaN if there are no images.
        accuracy: the fraction of images whose largest logit is their label's, in [0, 1]; NaN if there are no images.
        images: how many.
        others: the metrics that the config asks for beside them, by name.
    """

    loss: float
    accuracy: float
    images: int
    others: Mapping[str, float] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, float]:
        """Its entries in a JSON line."""
        return {"loss": self.loss, "accuracy": self.accuracy, **self.others}


class RunningMetrics:
    """Running sums of losses and correct predictions. They stay on the device; only `scores` waits for it.

    On the CPU several small batches are added up together: one at a time, the calls would cost more than the sums.

    Attributes:
        images: how many; the caller counts them, as a CUDA graph that calls `add` cannot.
        max_pending: logits that may wait to be added up; 0 where the next batch overwrites their memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self.max_pending = MAX_PENDING if device.type == "cpu" else 0
        self._loss = torch.zeros((), device=device)
        self._num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []  # loss, logits, targets
        self._pending_logits = 0

    @property
    def loss(self) -> Tensor:
        """The sum of the images' losses [], in nats; always the same tensor."""
        self._add_up()
        return self._loss

    @property
    def num_correct(self) -> Tensor:
        """Images whose largest logit is their label's []; always the same tensor."""
        self._add_up()
        return self._num_correct

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add one batch: its mean loss [], logits [B, K], targets [B] ids or [B, K] probabilities."""
        self._pending.append((loss.detach(), logits.detach(), targets))
        self._pending_logits += logits.numel()
        if self._pending_logits > self.max_pending:
            self._add_up()

    def add_sums(self, loss: float, num_correct: int, images: int) -> None:
        """Add sums over images that were made elsewhere: of their losses in nats, and of correct predictions."""
        self._loss.add_(loss)
        self._num_correct.add_(num_correct)
        self.images += images

    def _add_up(self) -> None:
        if not self._pending:
            return
        losses, *pairs = zip(*self._pending, strict=True)
        for loss, targets in zip(losses, pairs[1], strict=True):
            self._loss.add_(loss, alpha=len(targets))
        logits, targets = (torch.cat(batches) if len(batches) > 1 else batches[0] for batches in pairs)
        ids = targets if targets.ndim == 1 else targets.argmax(1)
        self._num_correct.add_((logits.argmax(1) == ids).sum())
        self._pending.clear()
        self._pending_logits = 0

    def clear(self) -> None:
        """Set the sums to 0, in place."""
        self.loss.zero_()
        self.num_correct.zero_()
        self.images = 0

    def scores(self) -> Scores:
        """The means over all images so far; NaN if there are none, as where every step was skipped."""
        if not self.images:
            return Scores(math.nan, math.nan, 0)
        return Scores(self.loss.item() / self.images, self.num_correct.item() / self.images, self.images)
