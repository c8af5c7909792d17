"""A split of images, the splits of a data set, and how one split is divided in two."""

import math
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import torch
from torch import Tensor

from .decode import Decode
from .packed import packed, taken


@dataclass(frozen=True)
class Reading:
    """How image files were read into memory.

    Attributes:
        decode: path -> [C, H, W], of its depth.
        workers: processes that decode, if the files are read in every epoch; None for as many as there are threads.
        cache: whether decoded images are cached.
        whole_in_memory: whether whole images may be kept in memory too, for augmentations that cut from them.
    """

    decode: Decode
    workers: int | None = 2
    cache: bool = False
    whole_in_memory: bool = False


@dataclass(frozen=True)
class InMemory:
    """A split in memory.

    Attributes:
        images: [N, C, H, W] uint8, or of the depth that `reading` decodes to.
        labels: [N] int64 class ids.
        names: N names that stay the same when other images are added or removed; None if there are none. A split with
            names is divided by them (`split_by_name`), one without by a shuffle (`stratified`).
        files: N paths that the images were read from; None if they come from no files of their own.
        groups: N names of groups, such as patients or videos; data.validation keeps each on one side. None if there
            are none.
        reading: how the files were read; None if that is not known.
    """

    images: Tensor
    labels: Tensor
    names: Sequence[str] | None = None
    files: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    reading: Reading | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, indices: Tensor) -> "InMemory":
        """The images at `indices` ([M] int64), in that order."""
        names, files, groups = (_at(each, indices) for each in (self.names, self.files, self.groups))
        return InMemory(self.images[indices], self.labels[indices], names, files, groups, self.reading)


@dataclass(frozen=True)
class OnDisk:
    """A split too large for memory: an image is decoded when a batch needs it.

    Attributes:
        files: N paths.
        labels: [N] int64 class ids.
        shape: (C, H, W) that `decode` gives.
        decode: path -> [C, H, W] uint8, or of its depth; it must be picklable, as worker processes call it.
        workers: processes that decode beside the training process; None for as many as that has threads.
        names: as in InMemory.
        groups: as in InMemory.

    The texts are packed into arrays, as there may be millions of them.
    """

    files: Sequence[str]
    labels: Tensor
    shape: tuple[int, int, int]
    decode: Callable[[str], Tensor]
    workers: int | None = 2
    names: Sequence[str] | None = None
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("files", "names", "groups"):
            texts = getattr(self, name)
            object.__setattr__(self, name, None if texts is None else packed(texts))

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Tensor) -> "OnDisk":
        """The images at `indices` ([M] int64), in that order."""
        names, groups = _at(self.names, indices), _at(self.groups, indices)
        return OnDisk(
            taken(self.files, indices), self.labels[indices], self.shape, self.decode, self.workers, names, groups
        )


Split = InMemory | OnDisk


def _at(texts: Sequence[str] | None, indices: Tensor) -> Sequence[str] | None:
    return None if texts is None else taken(texts, indices)


@dataclass(frozen=True)
class Dataset:
    """A data set: its splits and its class names.

    `validation` and `test` are None where the data set has none of its own. `unreadable` are the files that were left
    out because they cannot be decoded, with the reason.
    """

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    validation: Split | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)


def __getattr__(name: str) -> Any:
    if name == "Source":
        message = "softmaxce.data.splits.Source has been renamed: import Dataset from there"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return Dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Side = Literal["rest", "selected"]


def stratified(
    labels: Tensor, count: int, generator: torch.Generator, keep: Collection[Side] = ()
) -> tuple[Tensor, Tensor]:
    """Split indices in two by a shuffle, each class in proportion: for data sets that do not change.

    Args:
        labels: [N] int64.
        count: how many indices the second part gets, 0 < count < N.
        generator: of the shuffle.
        keep: the parts in which every class must have an image, as far as `count` allows.
    Returns: (rest, selected), [N - count] and [count] int64, each sorted.
    Raises: ValueError if a part would be empty.

    The counts of the classes are rounded by the largest remainder (Hamilton's method), ties to the lower class id.
    """
    seats = _seats(torch.bincount(labels), count, keep)
    n = len(labels)
    order = torch.randperm(n, generator=generator)
    selected = torch.zeros(n, dtype=torch.bool)
    shuffled = labels[order]
    for label, seat in enumerate(seats.tolist()):
        selected[order[shuffled == label][:seat]] = True
    return (~selected).nonzero().flatten(), selected.nonzero().flatten()


SLACK = 0.25  # relative deviation of a class's count from fraction * images, beyond which it is corrected


