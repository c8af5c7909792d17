"""The user's own images with labels from a table: CSV, TSV, JSON Lines or Parquet."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import streams
from ..argument_types import (
    AtLeastOne,
    Classes,
    ColorProfiles,
    Decoding,
    Depth,
    Fit,
    Fraction,
    Interpolation,
    NonNegativeInt,
    PositiveInt,
)
from ..errors import DataError
from ..files import expanded
from .class_selection import classes_of_model, select_classes
from .decode import Decode, is_image
from .folder import Listing, train_and_test
from .folder_layout import SPLIT_NAMES, split_of
from .resizing import Resizing
from .splits import Dataset, Split
from .table import Columns, Row, read_table

SHOWN = 10  # classes named in one message


def image_list(
    path: str | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    size: PositiveInt | list[PositiveInt] | Literal["auto"] | None = None,
    channels: PositiveInt = 3,
    test_fraction: Fraction = 0.2,
    skip_bad: bool = False,
    in_memory: bool | None = None,
    workers: NonNegativeInt | None = None,
    cache: bool = True,
    fit: Fit = "crop",
    interpolation: Interpolation = "bilinear",
    cache_size: AtLeastOne | None = 2.0,
    decode: Decoding = "full",
    classes: Classes | None = None,
    depth: Depth = "uint8",
    icc: ColorProfiles = "ignore",
    *,
    file: str,
    root: str,
) -> Dataset:
    """Your own images with labels from a table: CSV, TSV, JSON Lines or Parquet, one row per image.

    Args:
        path: the column with the images' files, absolute or relative to data.root; the suffix may be missing. null
            takes the column called path, file, filename or image.
        label: the column with the class names; null takes the column called label or class.
        split: the column with train, val or test, or other names that image_folder accepts; null makes a test split
            of test_fraction.
        group: the column with the patient or video of an image: all images of a group stay on one side of every
            split, that of data.validation too.
        size: as of image_folder, like channels, skip_bad, in_memory, workers and cache.
        channels: 3 for color, 1 for gray, 4 for color and alpha, or another number, as of image_folder.
        test_fraction: of each class, for the test split, where split is null; by a hash of the path or group.
        skip_bad: leave out, with a warning, what cannot be decoded.
        in_memory: keep all images decoded in memory; null decides by the memory that the process may use.
        workers: processes that decode images that do not fit in memory; null for one per thread of the training.
        cache: keep decoded images in the user's cache folder.
        fit: how images get the size: crop, pad or stretch, as of image_folder.
        interpolation: bilinear, bicubic or nearest.
        cache_size: how large whole images are kept, as of image_folder.
        decode: full or reduced, as of image_folder.
        classes: the labels to read, in the order of their ids, and which are merged, as of image_folder.
        depth: of the pixels: uint8, uint16 or float32, as of image_folder.
        icc: ignore color profiles, or srgb, as of image_folder.
        file: the table, relative to data.root; without data.root, that is the table's own folder.
        root: the folder.
    Raises: DataError if the table or an image is missing or cannot be used.
    """
    table = _existing_table(file, root)
    resizing = Resizing(fit, interpolation, decode, depth, icc)
    npy = not Decode(channels, None, resizing).is_plain
    images = _listed_images(table, [Path(root)], Columns(path, label, split, group), npy=npy)
    parts: dict[str, list[_Image]] = {"train": images}
    if split is not None:
        parts = {name: [image for image in images if image.split == name] for name in SPLIT_NAMES}
        if not parts["train"]:
            raise DataError(f"{table}: no row of column '{split}' is train")
        _refuse_divided_groups(images)
    labels = sorted({image.label for image in parts["train"]})
    if len(labels) < 2:
        raise DataError(
            f"{table}: there is only one class, '{labels[0]}', in the training images; a classifier needs at least two"
        )
    selected = select_classes(labels, classes)
    parts = {name: [image for image in part if selected.uses(image.label)] for name, part in parts.items()}
    listing = Listing(
        selected,
        size,
        channels,
        skip_bad,
        in_memory,
        workers,
        cache,
        resizing=resizing,
        cache_size=cache_size,
    )
    train, shape = _read(listing, parts.pop("train"), None)
    others = {name: _read(listing, part, shape)[0] for name, part in parts.items() if part}
    if split is not None or not test_fraction:
        return Dataset(train, others.get("test"), selected.names, others.get("validation"), listing.unreadable)
    rest, tested = train_and_test(train, test_fraction)
    return Dataset(train.take(rest), train.take(tested), selected.names, unreadable=listing.unreadable)


def _existing_table(file: str, root: str) -> Path:
    table = Path(root, expanded(file))
    if not os.path.lexists(table):
        hint = ""
        if Path(file).is_file():
            hint = f"; it is relative to data.root: write {os.path.relpath(file, root)}"
        raise DataError(f"data.file: there is no table '{table}'{hint}")
    return table


def read_list(
    table: Path,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    resizing: Resizing,
    columns: Columns,
    root: Path,
    requested: Classes | None = None,
) -> Split:
    """Another table's images, as a model trained on `classes` and `shape` (C, H, W), resized so, takes them.

    Its paths are relative to its folder or, if the first image is not there, to `root`. With a column of splits, these
    are the rows of the test split, if there are any. `requested` is the run's key `classes`. Raises: DataError.
    """
    npy = not Decode(shape[0], None, resizing).is_plain
    images = _listed_images(table, [table.parent, root], columns, npy=npy)
    images = [image for image in images if image.split == "test"] or images
    known = classes_of_model(classes, requested, {image.label for image in images}, table)
    images = [image for image in images if known.uses(image.label)]
    if not images:
        raise DataError(f"{table}: holds none of the classes that data.classes names")
    listing = Listing(known, list(shape[1:]), shape[0], False, None, 2, resizing=resizing)
    return _read(listing, images, shape)[0]


@dataclass(frozen=True)
class _Image:
    """An image of a table: its row's location, its file, its name for the splits, and the row's cells."""

    location: str
    file: str
    name: str
    label: str
    split: str
    group: str


def _read(
    listing: Listing, images: list[_Image], shape: tuple[int, int, int] | None
) -> tuple[Split, tuple[int, int, int]]:
    """The split of the images, sorted by class and file as those of folders. Raises: DataError of an unknown class."""
    images = sorted(images, key=lambda image: (image.label, image.file))
    labels: list[int] = []
    for image in images:
        label = listing.classes.ids.get(image.label)
        if label is None:
            known = ", ".join(list(listing.classes.ids)[:SHOWN])
            raise DataError(f"{image.location}: the class '{image.label}' is not among those trained on ({known})")
        labels.append(label)
    groups = tuple(image.group for image in images) if images[0].group else None
    names = tuple(image.name for image in images)
    return listing.read_files([image.file for image in images], labels, names, shape, groups)


def _listed_images(table: Path, roots: Sequence[Path], columns: Columns, *, npy: bool) -> list[_Image]:
    """The images of a table, each once; `roots` are tried with the first row. Raises: DataError.

    `npy`: a suffix that is missing may be .npy.
    """
    rows = read_table(table, columns)
    find = _Finder(npy=npy)
    roots = [Path(os.path.normpath(each)) for each in roots]
    root = next((each for each in roots if find(rows[0], each) is not None), roots[0])
    images: dict[str, _Image] = {}
    repeated = 0
    missing: list[str] = []
    for row in rows:
        file = find(row, root)
        if file is None:
            missing.append(f"{row.location}: there is no file '{Path(root, row.path)}'")
            continue
        is_inside = not Path(row.path).is_absolute() or file.is_relative_to(root)
        name = Path(os.path.relpath(file, root) if is_inside else file).as_posix()  # the same wherever the root is
        image = _Image(row.location, str(file), name, row.label, _split(row), row.group)
        first = images.setdefault(image.file, image)
        if first is not image:
            repeated += 1
            _refuse_contradiction(first, image)
    if missing:
        more = f"; nor those of {len(missing) - 1:,} more rows" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}{more}")
    if repeated:
        streams.warning(f"{table}: {repeated:,} rows repeat an earlier row's image and are left out")
    return list(images.values())


def _split(row: Row) -> str:
    if not row.split:
        return ""
    split = split_of(row.split)
    if split is None:
        raise DataError(f"{row.location}: the split '{row.split}' is unknown; write train, val or test")
    return split


def _refuse_contradiction(first: _Image, second: _Image) -> None:
    for what in ("label", "split", "group"):
        before, now = getattr(first, what), getattr(second, what)
        if before != now:
            row = first.location.rpartition(":")[2]
            raise DataError(f"{second.location}: '{second.name}' has the {what} '{now}', and in row {row} '{before}'")


def _refuse_divided_groups(images: list[_Image]) -> None:
    first: dict[str, _Image] = {}
    for image in images:
        other = first.setdefault(image.group, image)
        if image.group and other.split != image.split:
            row = other.location.rpartition(":")[2]
            raise DataError(
                f"{image.location}: the group '{image.group}' is in the {image.split} split, and in row {row} in the "
                f"{other.split} split; all images of a group belong to one"
            )


class _Finder:
    """Finds the files of rows, whose suffixes may be missing; lists each folder once."""

    def __init__(self, *, npy: bool) -> None:
        self.npy = npy
        self.stems: dict[Path, dict[str, list[Path]]] = {}

    def __call__(self, row: Row, root: Path) -> Path | None:
        """The file of a row; None if there is none. Raises: DataError if there are several, or it is a folder."""
        for path in dict.fromkeys((row.path, row.path.replace("\\", "/"))):  # tables made on Windows
            file = Path(os.path.normpath(Path(root, path)))  # one file has one name
            if os.path.isfile(file):  # noqa: PTH113 - of many thousand files
                return file
            matches = [each for each in self._folder(file.parent).get(file.name, []) if is_image(each, npy=self.npy)]
            if len(matches) > 1:
                names = " or ".join(each.name for each in sorted(matches))
                raise DataError(f"{row.location}: '{row.path}' may be {names}; write the suffix")
            if matches:
                return matches[0]
        return None

    def _folder(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self.stems:
            stems: dict[str, list[Path]] = {}
            try:
                for name in os.listdir(folder):  # noqa: PTH208 - of many thousand files
                    stems.setdefault(Path(name).stem, []).append(folder / name)
            except (OSError, ValueError):  # no such folder: nor are its files
                pass
            self.stems[folder] = stems
        return self.stems[folder]
