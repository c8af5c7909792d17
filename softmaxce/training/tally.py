"""Running metrics of an epoch: sums that stay on the device until they are read."""

from dataclasses import dataclass

import torch
from torch import Tensor

WAITING = 1 << 16  # logits that may wait to be looked at


@dataclass(frozen=True)
class Scores:
    """The two figures of an epoch's row.

    Attributes:
        loss: nats an image.
        accuracy: the share of images whose largest logit is their label's, in [0, 1].
        images: how many images they were measured on.
    """

    loss: float
    accuracy: float
    images: int

    def to_dict(self) -> dict[str, float]:
        """As a JSON line holds it."""
        return {"loss": self.loss, "accuracy": self.accuracy}


class RunningMetrics:
    """Running sums of loss and hits. They stay on the device; `scores` is the only place that waits for it.

    On the CPU batches are added up some at a time: alone, each would cost more in calls than in sums.

    Attributes:
        images: how many; the caller counts them, as a CUDA graph that calls `add` cannot.
        room: so many logits may wait for that; 0 where what they lie in is written over by the next batch.
    """

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self.room = WAITING if device.type == "cpu" else 0
        self._loss = torch.zeros((), device=device)
        self._hits = torch.zeros((), dtype=torch.int64, device=device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # loss, logits, targets
        self._numbers = 0  # of these logits

    @property
    def loss(self) -> Tensor:
        """Nats, of all images []; always the same tensor."""
        self._add_up()
        return self._loss

    @property
    def hits(self) -> Tensor:
        """Images whose largest logit is their label's []; always the same tensor."""
        self._add_up()
        return self._hits

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add up one batch: its mean loss (scalar), logits [B, K], targets [B] ids or [B, K] probabilities."""
        self._waiting.append((loss.detach(), logits.detach(), targets))
        self._numbers += logits.numel()
        if self._numbers > self.room:
            self._add_up()

    def _add_up(self) -> None:
        if not self._waiting:
            return
        losses, *pairs = zip(*self._waiting, strict=True)
        for loss, targets in zip(losses, pairs[1], strict=True):
            self._loss.add_(loss, alpha=len(targets))
        logits, targets = (torch.cat(batches) if len(batches) > 1 else batches[0] for batches in pairs)
        ids = targets if targets.ndim == 1 else targets.argmax(1)
        self._hits.add_((logits.argmax(1) == ids).sum())
        self._waiting.clear()
        self._numbers = 0

    def clear(self) -> None:
        """Begin anew, in the same place."""
        self.loss.zero_()
        self.hits.zero_()
        self.images = 0

    def scores(self) -> Scores:
        """The sums, divided once."""
        images = max(1, self.images)
        return Scores(self.loss.item() / images, self.hits.item() / images, self.images)
