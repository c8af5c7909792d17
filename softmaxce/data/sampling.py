"""Which training images an epoch consists of where classes are drawn more, or less, often than they occur."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassSampler:
    """Draws images so that a class of m has a share of an epoch in proportion to m^(1 - power).

    An epoch has as many images as the split, and as many of each class as every other epoch. An image comes a second
    time once all of its class have come.

    Attributes:
        power: 0 draws every image once; 1 draws as many images of each class.
    """

    power: float

    def counts(self, class_counts: Tensor) -> Tensor:
        """[K] images in the split of each class -> [K] in an epoch, of the same sum; none of a class without images."""
        total = int(class_counts.sum())
        sizes = class_counts.double()
        weights = torch.where(class_counts > 0, sizes.pow(1 - self.power), torch.zeros_like(sizes))
        exact = weights / weights.sum() * total
        counts = exact.floor().long()
        rest = (exact - counts).argsort(descending=True, stable=True)[: total - int(counts.sum())]
        counts[rest] += 1
        return counts

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """An epoch's images, class by class.

        Args:
            labels: [N] int64.
            generator: on the CPU.
        Returns: [N] int64, an image's index plus N times how often it has come before in the epoch.
        """
        num_images, drawn = len(labels), []
        class_counts = labels.bincount()
        classes = labels.argsort(stable=True).split(class_counts.tolist())
        for members, count in zip(classes, self.counts(class_counts).tolist(), strict=True):
            for time, start in enumerate(range(0, count, max(1, len(members)))):
                chosen = torch.randperm(len(members), generator=generator)[: count - start]
                drawn.append(members[chosen] + time * num_images)
        return torch.cat(drawn)