def split_by_name(
    names: Sequence[str], labels: Tensor, size: float, salt: str, keep: Collection[Side] = ("rest", "selected")
) -> tuple[Tensor, Tensor]:
    """Split indices in two by a hash of each image's name, so that images stay in their part when others come or go.

    Args:
        names: N names, the class included; composed and decomposed letters (Unicode NFC and NFD) are the same.
        labels: [N] int64 class ids.
        size: a fraction in (0, 1) of each class, or a count over all classes, 0 < count < N.
        salt: hashed with the name: another salt gives another split.
        keep: for a count, the parts in which every class must have an image, as far as it allows.
    Returns: (rest, selected), int64 indices, each sorted. Their order and the classes' ids do not matter.
    Raises: ValueError if a part would be empty.

    The hash is a number in [0, 1); the images of a class with the lowest hashes are the second part.

    A fraction is a threshold on the hash: the name alone decides the part, and the number in the second part is
    binomially distributed. Where it would deviate from fraction * images by more than a quarter, as it may in small
    classes, the nearest number within a quarter is taken. A class of two or more images has one in each part, and a
    class of one stays in the first. So adding or removing an image moves at most one other, of its own class, and none
    where the class is within that quarter.

    A count is exact, and divided among the classes as by `stratified`. Adding or removing an image moves at most one
    other of its class, and one of each other class whose part of the count is then rounded differently.
    """
    hashes = [name_hash(name, salt) for name in names]
    totals = torch.bincount(labels)
    seats = None if isinstance(size, float) else _seats(totals, size, keep).tolist()
    members: list[list[int]] = [[] for _ in totals]
    for index, label in enumerate(labels.tolist()):
        members[label].append(index)
    selected = torch.zeros(len(labels), dtype=torch.bool)
    for label, indices in enumerate(members):
        indices.sort(key=lambda index: (hashes[index], names[index]))
        if seats is not None:
            number = seats[label]
        else:
            below = sum(hashes[index] < size for index in indices)
            number = _selected_count(below, size, len(indices))
        selected[indices[:number]] = True
    if not selected.any():
        raise ValueError("no class has two images, one for each part")
    return (~selected).nonzero().flatten(), selected.nonzero().flatten()


def split_by_group(groups: Sequence[str], labels: Tensor, size: float, salt: str) -> tuple[Tensor, Tensor]:
    """Split indices in two by a hash of each image's group, so that no group is on both sides.

    Args:
        groups: N names, of the patient or the video that each image is of.
        labels: [N] int64 class ids.
        size: a fraction in (0, 1) of each class, or a count over all classes, 0 < count < N.
        salt: hashed with the name: another salt gives another split.
    Returns: (rest, selected), int64 indices, each sorted. The order of the images does not matter.
    Raises: ValueError if a part would be empty.

    Stratified as far as whole groups allow, the rarest class first, as Sechidis et al. 2011 do with labels: of the
    groups whose rarest class it is, in the order of their hashes, each is selected that brings the number of the
    class's selected images nearer to its part. Every class has images in the rest, and, if it has more than one group,
    in the selected part too, as far as the groups allow both.
    """
    if isinstance(size, int) and not 0 < size < len(labels):
        raise ValueError(f"cannot choose {size} of {len(labels)} images; choose between 1 and {len(labels) - 1}")
    left = Counter(labels.tolist())  # images of each class in the rest
    wanted = {label: count * (size / len(labels) if isinstance(size, int) else size) for label, count in left.items()}
    classes: dict[str, Counter[int]] = {}
    for group, label in zip(groups, labels.tolist(), strict=True):
        classes.setdefault(group, Counter())[label] += 1
    totals = dict(left)
    rarest_first = sorted(totals, key=lambda label: (totals[label], label))
    rank = {label: position for position, label in enumerate(rarest_first)}
    having: dict[int, list[str]] = {label: [] for label in totals}  # the groups with images of a class, by their hashes
    for group in sorted(classes, key=lambda group: (name_hash(group, salt), group)):
        for label in classes[group]:
            having[label].append(group)
    selected: set[str] = set()

    def select(group: str) -> None:
        selected.add(group)
        left.subtract(classes[group])

    def may_go(group: str) -> bool:
        return group not in selected and all(left[label] > count for label, count in classes[group].items())

    for label in rarest_first:
        for group in having[label]:
            missing = wanted[label] - (totals[label] - left[label])
            is_rarest = min(classes[group], key=rank.__getitem__) == label
            if is_rarest and classes[group][label] < 2 * missing and may_go(group):
                select(group)
        candidates = [group for group in having[label] if may_go(group)] if left[label] == totals[label] else []
        if candidates:
            select(min(candidates, key=lambda group: classes[group][label]))
    if not selected:
        raise ValueError("no class has two groups, one for each part")
    chosen = torch.tensor([group in selected for group in groups])
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def name_hash(name: str, salt: str) -> float:
    """A name's number in [0, 1), of 53 bits: the same on every machine."""
    text = f"{salt}\0{unicodedata.normalize('NFC', name)}"
    digest = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _selected_count(below: int, fraction: float, total: int) -> int:
    """How many of a class's `total` images go to the second part, if `below` have a hash below the fraction.

    Adding one image to the class increases each of its terms, and so the result, by 0 or 1.
    """
    if total < 2:
        return 0
    expected = fraction * total
    low = max(1, min(math.ceil((1 - SLACK) * expected), round(expected)))
    high = min(total - 1, max(1, math.floor((1 + SLACK) * expected), round(expected)))
    return min(max(below, low), high)


def _seats(totals: Tensor, count: int, keep: Collection[Side]) -> Tensor:
    """How many images of each class go to the second part, [K] int64; `totals` is [K]. Raises: ValueError.

    Hamilton's method within bounds: in the parts named in `keep` each class has an image, as far as `count` allows.
    """
    n = int(totals.sum())
    if not 0 < count < n:
        raise ValueError(f"cannot choose {count} of {n} images; choose between 1 and {n - 1}")
    low, high = torch.zeros_like(totals), totals
    if "rest" in keep and count <= int((totals - 1).clamp(min=0).sum()):
        high = (totals - 1).clamp(min=0)
    if "selected" in keep and count >= int(high.clamp(max=1).sum()):
        low = high.clamp(max=1)
    exact = totals.double() * count / n
    seats = torch.minimum(torch.maximum(exact.floor().long(), low), high)
    while (missing := count - int(seats.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = seats < high if step > 0 else seats > low
        owed = ((exact - seats) * step).masked_fill(~room, -math.inf)
        seats[torch.argsort(owed, descending=True, stable=True)[: min(abs(missing), int(room.sum()))]] += step
    return seats
