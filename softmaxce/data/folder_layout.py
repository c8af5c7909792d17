"""Finds the splits, the classes and the image files in a folder of images."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .. import streams
from ..errors import DataError
from .decode import HEIF, is_image, is_unread_image

# What a split's folder may be called, in any case, also with -set, _set, _data or _images after it.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SUFFIX = re.compile(r"[ _-]*(set|data|images)?$")
# Made by file managers and archivers, with thumbnails or metadata under the images' own names; and hidden folders.
NOT_OURS = ("@eadir", "__macosx", "$recycle.bin", "lost+found", "system volume information")
SHOWN = 10  # names in one message


def splits_in(top: Path) -> dict[str, Path]:
    """The folders of the splits `train`, `validation` and `test`; {} if there is none for training.

    Raises: DataError if two folders are the same split, or if the sub-folders are splits under other names.
    """
    folders = sub_folders(top)
    splits: dict[str, Path] = {}
    for folder in folders:
        split = split_of(folder.name)
        if split is not None and split in splits and "train" in map(split_of, (entry.name for entry in folders)):
            raise DataError(f"{top}: '{splits[split].name}' and '{folder.name}' are both a {split} split; remove one")
        if split is not None:
            splits[split] = folder
    if "train" not in splits:
        _refuse_hidden_splits(top, folders)
        return {}
    if others := [folder.name for folder in folders if folder not in splits.values()]:
        streams.warning(
            f"{top}: beside the splits {_listed(entry.name for entry in splits.values())}, {_listed(others)} "
            "is not read"
        )
    return splits


def split_of(name: str) -> str | None:
    """The split that a folder of this name holds, None if it names none."""
    stem = SUFFIX.sub("", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if stem in names), None)


def _refuse_hidden_splits(top: Path, folders: list[Path]) -> None:
    """Raises: DataError if all folders hold folders of the same names: those are the classes, and these the splits."""
    first: list[str] = []
    for index, folder in enumerate(folders):
        names = [entry.name for entry in sub_folders(folder)]
        if len(names) < 2 or (index and names != first):
            return
        first = names
    if len(folders) > 1:
        raise DataError(
            f"{top}: each of its folders ({_listed(folder.name for folder in folders)}) holds the same folders "
            f"({_listed(first)}), so they look like splits, not classes; name them train, val and test"
        )


def refuse_single_class(top: Path, train: Path | None) -> None:
    """Refuse a folder with one class folder before its images are read; those below it may be the classes.

    Args:
        top: the folder of images, data.root.
        train: the folder of its training split, if it has splits.
    Raises: DataError.
    """
    classes = sub_folders(train or top)
    if len(classes) != 1:
        return
    (single,) = classes
    message = f"there is only one class, '{single.name}', and a classifier needs at least two"
    hint = "each class needs a folder of its own"
    if below := [folder.name for folder in sub_folders(single)]:
        remedy = f"move them up into {train}" if train else f"set data.root to {single}"
        hint = f"if its sub-folders are the classes ({_listed(below)}), {remedy}"
    raise DataError(f"{train or top}: {message}; {hint}")


def sub_folders(folder: Path) -> list[Path]:
    """The folders that can be classes or splits, sorted by name. Raises: DataError if a name is not valid text."""
    try:
        with os.scandir(folder) as entries:  # it knows folders without asking for each file's status
            folders = sorted(Path(entry.path) for entry in entries if entry.is_dir() and is_ours(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from None
    for entry in folders:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in entry.name):
            raise DataError(f"{str(entry)!r}: the name holds a control character or is not UTF-8; rename the folder")
    return folders


def is_ours(name: str) -> bool:
    """Whether a folder of this name may hold the user's images: it is not hidden, and not one of a file manager's."""
    return not name.startswith(".") and name.lower() not in NOT_OURS


def images_below(folder: Path, *, npy: bool = False) -> tuple[list[str], Counter[str]]:
    """The image files in a folder and below, sorted by path, and how many there are in formats that are not read.

    Returns: the paths; extension -> number of files.
    Raises: DataError if a folder cannot be read.
    """
    images: list[str] = []
    unread: Counter[str] = Counter()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror or error}") from None

    for path, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if is_ours(name)]
        for name in names:
            file = Path(path, name)
            if is_image(file, npy=npy):
                images.append(str(file))
            elif is_unread_image(file):
                unread[file.suffix.lower()] += 1
    return sorted(images), unread


def warn_of_unread(folder: Path, unread: Counter[str]) -> None:
    """One line on stderr about the image files that are left out, if there are any."""
    if not unread:
        return
    counts = _listed(f"{count:,} {extension}" for extension, count in sorted(unread.items()))
    how = "convert them to PNG"
    if any(extension in HEIF for extension in unread):
        how = f"pip install pillow-heif reads {' and '.join(HEIF)}; or {how}"
    number = unread.total()
    streams.warning(
        f"{folder}: {number:,} image file{'s' * (number > 1)} of formats that are not read "
        f"{'are' if number > 1 else 'is'} left out ({counts}); {how}"
    )


def _listed(names: Iterable[str]) -> str:
    each = list(names)
    return ", ".join(each[:SHOWN]) + (f" and {len(each) - SHOWN} more" if len(each) > SHOWN else "")
