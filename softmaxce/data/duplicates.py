"""Images that a data set has several times: in two splits, under two classes, or merely twice."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import DataError
from ..runtime.processors import processors
from ..waiting import Counting
from .decode import MAX_BYTES
from .member import open_image_file, size_of
from .splits import InMemory, Split


@dataclass(frozen=True)
class Copy:
    """One of several equal images; `label` is its class, and `name` its file, or its index in the split."""

    split: str
    label: str
    name: str


@dataclass(frozen=True)
class Duplicates:
    """Sets of equal images. One that is in two splits and under two classes is in both of the first two lists.

    Attributes:
        across_splits: those of which there is one in each of two splits or more.
        with_two_classes: those under two classes or more.
        others: the number of sets whose images are in one split, under one class.
    """

    across_splits: tuple[tuple[Copy, ...], ...] = ()
    with_two_classes: tuple[tuple[Copy, ...], ...] = ()
    others: int = 0


def find_duplicates(splits: Mapping[str, Split], classes: Sequence[str]) -> Duplicates:
    """The equal images of all splits: files with the same bytes or, where images have no files, the same pixels.

    Only files of which another has as many bytes are read. Raises: DataError if one cannot be.
    """
    images = [(name, index) for name, split in splits.items() for index in range(len(split))]
    sizes = [_size(splits[name], index) for name, index in images]
    how_often = Counter(sizes)
    compared = [image for image, size in zip(images, sizes, strict=True) if how_often[size] > 1]
    equal: dict[bytes, list[Copy]] = {}
    with Counting("looking for duplicates", len(compared)) as counting, ThreadPoolExecutor(processors()) as pool:

        def digest(image: tuple[str, int]) -> bytes:
            counting.advance()
            return _digest(splits[image[0]], image[1])

        for (name, index), key in zip(compared, pool.map(digest, compared), strict=True):
            split = splits[name]
            shown = f"image {index}" if split.files is None else str(split.files[index])
            equal.setdefault(key, []).append(Copy(name, classes[int(split.labels[index])], shown))
    sets = [tuple(each) for each in equal.values() if len(each) > 1]
    across = [each for each in sets if len({copy.split for copy in each}) > 1]
    contradicting = [each for each in sets if len({copy.label for copy in each}) > 1]
    others = sum(len({(copy.split, copy.label) for copy in each}) == 1 for each in sets)
    return Duplicates(tuple(across), tuple(contradicting), others)


def _size(split: Split, index: int) -> int:
    """The bytes of an image's file; 0 of an image without one, as all of them are compared."""
    if split.files is None:
        return 0
    try:
        return size_of(split.files[index])
    except OSError as error:
        raise DataError(f"{split.files[index]}: cannot be read: {error.strerror or error}") from None


def _digest(split: Split, index: int) -> bytes:
    if split.files is None:
        assert isinstance(split, InMemory)
        return hashlib.blake2b(split.images[index].contiguous().numpy().tobytes()).digest()
    file = split.files[index]
    try:
        with open_image_file(file, MAX_BYTES) as stream:
            return hashlib.blake2b(stream.read()).digest()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
