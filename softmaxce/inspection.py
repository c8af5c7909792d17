"""A config's data set before anything is trained: counts, the files' sizes and modes, statistics, augmented samples."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .argument_types import Depth
from .build import load_source, preprocessing_for, training_batches
from .config.automatic import AUTO
from .config.keys import Config
from .config.registry import DATASETS
from .data.decode import DAMAGED, header
from .data.duplicates import Duplicates, find_duplicates
from .data.held_out import hold_out
from .data.pictures import as_picture
from .data.preprocessing import mean_and_std, resizing_of
from .data.progressive_resizing import SizeOfEpochs, sizes_by_epoch
from .data.splits import Dataset, Split
from .errors import DataError, in_one_line
from .runs.folder import SPLITS
from .runtime.processors import processors
from .training.automatic_batch_size import with_number
from .waiting import Counting


@dataclass(frozen=True)
class Files:
    """What the headers of the image files say.

    Attributes:
        smallest, median, largest: (width, height) in pixels, by the number of pixels.
        modes: Pillow's names of how pixels are stored, with the number of files of each; of files that Pillow does not
            read, the number and type of their channels.
        formats: as modes.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    modes: dict[str, int]
    formats: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """What a config's data set consists of.

    Attributes:
        name: of the data set, as the config writes it.
        shape: (C, H, W), to which the images are brought.
        classes: K names.
        images: split -> [K], how many images each class has in it.
        mean, std: of the training images' pixels in [0, 1], or of floating-point ones as they are, per channel.
        files: None of a data set without image files.
        unreadable: the files that cannot be decoded, with the reason; training would end at the first of them, or with
            data.skip_bad leave them out. They are in no other number here.
        duplicates: the images that the data set has several times.
        sizes: of the training images by epoch, where they grow (progressive_resizing).
        depth: the type of the pixels.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    images: dict[str, list[int]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: Files | None
    unreadable: dict[str, str] = field(default_factory=dict)
    duplicates: Duplicates = field(default_factory=Duplicates)
    sizes: Sequence[SizeOfEpochs] = ()
    depth: Depth = "uint8"

    def to_dict(self) -> dict[str, Any]:
        """As `softmaxce data inspect --json` prints it."""
        return asdict(self)


def read(config: Config) -> Dataset:
    """The data set, with the config's validation split held out and without files that cannot be decoded.

    Raises: DataError, ConfigError.
    """
    if config.source.name in DATASETS and "skip_bad" in config.source.arguments:
        arguments = {**config.source.arguments, "skip_bad": True}
        config = replace(config, source=replace(config.source, arguments=arguments))
    return hold_out(load_source(config), config)


def inspect(config: Config, source: Dataset) -> Inspection:
    """Count, measure and compare; the headers of all files are read. Raises: DataError if one cannot be."""
    splits: dict[str, Split] = {name: part for name in SPLITS if (part := getattr(source, name)) is not None}
    mean, std = mean_and_std(source.train)
    files = [file for split in splits.values() for file in split.files or ()]
    return Inspection(
        config.source.name,
        source.train.shape,
        source.classes,
        {name: split.labels.bincount(minlength=len(source.classes)).tolist() for name, split in splits.items()},
        mean,
        std,
        _inspect_files(files) if files else None,
        {str(file): reason for file, reason in source.unreadable.items()},
        find_duplicates(splits, source.classes),
        sizes if len(sizes := sizes_by_epoch(config, source.train.shape)) > 1 else (),
        resizing_of(source.train).depth,
    )


def _inspect_files(files: Sequence[str]) -> Files:
    def read_header(file: str) -> tuple[tuple[int, int], str, str]:
        try:
            return header(file)
        except DAMAGED as error:  # a file that was not decoded yet, as images are not kept in memory
            raise DataError(f"{file}: cannot be read: {in_one_line(error)}") from None
        finally:
            counting.advance()

    with Counting("reading the headers", len(files)) as counting, ThreadPoolExecutor(processors()) as pool:
        headers = list(pool.map(read_header, files))
    sizes = sorted((size for size, _, _ in headers), key=lambda size: (size[0] * size[1], size))
    return Files(
        sizes[0],
        sizes[len(sizes) // 2],
        sizes[-1],
        dict(Counter(mode for _, mode, _ in headers).most_common()),
        dict(Counter(form for _, _, form in headers).most_common()),
    )


def samples(config: Config, source: Dataset, count: int) -> tuple[Tensor, list[str]]:
    """The first images of the first epoch as training sees them, augmented, but neither normalized nor mixed.

    Args:
        config: what they are augmented by.
        source: as `read` returns it.
        count: of images, at most; there may be fewer in the data set.
    Returns: [n, H, W, 1 or 3] float in [0, 1], and the name of each image's class.
    Raises: ConfigError if an augmentation fails.
    """
    torch.manual_seed(config.seed)
    preprocessing = preprocessing_for(config, source.train)
    if config.data.batch_size == AUTO:  # these pictures do not depend on what fits into memory
        config = with_number(config, count, "")
    batches = training_batches(config, source.train, preprocessing, torch.device("cpu"))
    batches.try_augmentations()
    images: list[Tensor] = []
    labels: list[int] = []
    for batch, ids in batches.epoch(1):
        pixels = batch * batches.std + batches.mean
        if preprocessing.depth == "float32":
            pixels = torch.stack([as_picture(image) for image in pixels]).float() / 255
        images.append(pixels[:, : 3 if pixels.shape[1] >= 3 else 1].clamp(0, 1))
        labels += ids.tolist()
        if len(labels) >= count:
            break
    return torch.cat(images)[:count].permute(0, 2, 3, 1), [source.classes[label] for label in labels[:count]]
