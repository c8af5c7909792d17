"""The part of a global batch that one of several processes takes, and the random numbers of its images."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """A part of a batch.

    Attributes:
        size: images of the whole batch.
        positions: [M] int64, which of them these are.
        key: of the batch and this process, for random numbers of its own.
    """

    size: int
    positions: Tensor
    key: tuple[int, ...] = ()


def per_image(draw: Callable[[int], Tensor], images: Tensor, share: Share | None, dim: int = 0) -> Tensor:
    """Random numbers for each image: those that it gets too where one process has the whole batch.

    Args:
        draw: makes those of so many images; image i has entry i of dimension `dim`.
        images: [B, ...], the images.
        share: which part of a batch they are; None if they are all of it.
        dim: see draw.
    """
    if share is None:
        return draw(len(images))
    drawn = draw(share.size)
    return drawn.index_select(dim, share.positions.to(drawn.device))
