"""The images that a run does not train on: a fold as its test split, the validation split; and data.train_limit."""

from dataclasses import replace

import torch
from torch import Tensor

from .. import streams
from ..config.keys import NEEDS_VALIDATION, Config, Data
from ..errors import ConfigError, Problem
from .folds import assign_folds
from .splits import Dataset, Side, Split, split_by_group, split_by_name, stratified


def hold_out(source: Dataset, config: Config) -> Dataset:
    """The data set with the config's fold and its validation split held out, and the rest cut to train_limit.

    The fold becomes the test split; data.validation holds out a part of the other folds. A data set with a validation
    split of its own keeps that. Validation split and limit depend on the seed and on the images' names, or on their
    order if they have none. Neither leaves a class without a training image. Raises: ConfigError.
    """
    source = _hold_out_fold(source, config.data)
    generator = torch.Generator().manual_seed(config.seed)
    by_shuffle = config.source.arguments.get("split_by") == "shuffle"  # the same split as in earlier versions
    train, validation = source.train, source.validation
    requested = config.data.validation
    if requested is not None and validation is not None and not by_shuffle:
        streams.line(f"the data set's own validation split is used, not data.validation: {requested}", err=True)
    elif requested is not None:
        is_count = isinstance(requested, int)
        size = requested if is_count or train.names is not None else max(1, round(requested * len(train)))
        most = len(train) - len(train.labels.unique())
        if not by_shuffle and isinstance(size, int) and most < size < len(train):
            message = f"{size} of {len(train)} images would leave a class without training images; {most} is the most"
            raise ConfigError([Problem("data.validation", message)])
        keep: tuple[Side, ...] = ("rest", "selected") if train.names is not None else ("rest",)
        rest, selected = _cut(train, size, generator, config.seed, "data.validation", () if by_shuffle else keep)
        train, validation = train.take(rest), train.take(selected)
    limit = config.data.train_limit
    if limit is not None and limit < len(train):
        kept: tuple[Side, ...] = () if by_shuffle else ("selected",)
        _, selected = _cut(train, limit, generator, config.seed, "data.train_limit", kept)
        train = train.take(selected)
    if config.early_stopping is not None and validation is None:
        raise ConfigError([Problem("", NEEDS_VALIDATION)])
    return replace(source, train=train, validation=validation)


def folds_of(source: Dataset, data: Data) -> Tensor:
    """The fold of each training image of a data set, [N] int64, counted from 1. Raises: ConfigError."""
    assert data.folds is not None
    key, labels = "data.folds", source.train.labels
    try:
        folds = assign_folds(source.train, data.folds) + 1
    except ValueError as error:
        raise ConfigError([Problem(key, str(error))]) from None
    for label in labels.unique().tolist():
        of_class = folds[labels == label]
        if (of_class == of_class[0]).all():
            what = "group" if source.train.groups is not None and len(of_class) > 1 else "image"
            message = (
                f"all images of the class '{source.classes[label]}' are in fold {of_class[0]}, whose run would train "
                f"without it; a class needs two {what}s or more"
            )
            raise ConfigError([Problem(key, message)])
    return folds


def _hold_out_fold(source: Dataset, data: Data) -> Dataset:
    """The data set with fold data.fold of its training images as its test split; unchanged without data.folds."""
    if data.folds is None or data.fold is None:
        return source
    held_out = folds_of(source, data).eq(data.fold)
    if source.test is not None:
        streams.line(
            f"the data set's own test split of {len(source.test):,} images is not used: the test split is "
            f"fold {data.fold} of {data.folds} of the training images",
            err=True,
        )
    rest, selected = (part.nonzero().flatten() for part in (~held_out, held_out))
    return replace(source, train=source.train.take(rest), test=source.train.take(selected))


def _cut(
    split: Split, size: float, generator: torch.Generator, seed: int, key: str, keep: tuple[Side, ...]
) -> tuple[Tensor, Tensor]:
    """The indices of a split's two parts; `size` is a count, or, for images with names, a fraction."""
    try:
        if split.groups is not None and key == "data.validation":
            return split_by_group(split.groups, split.labels, size, f"{key} {seed}")
        if split.names is not None:
            return split_by_name(split.names, split.labels, size, f"{key} {seed}", keep)
        return stratified(split.labels, int(size), generator, keep)
    except ValueError as error:
        raise ConfigError([Problem(key, str(error))]) from None
