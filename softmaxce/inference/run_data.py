"""The data set of a trained model, also of one that was exported: its splits, checked against those of the training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import streams
from ..build import FEWER_IMAGES, load_source
from ..config.keys import Config
from ..config.registry import OWN_IMAGES
from ..data.fingerprint import fingerprints
from ..data.folder import read_folder
from ..data.held_out import hold_out
from ..data.image_list import read_list
from ..data.resizing import Resizing
from ..data.shards import read_shard
from ..data.splits import Dataset, Split
from ..data.table import Columns
from ..errors import DataError, within_memory
from ..runs.folder import SPLITS
from ..runs.provenance import check_recorded_root
from ..runs.resume import recorded_images


def read_dataset(config: Config, classes: tuple[str, ...], file: Path, record: Mapping[str, Any]) -> Dataset:
    """The splits that a run used; their images are not compared with the training's.

    Args:
        config: of the run.
        classes: that the model was trained on.
        file: the model's.
        record: its run.json, or what is known of it; may be empty.
    Raises: DataError if the data has other classes than the model.
    """
    with within_memory("reading the data set", FEWER_IMAGES):
        dataset = hold_out(load_source(config), config)
    if config.elsewhere:
        message = check_recorded_root(file.parent, config, record, fingerprints(dataset))
        if message:
            streams.line(message, err=True)
    if dataset.classes != classes:
        raise DataError(f"{file}: the data at {config.root} has other classes than this model was trained on")
    return dataset


def read_other(
    path: Path, classes: tuple[str, ...], shape: tuple[int, int, int], resizing: Resizing, config: Config
) -> Split:
    """Other images than the run's, in the shape (C, H, W) that its model takes.

    Args:
        path: a folder with one sub-folder per class; a shard; or a table, with the columns of the run's own or
            the usual ones.
        classes: that the model was trained on.
        shape: of its images.
        resizing: how others are brought to it.
        config: of the run.
    Raises: DataError.
    """
    requested = config.source.arguments.get("classes") if config.source.name in OWN_IMAGES else None
    if not path.is_file():
        return read_folder(str(path), classes, shape, resizing, requested)
    if path.suffix == ".tar":
        return read_shard(path, classes, shape, resizing, requested)
    arguments = config.source.arguments if config.source.name == "image_list" else {}
    columns = Columns(arguments.get("path"), arguments.get("label"), arguments.get("split"))
    return read_list(path, classes, shape, resizing, columns, config.root, requested)


def choose_split(dataset: Dataset, name: str) -> Split:
    """The `train`, `validation` or `test` split. Raises: DataError if there is no such split."""
    split: Split | None = getattr(dataset, name) if name in SPLITS else None
    if split is None:
        present = [other for other in SPLITS if getattr(dataset, other) is not None]
        raise DataError(f"this run has no {name} split; it has {' and '.join(present)}")
    return split


def default_split(dataset: Dataset, record: Mapping[str, Any], *, allow_changed_data: bool) -> str:
    """The first split that the run has; one that it had when it was trained and that is gone is an error later on."""
    recorded = {} if allow_changed_data else recorded_images(record)
    splits = ("test", "validation", "train")
    return next(name for name in splits if getattr(dataset, name) is not None or name in recorded)


def check_shape(split: Split, shape: tuple[int, int, int]) -> None:
    """Raises: DataError unless a split's images have the shape (C, H, W) that a model takes."""
    if split.shape != shape:
        raise DataError(f"the images are {list(split.shape)} (channels, height, width); this model takes {list(shape)}")
