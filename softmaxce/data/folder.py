"""The user's own images: a folder with one sub-folder per class, of any size and mode."""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from ..runtime.memory import total_memory
from ..runtime.process_group import local_world_size
from ..runtime.processors import processors
from ..waiting import Counting
from . import cache as decoded_images
from . import decode as decoding
from .class_selection import ClassIds, classes_of_model, select_classes
from .decode import Decode, FileAccessError, decoding_threads
from .folder_layout import images_below, refuse_single_class, split_of, splits_in, sub_folders, warn_of_unread
from .resizing import DEFAULT as DEFAULT_RESIZING
from .resizing import Resizing
from .splits import Dataset, InMemory, OnDisk, Reading, Split, split_by_group, split_by_name, stratified
from .unresized import SizeError, Unresized, first_size, none_decodable

SHOWN = 10  # files named in one message

_Decoded = tuple[NDArray[Any], dict[int, DataError]]


def image_folder(
    size: PositiveInt | list[PositiveInt] | Literal["auto"] | None = None,
    channels: PositiveInt = 3,
    test_fraction: Fraction = 0.2,
    skip_bad: bool = False,
    in_memory: bool | None = None,
    workers: NonNegativeInt | None = None,
    cache: bool = True,
    split_by: Literal["name", "shuffle"] = "name",
    fit: Fit = "crop",
    interpolation: Interpolation = "bilinear",
    cache_size: AtLeastOne | None = 2.0,
    decode: Decoding = "full",
    classes: Classes | None = None,
    depth: Depth = "uint8",
    icc: ColorProfiles = "ignore",
    *,
    root: str,
) -> Dataset:
    """Your own images: root/train/CLASS/*, root/test/CLASS/*, or root/CLASS/* to be split.

    Args:
        size: height and width in pixels, to which images are resized; null takes the images as they are, which must
            then be of one size. auto is the size that a network of timm or torchvision was pretrained with, and its
            interpolation, where the config names none.
        channels: 3 for color, 1 for gray, 4 for color and alpha: photographs are converted. Any other number is for
            TIFF and .npy files, which must have as many: [height, width, channels].
        test_fraction: of each class of a single folder, for the test split; the same images whatever the seed.
        skip_bad: leave out, with a warning, what cannot be decoded; else it is an error. Where images do not fit in
            memory, it takes a first pass over all files.
        in_memory: keep all images decoded in memory; null decides by the memory that the process may use.
        workers: processes that decode images that do not fit in memory; null for one per thread of the training.
        cache: keep decoded images in the user's cache folder, and use them while the files are unchanged.
        split_by: name, by a hash of CLASS/FILE: images keep their side (test, validation, training) when others are
            added or removed, but for one of the class at most; a class of one image stays in training. shuffle, as
            versions without this key did and their runs still do: one image more, and any image may change sides.
        fit: crop resizes by the shorter side and cuts out the center, pad by the longer side and adds black on both
            sides, stretch does not keep the proportions. Predictions do the same.
        interpolation: bilinear or bicubic, both antialiased, or nearest.
        cache_size: for an augmentation that cuts from whole images, these are shrunk to so many times `size`, by the
            number of pixels: 2 is 4 times as many. null takes the original pixels, read from the files in each epoch.
        decode: full; or reduced, which decodes a JPEG file at 1/2, 1/4 or 1/8 of its size, the least that is twice
            `size`: several times faster for large photographs, with slightly other pixels. Predictions do the same.
        classes: the class folders to read, in the order of their ids; or {pet: [cat, dog], car: car}, which merges
            some. Others are left out. null reads all, sorted by name.
        depth: uint8; uint16 or float32, for PNG, TIFF and .npy files with more than 8 bits. Means and deviations are of
            whole numbers divided by 255 or 65535, and of floating-point numbers as they are.
        icc: srgb converts images with another color profile to sRGB, as programs that show them do; ignore takes the
            numbers as they are. Predictions do the same.
        root: the folder. train may be called training, test testing, and val, valid, validation or dev is the
            validation split; in any case, also with set or _set after it.
    Raises: DataError without images, with only one class, without a class in training, and if a file is damaged.
    """
    top = Path(root)
    if not top.is_dir():
        raise DataError(f"data.root: there is no folder '{root}'")
    parts = splits_in(top)
    refuse_single_class(top, parts.get("train"))
    selected = select_classes([folder.name for folder in sub_folders(parts.get("train", top))], classes)
    listing = Listing(
        selected,
        size,
        channels,
        skip_bad,
        in_memory,
        workers,
        cache,
        split_by == "name",
        Resizing(fit, interpolation, decode, depth, icc),
        cache_size,
    )
    if not parts:
        train, shape = listing.read(top, None)
        if not test_fraction:
            return Dataset(train, None, selected.names, unreadable=listing.unreadable)
        rest, tested = train_and_test(train, test_fraction)
        return Dataset(train.take(rest), train.take(tested), selected.names, unreadable=listing.unreadable)
    train, shape = listing.read(parts["train"], None)
    others = {name: listing.read(folder, shape)[0] for name, folder in parts.items() if name != "train"}
    return Dataset(train, others.get("test"), selected.names, others.get("validation"), listing.unreadable)


