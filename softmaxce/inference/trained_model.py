"""A trained model from its checkpoint, and the splits that it was trained and evaluated on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..build import FEWER_IMAGES, build_loss, build_model, hold_out, load_source
from ..config.components import build
from ..config.keys import Config, refuse_users_code
from ..config.reader import as_recorded, from_dict
from ..data.batches import Batches
from ..data.preprocessing import Preprocessing
from ..data.splits import Dataset, Split
from ..errors import DataError, within_memory
from ..losses.interface import Loss
from ..runs.checkpoint import Checkpoint, load_weights
from ..runs.validation import check_weights
from ..runtime.allocator import keep_freed_memory
from ..runtime.device import choose_device, choose_precision, share_processors
from ..runtime.random_state import set_deterministic
from .tta import with_views


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, asked as the config's `tta` says, and what it takes to evaluate it; `file` is its checkpoint."""

    file: Path
    config: Config
    classes: tuple[str, ...]
    class_counts: list[int]
    preprocessing: Preprocessing
    device: torch.device
    model: nn.Module

    @cached_property
    def loss(self) -> Loss:
        """What it was trained with; built when it is asked for, which predictions never do."""
        return build_loss(self.config, self.class_counts, self.device)

    @property
    def precision(self) -> str:
        """What the forward pass computes in: float32, bf16 or fp16."""
        return choose_precision(self.config.precision, self.device)

    def batches(self, split: Split) -> Batches:
        """A split's batches, preprocessed as this model's training images were."""
        if split.shape != self.preprocessing.shape:
            got, wanted = list(split.shape), list(self.preprocessing.shape)
            raise DataError(f"the images are {got} (channels, height, width); this model takes {wanted}")
        return Batches(split, self.preprocessing, batch_size=self.config.data.eval_batch_size, device=self.device)


def config_of(checkpoint: Checkpoint, changes: dict[str, Any] | None = None, *, trust_code: bool = False) -> Config:
    """The config a checkpoint was trained with, with some top-level or data keys changed.

    Raises: ConfigError if it is none; RunError if it names `module:Name` and that code is not to be trusted.
    """
    plain = as_recorded(checkpoint.header["config"])
    for key, value in (changes or {}).items():
        section, _, name = key.rpartition(".")
        if section:
            plain[section] = {**(plain[section] if isinstance(plain.get(section), dict) else {}), name: value}
        else:
            plain[key] = value
    config = from_dict(plain, str(checkpoint.file), checkpoint.header["recipe"])
    if not trust_code:
        refuse_users_code(config, str(checkpoint.file))
    return config


def build_evaluation(checkpoint: Checkpoint, config: Config) -> TrainedModel:
    """The model of a checkpoint, with its weights, ready to be evaluated.

    Raises: RunError if the weights do not fit; ConfigError as build_run.
    """
    header = checkpoint.header
    device = choose_device(config.device)
    share_processors()
    set_deterministic(config.deterministic)
    stored = header["preprocessing"]
    channels, height, width = stored["shape"]
    mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
    preprocessing = Preprocessing((channels, height, width), mean, std)
    if ":" not in config.model.name:  # shapes are compared before memory is taken for whatever the file asks for
        supplied = {"in_channels": channels, "image_size": (height, width), "num_classes": len(header["classes"])}
        with torch.device("meta"):
            shapes = build(config.model, supplied).state_dict()
        check_weights(shapes, checkpoint.weights, checkpoint.file)
    model = build_model(config, preprocessing, len(header["classes"]), device)
    load_weights(model, checkpoint)
    model = with_views(model.eval(), config.tta)
    if config.keep_memory and device.type == "cpu":
        keep_freed_memory()
    classes, counts = tuple(header["classes"]), header["class_counts"]
    return TrainedModel(checkpoint.file, config, classes, counts, preprocessing, device, model)


def source_of(evaluation: TrainedModel) -> Dataset:
    """The splits that the run used. Raises: DataError if the data has other classes than the model."""
    with within_memory("reading the data set", FEWER_IMAGES):
        source = hold_out(load_source(evaluation.config), evaluation.config)
    if source.classes != evaluation.classes:
        raise DataError(
            f"{evaluation.file}: the data at {evaluation.config.root} has other classes than this model was trained on"
        )
    return source


def split_of(evaluation: TrainedModel, name: str, source: Dataset | None = None) -> Split:
    """The `train`, `validation` or `test` split that the run used. Raises: DataError if it has none.

    Args:
        evaluation: the run's.
        name: of the split.
        source: what source_of gave, if it has been called.
    """
    source = source or source_of(evaluation)
    split: Split | None = getattr(source, name)
    if split is None:
        has = [other for other in ("train", "validation", "test") if getattr(source, other) is not None]
        raise DataError(f"this run has no {name} split; it has {' and '.join(has)}")
    return split


def folder_split(evaluation: TrainedModel, folder: Path) -> Split:
    """A folder's images, one sub-folder a class, as this model takes them. Raises: DataError."""
    from ..data.folder import read_folder

    return read_folder(str(folder), evaluation.classes, evaluation.preprocessing.shape)
