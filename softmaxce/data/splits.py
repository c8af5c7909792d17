"""The records that data comes in: a split of images, and the splits of one data set."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InMemory:
    """A split that lives whole in memory.

    Attributes:
        images: [N, C, H, W] uint8.
        labels: [N] int64 class ids.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, indices: Tensor) -> "InMemory":
        """The images at `indices` ([M] int64), in that order."""
        return InMemory(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class OnDisk:
    """A split too large for memory: each image is decoded when a batch needs it.

    Attributes:
        files: N paths.
        labels: [N] int64 class ids.
        shape: (C, H, W) that `decode` gives.
        decode: path -> [C, H, W] uint8; it must be picklable, worker processes call it.
        workers: how many processes decode beside the training one.
    """

    files: tuple[str, ...]
    labels: Tensor
    shape: tuple[int, int, int]
    decode: Callable[[str], Tensor]
    workers: int = 2

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Tensor) -> "OnDisk":
        """The images at `indices` ([M] int64), in that order."""
        files = tuple(self.files[i] for i in indices.tolist())
        return OnDisk(files, self.labels[indices], self.shape, self.decode, self.workers)


Split = InMemory | OnDisk


@dataclass(frozen=True)
class Source:
    """A data set: its splits and its class names.

    `validation` and `test` are None where the data set has none of its own.
    """

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    validation: Split | None = None


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split indices in two so that each class keeps its share in both.

    Args:
        labels: [N] int64.
        count: how many indices the second part gets, 0 < count < N.
        generator: decides which.
    Returns: (rest, chosen), [N - count] and [count] int64, each sorted.

    The seats of each class are dealt by largest remainder (Hamilton's method), ties to the lower class id.
    """
    n = len(labels)
    if not 0 < count < n:
        raise ValueError(f"cannot choose {count} of {n} images; choose between 1 and {n - 1}")
    order = torch.randperm(n, generator=generator)
    totals = torch.bincount(labels)
    exact = totals.double() * count / n
    seats = exact.floor().long()
    missing = count - int(seats.sum())
    seats[torch.argsort(exact - seats, descending=True, stable=True)[:missing]] += 1
    chosen = torch.zeros(n, dtype=torch.bool)
    shuffled = labels[order]
    for label, seat in enumerate(seats.tolist()):
        chosen[order[shuffled == label][:seat]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
