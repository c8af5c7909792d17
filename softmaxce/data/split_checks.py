"""What a split must be: images of one type and shape, and a class id for each."""

import torch

from ..errors import DataError
from .splits import InMemory, OnDisk, Split


def check_split(source: str, name: str, split: Split, num_classes: int) -> None:
    """Refuse a split that cannot be trained or evaluated on; a user's own data set may return anything.

    Args:
        source: the data set's name, for messages.
        name: the split's name.
        split: what the data set returned.
        num_classes: K.
    Raises: DataError.
    """
    if not isinstance(split, InMemory | OnDisk):
        kinds = "softmaxce.data.splits.InMemory or OnDisk"
        raise DataError(f"{source}: the {name} split must be a {kinds}, got {type(split).__name__}")
    if split.labels.ndim != 1 or split.labels.dtype != torch.int64:
        got = f"{str(split.labels.dtype).removeprefix('torch.')} {list(split.labels.shape)}"
        raise DataError(f"{source}: the {name} split's labels must be int64 class ids [N], got {got}")
    depth = split.reading.decode.resizing.depth if isinstance(split, InMemory) and split.reading else "uint8"
    if isinstance(split, InMemory) and (split.images.ndim != 4 or split.images.dtype != getattr(torch, depth)):
        got = f"{str(split.images.dtype).removeprefix('torch.')} {list(split.images.shape)}"
        raise DataError(f"{source}: the {name} split's images must be {depth} [N, C, H, W], got {got}")
    images = len(split.images) if isinstance(split, InMemory) else len(split.files)
    if images != len(split.labels):
        raise DataError(f"{source}: the {name} split has {images} images and {len(split.labels)} labels")
    for kind, entries in (("names", split.names), ("groups", split.groups)):
        if entries is not None and len(entries) != images:
            raise DataError(f"{source}: the {name} split has {images} images and {len(entries)} {kind}")
    if len(split) == 0:
        raise DataError(f"{source}: the {name} split has no images")
    low, high = split.labels.min().item(), split.labels.max().item()
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"{source}: the {name} split has the label {wrong}; with {num_classes} classes labels go from 0 to "
            f"{num_classes - 1}"
        )
