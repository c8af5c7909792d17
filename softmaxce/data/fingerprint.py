"""Fingerprints of splits: equal if two splits have the same images and labels, wherever they are stored."""

import hashlib
import re
from pathlib import Path

from .member import first_bytes, size_of
from .splits import Dataset, InMemory, OnDisk, Split

SPLITS = ("train", "validation", "test")
SAMPLED_FILES = 256  # of an on-disk split, evenly spaced, are read
SAMPLED_BYTES = 1 << 16  # from the start of each


def fingerprint(split: Split) -> str:
    """A hash of a split's images and labels.

    `pixels:DIGITS:COUNT` where the images are decoded in memory: every pixel matters. `files:DIGITS:DIGITS:COUNT` where
    they are read from disk as they are needed: the first digits are of all files' names and sizes, the second of the
    contents of up to 256 of them, because reading all would take as long as an epoch. COUNT is the number of images.
    """
    digest = hashlib.blake2b(repr((len(split), split.shape)).encode(), digest_size=8)
    digest.update(split.labels.cpu().contiguous().numpy().data)
    if isinstance(split, InMemory):
        digest.update(split.images.cpu().contiguous().numpy().data)
        return f"pixels:{digest.hexdigest()}:{len(split)}"
    for file in split.files:
        digest.update(f"{_name(file)} {_size(file)}\n".encode(errors="surrogateescape"))
    return f"files:{digest.hexdigest()}:{_contents(split)}:{len(split)}"


def count_in(text: str) -> int | None:
    """The number of images that a fingerprint records; None if an earlier version made it, or it is none of ours."""
    kind, *parts = text.split(":")
    has_count = len(parts) == {"pixels": 2, "files": 3}.get(kind) and re.fullmatch("[0-9]{1,15}", parts[-1]) is not None
    return int(parts[-1]) if has_count else None


def fingerprints(source: Dataset) -> dict[str, str]:
    """The fingerprint of each split of a data set, by the split's name."""
    splits = {name: getattr(source, name) for name in SPLITS}
    return {name: fingerprint(split) for name, split in splits.items() if split is not None}


def _name(file: str) -> str:
    return f"{Path(file).parent.name}/{Path(file).name}"


def _size(file: str) -> int:
    try:
        return size_of(file)
    except OSError:  # removed since it was listed: another fingerprint, and an error when a batch needs it
        return -1


def _contents(split: OnDisk) -> str:
    digest = hashlib.blake2b(digest_size=8)
    count = min(SAMPLED_FILES, len(split.files))
    for number in range(count):
        file = split.files[number * len(split.files) // count]
        try:
            digest.update(first_bytes(file, SAMPLED_BYTES))
        except OSError:  # as in _size
            digest.update(b"?")
    return digest.hexdigest()
