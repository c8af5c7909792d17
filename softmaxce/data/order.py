"""The order of a split's images in an epoch."""

import torch
from torch import Tensor

from .member import Member
from .sampling import ClassSampler
from .splits import Split

SHARDS_AT_A_TIME = 8


def epoch_order(split: Split, generator: torch.Generator, sampler: ClassSampler | None = None) -> Tensor:
    """A random order of the split's images, [N] int64: uniform, or of a few shards at a time.

    With a sampler, of the images that it draws, numbered as by ClassSampler.draw.
    """
    count = len(split)
    windows = _windows(split)
    if windows is not None:
        shards, members = windows.unique(return_inverse=True)
        rank = torch.randperm(len(shards), generator=generator)[members] // SHARDS_AT_A_TIME
    shuffled = torch.randperm(count, generator=generator)
    if sampler is not None:
        shuffled = sampler.draw(split.labels, generator)[shuffled]
    return shuffled if windows is None else shuffled[rank[shuffled % count].argsort(stable=True)]


def _windows(split: Split) -> Tensor | None:
    """The shard of each image, [N] int64; None if the images are shuffled across them."""
    files = split.files
    if files is None or not len(files) or not isinstance(files[0], Member) or not files[0].window:
        return None
    return torch.tensor([file.window for file in files if isinstance(file, Member)])