def train_and_test(whole: Split, fraction: float) -> tuple[Tensor, Tensor]:
    """The indices of a single folder's training and test images. Raises: DataError if a part would be empty."""
    try:
        if whole.groups is not None:
            return split_by_group(whole.groups, whole.labels, fraction, "test")
        if whole.names is not None:
            return split_by_name(whole.names, whole.labels, fraction, "test")
        count = max(1, round(fraction * len(whole)))
        return stratified(whole.labels, count, torch.Generator().manual_seed(0))
    except ValueError as error:
        raise DataError(
            f"data.test_fraction: {error}; add images, or set it to 0 to train without a test split"
        ) from None


def read_folder(
    root: str,
    classes: tuple[str, ...],
    shape: tuple[int, int, int],
    resizing: Resizing,
    requested: Classes | None = None,
) -> Split:
    """Another folder's images, as a model trained on `classes` and `shape` (C, H, W), resized so, takes them.

    The folder holds class folders, or a `test` folder that does; classes it lacks are fine. `requested` is the run's
    key `classes`.

    Raises: DataError if a class folder is not among `classes`, or a file cannot be decoded.
    """
    top = Path(root)
    if not top.is_dir():
        raise DataError(f"there is no folder '{root}'")
    tests = [folder for folder in sub_folders(top) if split_of(folder.name) == "test" and folder.name not in classes]
    top = tests[0] if tests else top
    channels, height, width = shape
    known = classes_of_model(classes, requested, (folder.name for folder in sub_folders(top)), top)
    listing = Listing(known, [height, width], channels, False, None, 2, resizing=resizing)
    return listing.read(top, shape)[0]


@dataclass(frozen=True)
class Listing:
    """Reads folders of class folders, or listed files. Those that are left out are added to `unreadable`."""

    classes: ClassIds
    size: int | list[int] | Literal["auto"] | None
    channels: int
    skip_bad: bool
    in_memory: bool | None
    workers: int | None
    cache: bool = False
    named: bool = False
    resizing: Resizing = DEFAULT_RESIZING
    cache_size: float | None = None
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return np.dtype(self.resizing.depth)

    def read(self, folder: Path, shape: tuple[int, int, int] | None) -> tuple[Split, tuple[int, int, int]]:
        """A folder's split, and the (C, H, W) of its images; `shape` is the required one, if there is one.

        If `named`, the images' names are their paths below the folder, CLASS/FILE, with slashes.
        """
        files, labels = self._files(folder)
        names = tuple(Path(file).relative_to(folder).as_posix() for file in files) if self.named else None
        return self.read_files(files, labels, names, shape)

    def read_files(
        self,
        files: list[str],
        labels: list[int],
        names: tuple[str, ...] | None,
        shape: tuple[int, int, int] | None,
        groups: tuple[str, ...] | None = None,
    ) -> tuple[Split, tuple[int, int, int]]:
        """The split of the files, and the (C, H, W) of its images; `shape` as in `read`."""
        if shape is not None:
            size: tuple[int, int] | None = shape[1:]
        elif isinstance(self.size, int):
            size = (self.size, self.size)
        elif isinstance(self.size, str):
            raise DataError("data.size: auto is the size of a config's model; give a number")
        elif self.size is not None:
            if len(self.size) != 2:
                raise DataError(f"data.size must be one number or [height, width], got {self.size}")
            size = (self.size[0], self.size[1])
        else:
            size = None
        reference = "each of the training images"
        if size is None:
            reference, size = first_size(files, Decode(self.channels, None, self.resizing))
        shape = (self.channels, *size)
        most = None if self.cache_size is None else round(self.cache_size**2 * size[0] * size[1])
        decode = (
            Decode(self.channels, size, self.resizing, most)
            if self.size is not None
            else Unresized(self.channels, None, self.resizing, shape=shape, reference=reference)
        )
        in_memory = self.in_memory
        if in_memory is None:
            in_memory = len(files) * math.prod(shape) * self.dtype.itemsize <= memory_for_images()
        if in_memory:
            return self._in_memory(files, labels, names, decode, shape, groups), shape
        split = OnDisk(tuple(files), torch.tensor(labels), shape, decode, self.workers, names, groups)
        return self._decodable(split) if self.skip_bad else split, shape

    def _files(self, folder: Path) -> tuple[list[str], list[int]]:
        class_folders = sub_folders(folder)
        if not class_folders:
            raise DataError(f"{folder}: holds no class folders; put each class's images in a folder of its name")
        ids = self.classes.ids
        if unknown := [entry.name for entry in class_folders if entry.name not in ids]:
            raise DataError(
                f"{folder}: the classes {', '.join(unknown[:SHOWN])} are not among those trained on "
                f"({', '.join(list(ids)[:SHOWN])})"
            )
        files: list[str] = []
        labels: list[int] = []
        left_out: Counter[str] = Counter()
        for entry in class_folders:
            label = ids[entry.name]
            if label is None:
                continue
            images, unread = images_below(entry, npy=not Decode(self.channels, None, self.resizing).is_plain)
            left_out += unread
            if not images:
                warn_of_unread(folder, left_out)
                what = f"{entry}: holds no images; each sub-folder of {folder} is a class, and needs some"
                hint = "; .npy files are read where data.channels or data.depth is another than gray or color of 8 bits"
                raise DataError(what + hint * any(images_below(entry, npy=True)[0]))
            files += images
            labels += [label] * len(images)
        warn_of_unread(folder, left_out)
        if not files:
            raise DataError(f"{folder}: holds none of the classes that data.classes names")
        return files, labels

    def _in_memory(
        self,
        files: list[str],
        labels: list[int],
        names: tuple[str, ...] | None,
        decode: Decode,
        shape: tuple[int, int, int],
        groups: tuple[str, ...] | None = None,
    ) -> InMemory:
        """The images of the files that can be decoded; the others are reported."""
        images, bad = self._cached(files, decode, shape) if self.cache else self._decoded(files, decode, shape)
        whole = InMemory(
            torch.from_numpy(images),
            torch.tensor(labels),
            names,
            tuple(files),
            groups,
            self._reading(decode, files, shape),
        )
        if not bad:
            return whole
        self._report(bad, files)
        return whole.take(torch.tensor([index for index in range(len(files)) if index not in bad]))

    def _reading(self, decode: Decode, files: Sequence[str], shape: tuple[int, int, int]) -> Reading:
        """How the files were read, and whether their whole images fit in memory too."""
        most = len(files) * self.channels * self.dtype.itemsize * ((decode.whole_pixels or 0) + shape[1] * shape[2])
        fits = decode.whole_pixels is not None and (self.in_memory or most <= memory_for_images())
        return Reading(decode, self.workers, self.cache, fits)

    def _cached(self, files: list[str], decode: Decode, shape: tuple[int, int, int]) -> _Decoded:
        """As _decoded, from the cache if the files are unchanged since.

        Files that cannot be decoded are cached with the reason, so that one of them does not make every command decode
        all others again. Nothing is cached if one could not be opened or read, which another attempt may change.
        """
        decoding_options = (decode.size, decode.resizing, shape, decoding.program(), decoding.formats())
        key = decoded_images.key_of(files, *decoding_options)
        if key is None or local_world_size() == 1:
            return self._read_or_decode(files, decode, shape, key, decoding_options)
        with decoded_images.one_process(key):  # of those that train together
            return self._read_or_decode(files, decode, shape, key, decoding_options)

    def _read_or_decode(
        self,
        files: list[str],
        decode: Decode,
        shape: tuple[int, int, int],
        key: str | None,
        decoding_options: tuple[object, ...],
    ) -> _Decoded:
        cached = decoded_images.read(key, (len(files), *shape), self.dtype.name) if key is not None else None
        if cached is not None:
            images, reasons = cached
            return images, {index: DataError(f"{files[index]}: {reason}") for index, reason in reasons.items()}
        images, bad = self._decoded(files, decode, shape)
        unchanged = key is not None and key == decoded_images.key_of(files, *decoding_options)
        if key is not None and unchanged and not any(isinstance(error, FileAccessError) for error in bad.values()):
            reasons = {index: error.lines[0].removeprefix(f"{files[index]}: ") for index, error in bad.items()}
            try:
                decoded_images.write(key, images, reasons=reasons)
            except OSError as error:
                streams.warning(decoded_images.cannot_be_written(error))
        return images, bad

    def _decoded(self, files: list[str], decode: Decode, shape: tuple[int, int, int]) -> _Decoded:
        """Every file decoded into one array, [N, C, H, W], and the errors by index; their images are zeros."""
        images = np.empty((len(files), *shape), self.dtype)
        bad: dict[int, DataError] = {}

        def fill(chunk: range) -> None:
            for index in chunk:
                try:
                    images[index] = decode.as_decoded(files[index])
                except SizeError:
                    raise
                except DataError as error:
                    images[index], bad[index] = 0, error.with_traceback(None)
                finally:
                    counting.advance()

        threads = decoding_threads(files[0])
        size = max(1, min(256, len(files) // (4 * threads)))  # some per thread, so that all end at about the same time
        chunks = [range(start, min(start + size, len(files))) for start in range(0, len(files), size)]
        counting = Counting("decoding images", len(files))
        with counting, ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(fill, chunk) for chunk in chunks]:
                future.result()
        return images, bad

    def _decodable(self, split: OnDisk) -> OnDisk:
        """The images that can be decoded, found by decoding each once."""
        bad: dict[int, DataError] = {}

        def attempt(index: int) -> None:
            try:
                split.decode(split.files[index])
            except SizeError:
                raise
            except DataError as error:
                bad[index] = error.with_traceback(None)
            counting.advance()

        with Counting("checking images", len(split)) as counting, ThreadPoolExecutor(processors()) as pool:
            list(pool.map(attempt, range(len(split))))
        if not bad:
            return split
        self._report(bad, split.files)
        return split.take(torch.tensor([index for index in range(len(split)) if index not in bad]))

    def _report(self, bad: dict[int, DataError], files: Sequence[str]) -> None:
        """List the files that cannot be decoded. Raises: DataError unless they are skipped and others are left."""
        messages = [bad[index].lines[0] for index in sorted(bad)]
        shown = [f"  {message}" for message in messages[:SHOWN]]
        shown += [f"  ... and {len(messages) - SHOWN} more"] if len(messages) > SHOWN else []
        number = f"{len(messages)} of {len(files)} files cannot be decoded"
        if not self.skip_bad:
            raise DataError(f"{number}; repair or remove them, or set data.skip_bad: true to leave them out:", shown)
        if len(bad) == len(files):
            raise none_decodable(files, messages[0])
        self.unreadable.update(
            {files[index]: error.lines[0].removeprefix(f"{files[index]}: ") for index, error in sorted(bad.items())}
        )
        for line in (f"warning: {number} and are left out:", *shown):
            streams.line(line, err=True)


def memory_for_images() -> int:
    """Bytes that decoded images may take: a quarter of the machine's memory, 8 GiB at most, shared by its processes."""
    return min((total_memory() or 8 << 30) // 4, 8 << 30) // local_world_size()
